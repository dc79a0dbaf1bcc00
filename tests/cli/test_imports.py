"""A command pays only for itself: what the plain path imports, and that typer is the series this was measured with."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

#: Measured CPU ms of import on the work machine (dependencies.md): asyncio 80, pydantic 104, aiohttp 375, grpc 135.
HEAVY = (
    "aiohttp", "asyncio", "covey.model", "covey.testing", "cryptography", "grpc", "jsonschema", "manager", "msgpack", "msgspec",
    "numpy", "pydantic", "rich", "scheduler", "ssl", "worker", "yaml",
)  # fmt: skip

SCRIPT = """
import sys
from cli.main import main
status = main(sys.argv[1:])
sys.stdout.flush()
print("modules", *sorted(sys.modules), file=sys.stderr)
sys.exit(status)
"""


def imported(tmp_path, *argv):
    environment = {"PATH": os.environ["PATH"], "COVEY_HOST": f"unix://{tmp_path}/none.sock"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *argv], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    last = done.stderr.strip().splitlines()[-1].split()
    assert last[0] == "modules", done.stderr
    return set(last[1:]), done


@pytest.mark.parametrize(
    "argv",
    [["node", "ls"], ["ps"], ["--help"], ["node", "--help"], ["service", "ls"], ["service", "create", "i"], ["run", "i"],
     ["image", "ls"], ["build", "--help"], ["stack", "ls"], ["exec", "c", "ls"], ["node", "inspect", "--help"],
     ["service", "create", "--help"], ["run", "--bogus"], ["service", "create", "--plan", "i"], ["explain", "t"]],
)  # fmt: skip
def test_nothing_heavy_is_imported(tmp_path, argv):
    modules, done = imported(tmp_path, *argv)
    heavy = {name for name in modules if name in HEAVY or name.startswith(tuple(f"{one}." for one in HEAVY))}
    assert heavy == set(), done.stdout + done.stderr


def test_a_command_imports_no_other_noun(tmp_path):
    modules, _ = imported(tmp_path, "node", "ls")
    assert "cli.node" in modules
    assert not {"cli.service", "cli.run", "cli.image", "cli.stack.commands", "cli.lab", "cli.templates"} & modules


def test_help_imports_no_noun(tmp_path):
    modules, done = imported(tmp_path, "--help")
    assert "node" in done.stdout
    assert "cli.node" not in modules


def test_typer_is_the_pinned_series():
    assert version("typer").startswith("0.20."), "measure `cluster node ls` before taking another series: see pyproject.toml"
