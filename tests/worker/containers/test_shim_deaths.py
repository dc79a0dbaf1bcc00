"""A shim that is killed takes its container along within two seconds, whatever the container is; never a phantom.

And who may speak to a shim: root alone, through a socket of the file system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import CONTROLLERS, Node, wait_until, zygote_of

pytestmark = pytest.mark.root

WITHIN = 2.0
#: One that leaves its session, one whose parent has gone, one in the foreground.
SCATTER = "setsid sleep 100 & (setsid sleep 100 &) ; (sleep 100 &) ; exec sleep 100"


def directory(node: Node, ref: str) -> Path:
    return node.root / "run" / "containers" / str(node.inspect(ref)["Id"])


def shim_of(node: Node, ref: str) -> int:
    return int(json.loads((directory(node, ref) / "shim.json").read_text())["pid"])


def pids_of(node: Node, ref: str) -> list[int]:
    """Every process in the container's cgroup, by the machine's numbers."""
    path = json.loads((directory(node, ref) / "shim.json").read_text())["cgroup"].strip("/")
    for base in (CONTROLLERS / "pids", CONTROLLERS / "memory", CONTROLLERS):
        if (base / path / "cgroup.procs").exists():
            return [int(line) for line in (base / path / "cgroup.procs").read_text().split()]
    pytest.fail(f"no cgroup {path}")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def kill_shim(node: Node, ref: str, pids: list[int]) -> None:
    os.kill(shim_of(node, ref), signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: all(gone(pid) for pid in pids), f"processes {pids} end with their shim", WITHIN)
    wait_until(lambda: node.state(ref)["Status"] == "exited", "it is reported", WITHIN)
    assert time.monotonic() - began < WITHIN
    state = node.state(ref)
    assert (state["ExitCode"], state["Error"], state["Pid"], state["Running"]) == (137, "shim died", 0, False)


@pytest.mark.parametrize("pid_mode", ["", "host", "container:other"])
def test_all_processes_end_with_their_shim(node: Node, pid_mode: str) -> None:
    node.run("--name", "other", "busybox", "sleep", "100")
    node.run("--name", "dies", *(("--pid", pid_mode) if pid_mode else ()), "busybox", "sh", "-c", SCATTER)
    wait_until(lambda: len(pids_of(node, "dies")) == 4, "its four processes run")
    node.docker("exec", "-d", "dies", "sleep", "100")
    wait_until(lambda: len(pids_of(node, "dies")) == 5, "and one more")
    kill_shim(node, "dies", pids_of(node, "dies"))
    assert node.state("other")["Running"], "another's processes are left alone"
    node.docker("start", "dies")
    assert node.state("dies")["Running"], "it can be started again"


def test_a_frozen_container_ends_with_its_shim(node: Node) -> None:
    node.run("--name", "dies", "busybox", "sh", "-c", SCATTER)
    wait_until(lambda: len(pids_of(node, "dies")) == 4, "its processes run")
    node.docker("pause", "dies")
    kill_shim(node, "dies", pids_of(node, "dies"))


def test_a_setuid_program_ends_with_its_shim(node: Node) -> None:
    """The kernel forgets the parent-death signal of a process that gains privileges."""
    node.docker("run", "--rm", "-v", "prog:/v", "busybox", "sh", "-c", "cp /bin/busybox /v/sleep; chmod 4755 /v/sleep")
    try:
        node.run("--name", "dies", "--user", "1000", "-v", "prog:/v", "busybox", "/v/sleep", "100")
        kill_shim(node, "dies", pids_of(node, "dies"))
    finally:
        node.clear()
        node.docker("volume", "rm", "prog")


def test_a_shim_that_died_beside_a_dead_daemon_leaves_no_phantom(node: Node) -> None:
    """Nobody is there to end what shares the host's pids; the next daemon does it before it serves."""
    node.run("--name", "dies", "--pid", "host", "busybox", "sh", "-c", SCATTER)
    wait_until(lambda: len(pids_of(node, "dies")) == 4, "its processes run")
    pids, shim = pids_of(node, "dies"), shim_of(node, "dies")
    node.kill(signal.SIGKILL)
    os.kill(shim, signal.SIGKILL)
    node.start()
    assert all(gone(pid) for pid in pids)
    state = node.state("dies")
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 137, "shim died")


def test_orphans_are_reaped(node: Node) -> None:
    """By the shim where they share its pid namespace, by the machine's init program where that was asked for."""
    orphans = "i=0; while [ $i -lt 20 ]; do (sleep 0.05 &) ; i=$((i+1)); done; echo made; exec sleep 100"
    node.run("--name", "shared", "--pid", "host", "busybox", "sh", "-c", orphans)
    wait_until(lambda: node.out("logs", "shared") == "made", "the orphans are made")
    wait_until(lambda: len(pids_of(node, "shared")) == 1, "they have ended")
    shim = shim_of(node, "shared")
    listed = ["ps", "--ppid", str(shim), "-o", "stat="]
    wait_until(lambda: "Z" not in subprocess.run(listed, capture_output=True, text=True).stdout, "none is a zombie")
    if shutil.which("tini-static") or shutil.which("tini"):
        node.run("--name", "own", "--init", "busybox", "sh", "-c", orphans)
        wait_until(lambda: node.out("logs", "own") == "made", "the orphans are made")
        wait_until(lambda: len(node.out("top", "own").splitlines()) == 3, "init and its child are left")


def test_sockets_are_roots_alone_and_in_the_file_system(node: Node) -> None:
    node.run("--name", "one", "--log-opt", "mode=non-blocking", "busybox", "sh", "-c", "echo x; sleep 100")
    place = directory(node, "one")
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "shim.sock").stat().st_mode & 0o777 == 0o600
    unix = subprocess.run(node.inside("cat", "/proc/net/unix"), capture_output=True, text=True).stdout
    abstract = {fields[6] for fields in (line.split() for line in unix.splitlines()) if fields[-1].startswith("@")}
    for pid in (shim_of(node, "one"), zygote_of(node.root)):
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        inodes = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
        assert inodes
        assert not inodes & abstract


def test_another_user_is_not_listened_to_even_where_the_file_lets_it_in(node: Node) -> None:
    node.run("--name", "one", "busybox", "sleep", "100")
    place = directory(node, "one")
    program = (
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect('/proc/self/fd/9/shim.sock')\n"
        "try:\n"
        "    b = json.dumps({'op': 'hello', 'version': 1}).encode(); s.sendall(struct.pack('>I', len(b)) + b)\n"
        "    print('answered' if s.recv(4) else 'closed')\n"
        "except ConnectionError:\n"
        "    print('closed')\n"
    )

    def asked(user: int) -> str:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
        try:
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                f"import json, os, socket, struct; os.dup2({fd}, 9); os.setuid({user})\n{program}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, pass_fds=[fd], timeout=20)
        finally:
            os.close(fd)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert asked(0) == "answered"
    assert "Permission denied" in asked(65534)
    os.chmod(place / "shim.sock", 0o666)
    os.chmod(place, 0o755)
    assert asked(65534) == "closed"
    assert asked(0) == "answered"
