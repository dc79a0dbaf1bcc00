"""The daemon dies, the containers do not; each exit in between is told once, and nothing is left behind."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from .conftest import CONTROLLERS, Node, wait_until, zygote_of

pytestmark = pytest.mark.root

ROUNDS, IN_FLIGHT = 3, 8


def shim_of(node: Node, ref: str) -> int:
    directory = node.root / "run" / "containers" / node.inspect(ref)["Id"]
    return int(json.loads((directory / "shim.json").read_text())["pid"])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_running_containers_are_adopted_and_exits_told_once(node: Node) -> None:
    serve = "mkdir /w; echo hello > /w/index.html; httpd -p 80 -h /w; while true; do echo tick; sleep 0.1; done"
    node.run("--name", "stays", "-p", "8080:80", "busybox", "sh", "-c", serve)
    node.run("--name", "paused", "busybox", "sleep", "100")
    node.docker("pause", "paused")
    node.run("--name", "ends", "busybox", "sh", "-c", "while ! test -f /go; do sleep 0.05; done; exit 5")
    node.run("--name", "dies", "busybox", "sleep", "100")
    node.run("--name", "removed", "--rm", "busybox", "sh", "-c", "while ! test -f /go; do sleep 0.05; done")
    node.run("--name", "again", "--restart", "always", "busybox", "sleep", "100")
    before = node.state("stays")
    ends, removed = node.state("ends")["Pid"], node.state("removed")["Pid"]
    shims = [shim_of(node, "dies"), shim_of(node, "again")]
    node.kill(signal.SIGKILL)
    for waiting in (ends, removed):
        Path(f"/proc/{waiting}/root/go").touch()
    for shim in shims:
        os.kill(shim, signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in (ends, removed, *shims)), "the four are gone")
    node.start()
    after = node.state("stays")
    assert (after["Pid"], after["StartedAt"], after["Status"]) == (before["Pid"], before["StartedAt"], "running")
    assert node.state("paused")["Status"] == "paused"
    fetch = node.inside("curl", "-s", "--max-time", "3", "127.0.0.1:8080")
    assert subprocess.run(fetch, capture_output=True, text=True).stdout == "hello\n"
    assert node.out("exec", "stays", "echo", "ok") == "ok"
    wait_until(lambda: node.state("ends")["Status"] == "exited", "the exit in between is known")
    assert node.state("ends")["ExitCode"] == 5
    died = node.state("dies")
    assert (died["Status"], died["ExitCode"], died["Error"]) == ("exited", 137, "shim died")
    wait_until(lambda: node.state("again")["Status"] == "running", "its policy starts it again")
    assert "was not started again" not in node.errors.read_text(), "it was started twice"
    told = node.events("event=die", form="{{.Actor.Attributes.name}}")
    assert sorted(told) == ["again", "dies", "ends", "removed"]
    wait_until(lambda: "removed" not in node.out("ps", "-a", "--format", "{{.Names}}").split(), "--rm holds over a restart")
    node.kill(signal.SIGTERM)
    node.start()
    assert node.state("stays")["Pid"] == before["Pid"]
    assert node.events("event=die") == [], "an exit was told twice"


def all_at_once(node: Node, method: str, paths: list[str]) -> list[threading.Thread]:
    """Requests under way, whatever becomes of them."""

    def ask(path: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            node.call(method, path)

    threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    return threads


def test_a_daemon_that_dies_amid_starts_and_removals_loses_nothing(node: Node) -> None:
    """The next one finds each container running or not, can start, stop and remove it, and nothing stays of any."""
    dice = random.Random(11)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(ROUNDS):
        made = [node.out("create", "busybox", "sleep", "100") for _ in range(IN_FLIGHT)]
        for method, path in (("POST", "/containers/{}/start"), ("DELETE", "/containers/{}?force=true")):
            under_way = all_at_once(node, method, [path.format(one) for one in made])
            time.sleep(dice.uniform(0, 0.3))
            node.kill(signal.SIGKILL)
            for thread in under_way:
                thread.join(30)
            node.start()
            made = [one for one in made if one in node.out("ps", "-aq", "--no-trunc").split()]
            for one in made:
                state = node.state(one)
                seen[f"{method} {state['Status']}"] += 1
                assert state["Status"] in ("created", "running", "exited"), state
                assert state["Running"] == (state["Pid"] > 0 and not gone(state["Pid"])), state
            if made and method == "POST":
                node.docker("start", *made)
        node.clear()
    print(f"{ROUNDS} rounds of {IN_FLIGHT}: {dict(seen)}")
    wait_until(lambda: not list((node.root / "run/containers").iterdir()), "their run directories are gone")
    memory = CONTROLLERS / "memory" / node.cgroup.strip("/")
    names = [one.name for one in memory.iterdir() if one.is_dir()] if memory.exists() else []
    assert [name for name in names if name != "shims" and not name.startswith("sandbox-")] == []
    listed = subprocess.run(node.inside("cat", "/proc/self/mountinfo"), capture_output=True, text=True).stdout
    assert str(node.root / "run" / "containers") not in listed


def test_a_dead_zygote_is_replaced(node: Node) -> None:
    node.run("--name", "stays", "busybox", "sleep", "100")
    os.kill(zygote_of(node.root), signal.SIGKILL)
    assert node.out("run", "--rm", "busybox", "echo", "hi") == "hi"
    assert node.state("stays")["Running"] is True


def test_nothing_is_left_of_removed_containers(node: Node) -> None:
    node.run("--name", "one", "-p", "8082:80", "--tmpfs", "/t", "busybox", "sleep", "100")
    node.docker("run", "--name", "two", "busybox", "nosuch", code=127)
    node.docker("rm", "-f", "one", "two")
    for directory in ("data/containers", "data/rootfs/containers", "run/network/attachments"):
        assert list((node.root / directory).iterdir()) == [], directory
    wait_until(lambda: not list((node.root / "run/containers").iterdir()), "their run directories are gone")
    listed = subprocess.run(node.inside("cat", "/proc/self/mountinfo"), capture_output=True, text=True).stdout
    assert str(node.root / "run" / "containers") not in listed
    links = subprocess.run(node.inside("ls", "/sys/class/net"), capture_output=True, text=True).stdout
    assert "veth" not in links
    memory = CONTROLLERS / "memory" / node.cgroup.strip("/")
    if memory.exists():
        left = [one.name for one in memory.iterdir() if one.is_dir() and not one.name.startswith("sandbox-")]
        assert left == ["shims"]
