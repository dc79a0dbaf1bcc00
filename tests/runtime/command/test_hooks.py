"""Hooks by the command line: when each runs, what it is told, what its failure does. And filters of the bundle's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import pytest

pytestmark = pytest.mark.root

_OUTSIDE = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


def hook(runtime, kind, then="exit 0"):
    """A hook that appends ``kind`` and the state it was given to a file, then does ``then``."""
    script = f'echo "{kind} $(cat)" >>{runtime.base}/told; {then}'
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}


def all_hooks(runtime, **more):
    return {kind: [hook(runtime, kind, more.get(kind, "exit 0"))] for kind in _OUTSIDE}


def told(runtime):
    """[(kind, state)] so far."""
    file = runtime.base / "told"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1])) for line in lines]


def test_each_at_its_moment(runtime):
    """The order and the states of OCI config.md, "POSIX-platform Hooks"."""
    inside = {"path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/told"], "env": ["PATH=/bin"]}
    config = {**all_hooks(runtime), "startContainer": [inside]}
    runtime.create("a", hooks=config, annotations={"k": "v"})
    pid = runtime.state("a")["pid"]
    assert [kind for kind, _ in told(runtime)] == ["prestart", "createRuntime", "createContainer"]
    for _, state in told(runtime):
        assert state["status"] == "creating"
        assert (state["id"], state["pid"], state["annotations"]) == ("a", pid, {"k": "v"})
        assert state["bundle"] == str(runtime.base / "bundle-a")
    runtime.call("start", "a")
    kind, state = told(runtime)[3]
    assert (kind, state["status"], state["pid"]) == ("poststart", "running", pid)
    assert json.loads(runtime.call("exec", "a", "cat", "/tmp/told").out)["status"] == "created"
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    assert len(told(runtime)) == 4
    runtime.call("delete", "a")
    kind, state = told(runtime)[4]
    assert (kind, state["status"]) == ("poststop", "stopped")
    assert len(told(runtime)) == 5


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failure_before_the_start_undoes_the_create(runtime, kind):
    bundle = runtime.bundle("a", ["sleep", "1000"], hooks=all_hooks(runtime, **{kind: "echo no good >&2; exit 3"}))
    error = runtime.call("create", "--bundle", bundle, "a", code=1).err
    assert f"hooks.{kind}[0]" in error
    assert "exit status 3: no good" in error
    assert told(runtime)[-1][0] == "poststop"
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


def test_a_failed_poststart_stops_the_container(runtime):
    runtime.create("a", hooks=all_hooks(runtime, poststart="exit 3"))
    assert "hooks.poststart[0]" in runtime.call("start", "a", code=1).err
    runtime.wait_status("a", "stopped")


def test_a_failed_poststop_is_a_warning(runtime):
    runtime.create("a", hooks={"poststop": [hook(runtime, "poststop", "exit 3"), hook(runtime, "poststop")]})
    assert "hooks.poststop[0]" in runtime.call("delete", "a").err
    assert [kind for kind, _ in told(runtime)] == ["poststop", "poststop"]


def test_run_calls_them_all(runtime):
    bundle = runtime.bundle("a", ["true"], hooks=all_hooks(runtime))
    runtime.call("run", "--bundle", bundle, "a")
    assert [kind for kind, _ in told(runtime)] == list(_OUTSIDE)


def test_a_hook_may_ask_for_the_state(runtime):
    """A hook runs while the container is locked; commands that only look do not wait."""
    line = " ".join(runtime.line("state", "a"))
    config = {"createRuntime": [hook(runtime, "createRuntime", f"{line} >{runtime.base}/seen")]}
    runtime.create("a", hooks=config)
    assert json.loads((runtime.base / "seen").read_text())["status"] == "creating"


def test_a_create_killed_in_a_hook_is_cleared_by_the_next(runtime):
    """The moment is exact here: init is in its cgroup and waits, the command dies."""
    fifo = runtime.base / "fifo"
    os.mkfifo(fifo)
    config = {"createRuntime": [hook(runtime, "createRuntime", f"read line <{fifo}")], "poststop": [hook(runtime, "poststop")]}
    line = runtime.line("create", "--bundle", runtime.bundle("a", ["sleep", "1000"], hooks=config), "a")
    with subprocess.Popen(line, stdin=subprocess.DEVNULL) as process:
        (_, state) = runtime.wait_for("the hook", lambda: told(runtime))[0]
        busy = runtime.call("create", "--bundle", runtime.bundle("a", ["true"]), "a", code=1)
        assert "container with id exists" in busy.err
        process.send_signal(signal.SIGKILL)
    assert runtime.state("a")["status"] == "creating"
    assert [entry["id"] for entry in json.loads(runtime.call("list", "--format", "json").out)] == ["a"]
    runtime.create("a")
    assert runtime.state("a")["pid"] != state["pid"]
    runtime.wait_for("the end of the first", lambda: not runtime.runs(state["pid"]))
    assert told(runtime)[-1][0] == "poststop"
    runtime.call("start", "a")


def test_a_network_device_is_moved_in(runtime):
    """linux.netDevices: made here, found inside under its other name; a name that is not there undoes the create."""
    name = f"cv{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "cgroupsPath": f"{runtime.parent}/a",
        "netDevices": {name: {"name": "inside0"}},
    }
    try:
        runtime.start("a", linux=linux)
        assert "inside0" in runtime.call("exec", "a", "ip", "link").out
        assert subprocess.run(["ip", "link", "show", name], capture_output=True, check=False).returncode != 0
        bundle = runtime.bundle("b", ["true"], linux={**linux, "cgroupsPath": f"{runtime.parent}/b"})
        assert f"linux.netDevices.{name}" in runtime.call("create", "--bundle", bundle, "b", code=1).err
        assert runtime.ids() == ["a"]
    finally:
        runtime.call("delete", "--force", "a")
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


def test_a_filter_of_the_bundle(runtime):
    """Compiled at create, with no daemon; an exec has it too."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    }
    linux = {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "cgroupsPath": f"{runtime.parent}/a",
        "seccomp": profile,
    }
    script = "mkdir /tmp/x && echo made || echo refused; grep Seccomp: /proc/self/status; sleep 1000"
    out = runtime.base / "out"
    bundle = runtime.bundle("a", ["sh", "-c", script], linux=linux)
    with open(out, "w") as file:
        subprocess.run(
            runtime.line("run", "-d", "--bundle", bundle, "a"), stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True
        )
    runtime.wait_for("its words", lambda: "Seccomp:\t2" in out.read_text())
    assert "Permission denied\nrefused\n" in out.read_text()
    assert runtime.call("exec", "a", "mkdir", "/tmp/y", code=1).err.endswith("Permission denied\n")


def test_a_listener_is_handed_over_by_start(runtime):
    """SCMP_ACT_NOTIFY: the filter is loaded after start has been asked for, so start delivers the descriptor."""
    path = runtime.base / "agent.sock"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        agent.settimeout(20)
        linux = {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "cgroupsPath": f"{runtime.parent}/a",
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": str(path),
                "listenerMetadata": "words",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
            },
        }
        runtime.create("a", linux=linux)
        runtime.call("start", "a")
        connection, _ = agent.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 1)
    for fd in fds:
        os.close(fd)
    body = json.loads(data)
    assert len(fds) == 1
    assert body["fds"] == ["seccompFd"]
    assert body["metadata"] == "words"
    assert body["pid"] == runtime.state("a")["pid"]
    assert body["state"]["id"] == "a"
