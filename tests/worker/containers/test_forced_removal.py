"""``rm -f`` of what runs: who listens gets everything that was said, the end is told in Docker's order, nothing stays."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import CONTROLLERS, Node, wait_until

pytestmark = pytest.mark.root


def ident_of(node: Node, ref: str) -> str:
    return str(node.inspect(ref)["Id"])


def nothing_stays(node: Node, ident: str) -> None:
    """At once what others may want, its addresses; soon what is left of it in the kernel and on disk."""
    assert not list((node.root / "run/network").rglob(f"{ident}*"))
    wait_until(lambda: not (node.root / "run/containers" / ident).exists(), "its run directory is gone")
    assert not [path for path in CONTROLLERS.rglob(f"*{ident}*") if path.is_dir()]
    wait_until(lambda: not list((node.root / "data/rootfs/removed").iterdir()), "its files are deleted")


def told(node: Node, ident: str, since: float) -> list[tuple[str, str]]:
    """(event, exit code) of a container, until now."""
    until = f"{time.time():.3f}"
    said = node.docker("events", "--since", f"{since:.3f}", "--until", until, "--format", "{{json .}}").stdout
    events = [json.loads(line) for line in said.splitlines()]
    mine = [event for event in events if event["Actor"]["ID"] == ident and event["Type"] == "container"]
    return [(event["Action"], event["Actor"]["Attributes"].get("exitCode", "")) for event in mine]


@pytest.mark.parametrize("settled", [False, True], ids=["just started", "asleep"])
def test_the_end_is_told_in_order_and_nothing_stays(node: Node, settled: bool) -> None:
    since = time.time()
    publish = ("-p", "127.0.0.1:8099:80")
    node.docker("run", "-d", "--name", "one", *publish, "busybox", "sh", "-c", "sleep 100 & sleep 100")
    ident = ident_of(node, "one")
    if settled:
        shim = json.loads((node.root / "run/containers" / ident / "shim.json").read_text())["pid"]
        children = Path(f"/proc/{shim}/task/{shim}/children")
        wait_until(lambda: len(children.read_text().split()) == 1, "the shim's worker has handed over and gone")
    node.docker("rm", "-f", "one")
    assert told(node, ident, since)[-3:] == [("kill", ""), ("die", "137"), ("destroy", "")]
    assert node.docker("inspect", "one", code=None).returncode == 1
    nothing_stays(node, ident)
    # Name, address and port are free at once.
    node.docker("run", "-d", "--name", "one", *publish, "busybox", "sleep", "100")
    node.docker("rm", "-f", "one")


def test_a_listener_gets_all_that_was_said(node: Node, tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = ["docker", "-H", f"unix://{node.socket}", "run", "--name", "loud", "busybox"]
    with said.open("w") as output:
        listening = subprocess.Popen([*command, "sh", "-c", "seq 1 200000; sleep 100"], stdout=output)
    last = ("logs", "--tail", "1", "loud")
    wait_until(lambda: node.docker(*last, code=None).stdout.strip() == "200000", "all is said")
    node.docker("rm", "-f", "loud")
    assert listening.wait(10) == 137
    assert said.read_text().split() == [str(number) for number in range(1, 200001)]


def test_an_exec_and_a_frozen_process_are_ended_too(node: Node) -> None:
    node.docker("run", "-d", "--name", "busy", "busybox", "sleep", "100")
    ident = ident_of(node, "busy")
    command = ["docker", "-H", f"unix://{node.socket}", "exec", "busy", "sleep", "100"]
    executing = subprocess.Popen(command)
    wait_until(lambda: len(node.docker("top", "busy").stdout.splitlines()) == 3, "the exec runs")
    node.docker("rm", "-f", "busy")
    assert executing.wait(10) == 137
    nothing_stays(node, ident)

    node.docker("run", "-d", "--name", "cold", "busybox", "sleep", "100")
    ident = ident_of(node, "cold")
    node.docker("pause", "cold")
    node.docker("rm", "-f", "cold")
    nothing_stays(node, ident)


def test_a_process_namespace_of_another_ends_nobody_else(node: Node) -> None:
    node.docker("run", "-d", "--name", "first", "busybox", "sleep", "100")
    node.docker("run", "-d", "--name", "second", "--pid", "container:first", "busybox", "sh", "-c", "sleep 99 & sleep 99")
    ident = ident_of(node, "second")
    node.docker("rm", "-f", "second")
    assert node.state("first")["Running"]
    wait_until(lambda: len(node.docker("top", "first").stdout.splitlines()) == 2, "all of second's processes are gone")
    nothing_stays(node, ident)
    node.docker("rm", "-f", "first")
