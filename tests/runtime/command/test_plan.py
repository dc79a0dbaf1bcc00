"""What the command line changes in the plan of a container, and what a call of it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.runtime.command.build import Wishes, adapted
from worker.runtime.launch import Host, plan_container

_CONFIG = {
    "ociVersion": "1.0.2",
    "root": {"path": "/x"},
    "process": {"args": ["true"], "cwd": "/"},
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
}


def steps(*, pivot: bool, keyring: bool) -> tuple[list[str], list[str]]:
    wishes = Wishes("", "", pivot=pivot, keyring=keyring, kept=0)
    plan = adapted(plan_container(_CONFIG, Host(0, [], ["/x/tasks"])), _CONFIG["process"], wishes)
    return [step.name for step in plan.create], [step.name for step in plan.start]


def test_the_program_is_looked_for_last_of_all_by_create():
    create, start = steps(pivot=True, keyring=True)
    assert create[-1] == "check_program"
    assert "pivot" in create
    assert "session_keyring" in start
    assert start.index("home") == start.index("find_program") + 1


def test_no_pivot():
    create, _ = steps(pivot=False, keyring=True)
    assert "pivot" not in create
    assert "move_root" in create


def test_no_new_keyring():
    assert "session_keyring" not in steps(pivot=True, keyring=False)[1]


@pytest.mark.parametrize("line", [["--version"], ["--root", "/nonexistent", "list"], ["--root", "/nonexistent", "state", "x"]])
def test_looking_is_cheap(line):
    """podman and containerd ask for the state all the time: it loads neither the runtime nor what is slow to load."""
    script = "import sys; from worker.runtime.command.main import main; code = main(); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-c", script, *line], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3]
    )
    loaded = set(ended.stderr.splitlines()[-1].split())
    assert "worker.runtime.command.main" in loaded
    slow = {"argparse", "asyncio", "subprocess", "email", "importlib.metadata", "inspect", "logging", "shutil", "tempfile"}
    heavy = {"worker.runtime.init", "worker.runtime.launch", "worker.runtime.spec", "worker.runtime.cgroups"}
    assert not loaded & (slow | heavy)
