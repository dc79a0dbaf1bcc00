"""runtime.md and the hooks of config.md: operations, states, errors, and what runs when."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import wait_until
from tests.runtime.spec.table import Table, own_root
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault

TABLE = Table("runtime.md")
HOOKS = Table("config.md hooks")
EARLY = ("prestart", "createRuntime", "createContainer")
ALL = (*EARLY, "startContainer", "poststart", "poststop")


# State and operations


@TABLE.row("Create", "everything is made, and the user's program does not run")
async def _(boxes):
    box = await boxes.make(["touch", "/tmp/ran"], mounts=[{"destination": "/tmp", "type": "tmpfs"}])
    assert (await box.shim.state())["state"] == "created"
    assert not os.path.exists(f"/proc/{box.init_pid}/root/tmp/ran")
    assert os.path.isdir(f"/proc/{box.init_pid}/root/dev/pts")


@TABLE.row("Create", "an id that is in use already is an error, and the container there is left alone")
async def _(boxes):
    box = await boxes.start(["sleep", "60"])
    with pytest.raises(RuntimeFault, match="is running already") as caught:
        await box.shim.create(box.directory)
    assert caught.value.code == "bad-state"
    assert (await box.shim.state())["state"] == "running"


@TABLE.row("Create", "a bundle without config.json is an error")
async def _(boxes):
    shim, directory, _ = await boxes.shim()
    with pytest.raises(RuntimeFault, match=r"config\.json"):
        await shim.create(directory)
    assert (await shim.state())["state"] == "empty"


@TABLE.row("Lifecycle", "changes of config.json after create have no effect on the container")
async def _(boxes):
    box = await boxes.make(["echo", "before"])
    attachment = await box.shim.attach()
    config = json.loads((box.directory / "config.json").read_text())
    config["process"]["args"] = ["echo", "after"]
    (box.directory / "config.json").write_text(json.dumps(config))
    await box.shim.start()
    frames = [data async for _, data in attachment.frames()]
    assert b"".join(frames) == b"before\n"


@TABLE.row("Errors", "an operation that fails leaves things as they were")
async def _(boxes):
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, mounts=[{"destination": "/x", "type": "nosuchfs"}])
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="No such device"):
        await shim.create(directory)
    group = Cgroup(config["linux"]["cgroupsPath"])
    await wait_until("the group's end", lambda: not group.exists())
    assert (await shim.state())["state"] == "empty"
    config["mounts"].pop()
    config["root"]["path"] = str(boxes.rootfs)
    (directory / "config.json").write_text(json.dumps(config))
    await shim.create(directory)


@TABLE.row("Start", "the program runs, and the status is running")
async def _(boxes):
    box = await boxes.start(["sleep", "60"])
    assert (await box.shim.state())["state"] == "running"
    assert Path(f"/proc/{box.init_pid}/cmdline").read_bytes() == b"sleep\x0060\x00"


@TABLE.row("Start", "one that is not created is an error and has no effect")
async def _(boxes):
    box = await boxes.start(["sleep", "60"])
    with pytest.raises(RuntimeFault, match="is running, not created"):
        await box.shim.start()
    await box.shim.kill(signal.SIGKILL)
    await box.exit()
    with pytest.raises(RuntimeFault, match="is exited, not created"):
        await box.shim.start()


@TABLE.row("State", "pid is that of the process as the host sees it, while there is one")
async def _(boxes):
    box = await boxes.start(["sleep", "60"])
    state = await box.shim.state()
    assert state["init_pid"] == box.init_pid
    assert Path(f"/proc/{box.init_pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split() == [
        str(box.init_pid),
        "1",
    ]


for started in (False, True):

    @TABLE.row("Kill", f"sends the signal to a container that is {'running' if started else 'created'}")
    async def _(boxes, started=started):
        box = await (boxes.start if started else boxes.make)(["sleep", "60"])
        await box.shim.kill(signal.SIGKILL)
        assert (await box.exit())["signal"] == 9


@TABLE.row("Kill", "one that has stopped is an error")
async def _(boxes):
    box = await boxes.start(["true"])
    await box.exit()
    with pytest.raises(RuntimeFault, match="is exited, not"):
        await box.shim.kill(signal.SIGTERM)


@TABLE.row("Kill", "a process that has ended, however it came, is stopped")
async def _(boxes):
    box = await boxes.start(["false"])
    assert (await box.exit())["code"] == 1
    assert (await box.shim.state())["state"] == "exited"


@TABLE.row("Delete", "one that has not stopped is an error")
async def _(boxes):
    for begin in (boxes.make, boxes.start):
        box = await begin(["sleep", "60"])
        with pytest.raises(RuntimeFault, match="kill it first"):
            await box.shim.delete()
        assert (await box.shim.state())["state"] in ("created", "running")


@TABLE.row("Delete", "removes what create made, and nothing that it did not make")
async def _(boxes):
    box = await boxes.start(["true"])
    await box.exit()
    await box.shim.delete()
    assert not box.cgroup.exists()
    assert (box.directory / "config.json").exists()
    assert boxes.rootfs.exists()


for words in ("runc spec", "runc spec --rootless", "crun spec"):

    @TABLE.row("Create", f"the bundle that {words} writes runs as it is")
    async def _(boxes, words=words):
        line = words.split()
        if shutil.which(line[0]) is None:
            pytest.skip(f"no {line[0]}: apt-get install {line[0]}")
        shim, directory, _ = await boxes.shim()
        subprocess.run(line, cwd=directory, check=True)
        config = json.loads((directory / "config.json").read_text())
        assert config["root"]["path"] == "rootfs"
        own_root(boxes).rename(directory / "rootfs")
        config["process"]["args"] = ["sh", "-c", "id -u; tty; touch /x"]
        (directory / "config.json").write_text(json.dumps(config))
        pid, _ = await shim.create(directory)
        assert pid in Cgroup(f"/covey/{directory.name}").pids()
        attachment = await shim.attach()
        await shim.start()
        said = b"".join([data async for _, data in attachment.frames()]).decode()
        assert said.split()[:2] == ["0", "/dev/pts/0"], said
        assert "Read-only file system" in said


# Hooks: a script that adds a line of its kind, its namespace and its state to a file on the host.


def recorder(directory: Path, fail: str = "") -> dict[str, Any]:
    """Hooks of every kind. ``fail``: the one, of those that run outside, that answers 7."""
    script = directory / "hook.sh"
    script.write_text(
        "#!/bin/sh\nkind=$1\n"
        f'printf "%s %s %s\\n" "$kind" "$(readlink /proc/self/ns/mnt)" "$(cat)" >>{directory}/record\n'
        f'if [ "$kind" = "{fail}" ]; then echo "words of $kind" >&2; exit 7; fi\n'
    )
    script.chmod(0o755)
    hooks = {kind: [{"path": str(script), "args": ["hook", kind], "env": ["PATH=/bin:/usr/bin"]}] for kind in ALL}
    # Inside there is only what the container has; it tells by its own files.
    told = 'x="$(/bin/readlink /proc/self/ns/mnt) $(/bin/cat)"; echo "startContainer $x" >/tmp/record'
    hooks["startContainer"] = [
        {"path": "/bin/sh", "args": ["sh", "-c", told + (f"; [ startContainer != {fail} ]" if fail else "")]}
    ]
    return hooks


def record(directory: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, mount namespace, state) in order."""
    lines = []
    for line in (directory / "record").read_text().splitlines():
        kind, namespace, state = line.split(" ", 2)
        lines.append((kind, namespace, json.loads(state)))
    return lines


class Recorded:
    """A container with all hooks, and what they have written."""

    def __init__(self, boxes: Any, fail: str = "") -> None:
        self.directory = boxes.base / "hooks"
        self.directory.mkdir()
        (self.directory / "record").touch()
        self.changes: dict[str, Any] = {
            "hooks": recorder(self.directory, fail),
            "annotations": {"org.example": "words"},
            "mounts": [{"destination": "/tmp", "type": "bind", "source": str(self.directory), "options": ["rbind"]}],
            "ociVersion": "1.0.2",
        }

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in record(self.directory)]


@HOOKS.row("Hooks", "each is called at its moment, in order")
async def _(boxes):
    recorded = Recorded(boxes)
    box = await boxes.make(["sleep", "60"], **recorded.changes)
    assert recorded.kinds() == list(EARLY)
    await box.shim.start()
    # The one inside writes over the record of those outside, which it does not see grow.
    found = recorded.kinds()
    assert found[-2:] == ["startContainer", "poststart"], found
    await box.shim.kill(signal.SIGKILL)
    await box.exit()
    assert recorded.kinds() == found
    await box.shim.delete()
    assert recorded.kinds() == [*found, "poststop"]


@HOOKS.row("Hooks", "the state is passed on stdin")
async def _(boxes):
    recorded = Recorded(boxes)
    box = await boxes.make(["sleep", "60"], **recorded.changes)
    early = record(recorded.directory)
    await box.shim.start()
    later = record(recorded.directory)
    await box.shim.kill(signal.SIGKILL)
    await box.exit()
    await box.shim.delete()
    last = record(recorded.directory)[-1]
    common = {
        "ociVersion": "1.0.2",
        "id": "box0",
        "bundle": str(box.directory),
        "annotations": {"org.example": "words"},
    }
    assert [state for _, _, state in early] == [{**common, "status": "creating", "pid": box.init_pid}] * 3
    assert [state["status"] for _, _, state in later] == ["created", "running"]
    assert all(state == {**common, "status": state["status"], "pid": box.init_pid} for _, _, state in later)
    assert last[2] == {**common, "status": "stopped"}


@HOOKS.row("Hooks", "prestart, createRuntime, poststart and poststop run in the runtime's namespaces, the others inside")
async def _(boxes):
    recorded = Recorded(boxes)
    box = await boxes.make(["sleep", "60"], **recorded.changes)
    seen = {kind: namespace for kind, namespace, _ in record(recorded.directory)}
    await box.shim.start()
    seen.update({kind: namespace for kind, namespace, _ in record(recorded.directory)})
    inside, outside = os.readlink(f"/proc/{box.init_pid}/ns/mnt"), os.readlink("/proc/self/ns/mnt")
    await box.shim.kill(signal.SIGKILL)
    await box.exit()
    await box.shim.delete()
    seen.update({kind: namespace for kind, namespace, _ in record(recorded.directory)})
    assert {kind: seen[kind] == outside for kind in ALL} == {
        kind: kind in ("prestart", "createRuntime", "poststart", "poststop") for kind in ALL
    }
    assert seen["createContainer"] == seen["startContainer"] == inside


@HOOKS.row("createContainer", "runs when the mounts are there and the root is not yet changed")
async def _(boxes):
    root, directory = boxes.rootfs, boxes.base
    told = f"ls {root}/tmp >{directory}/seen; ls / | grep -c etc >>{directory}/seen"
    hooks = {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", told], "env": ["PATH=/bin:/usr/bin"]}]}
    mounts = [{"destination": "/tmp", "type": "bind", "source": "/etc/apt", "options": ["rbind"]}]
    await boxes.make(["true"], hooks=hooks, mounts=mounts)
    words = (directory / "seen").read_text().split()
    assert words == [*sorted(os.listdir("/etc/apt")), "1"]


@HOOKS.row("createRuntime", "may change the network namespace of the container that waits")
async def _(boxes):
    enter = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); nsenter -t $pid -n ip link set lo up"
    hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", enter], "env": [f"PATH={os.environ['PATH']}"]}]}
    assert "UP" in (await boxes.sh("ip link show lo", hooks=hooks)).out


@HOOKS.row("startContainer", "runs as the container's user and with its capabilities: it is the image's program")
async def _(boxes):
    told = "/bin/busybox id -u >/tmp/seen; /bin/busybox grep CapEff /proc/self/status >>/tmp/seen"
    hooks = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", told]}]}
    mounts = [{"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]}]
    result = await boxes.sh("cat /tmp/seen", hooks=hooks, mounts=mounts, process={"user": {"uid": 1000, "gid": 1000}})
    assert result.out.split() == ["1000", "CapEff:", "0000000000000000"]


@HOOKS.row("args, env", "are argv and the whole environment")
async def _(boxes):
    seen = boxes.base / "seen"
    told = f'echo "$0" "$1" >{seen}; env >>{seen}'
    hooks = {
        "prestart": [
            {"path": "/bin/sh", "args": ["other", "-c", told, "zero", "one"], "env": ["A=1", "B=2", "PATH=/bin:/usr/bin"]}
        ]
    }
    await boxes.make(["true"], hooks=hooks)
    first, *rest = seen.read_text().splitlines()
    assert first == "zero one"
    assert {line for line in rest if not line.startswith(("PWD=", "_=", "SHLVL=", "OLDPWD="))} == {
        "A=1",
        "B=2",
        "PATH=/bin:/usr/bin",
    }


@HOOKS.row("args", "left out means the path alone")
async def _(boxes):
    script = boxes.base / "alone"
    script.write_text(f'#!/bin/sh\necho "$#" >{boxes.base}/seen\n')
    script.chmod(0o755)
    await boxes.make(["true"], hooks={"createRuntime": [{"path": str(script)}]})
    assert (boxes.base / "seen").read_text() == "0\n"


@HOOKS.row("Hooks", "those of one kind are called in the listed order, and not after one that failed")
async def _(boxes):
    hooks = [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {n} >>{boxes.base}/seen; exit {n // 3}"]} for n in (1, 2, 3, 4)]
    with pytest.raises(RuntimeFault, match=r"hooks\.createRuntime\[2\].*exit status 1"):
        await boxes.make(["true"], hooks={"createRuntime": hooks})
    assert (boxes.base / "seen").read_text().split() == ["1", "2", "3"]


@HOOKS.row("timeout", "ends a hook that takes longer, which is its failure")
async def _(boxes):
    told = f"echo $$ >{boxes.base}/pid; exec sleep 30"
    for kind in ("createRuntime", "createContainer"):
        before = asyncio.get_running_loop().time()
        slow = [{"path": "/bin/sh", "args": ["sh", "-c", told], "env": ["PATH=/bin:/usr/bin"], "timeout": 1}]
        with pytest.raises(RuntimeFault, match=rf"hooks\.{kind}\[0\].*timeout of 1 s"):
            await boxes.make(["true"], hooks={kind: slow})
        assert asyncio.get_running_loop().time() - before < 5


for kind in EARLY:

    @HOOKS.row("Lifecycle", f"a {kind} hook that fails is an error of create, which is undone; poststop hooks are called")
    async def _(boxes, kind=kind):
        recorded = Recorded(boxes, fail=kind)
        shim, directory, _ = await boxes.shim()
        config = boxes.bundle(["true"], directory.name, **recorded.changes)
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(RuntimeFault, match=f"exit status 7: words of {kind}") as caught:
            await shim.create(directory)
        assert f"hooks.{kind}[0]" in caught.value.step
        assert recorded.kinds() == [*EARLY[: EARLY.index(kind) + 1], "poststop"]
        assert (await shim.state())["state"] == "empty"
        await wait_until("the group's end", lambda: not Cgroup(config["linux"]["cgroupsPath"]).exists())


@HOOKS.row("Lifecycle", "a startContainer hook that fails is an error of start, and the program does not run")
async def _(boxes):
    hooks = {"startContainer": [{"path": "/bin/false"}]}
    box = await boxes.make(["echo", "ran"], hooks=hooks)
    with pytest.raises(RuntimeFault, match=r"hooks\.startContainer\[0\]: /bin/false: exit status 1"):
        await box.shim.start()
    await box.exit()
    assert "ran" not in box.log.read_text()


@HOOKS.row("Lifecycle", "a poststart hook that fails is an error of start, and the container is stopped")
async def _(boxes):
    box = await boxes.make(["sleep", "60"], hooks={"poststart": [{"path": "/bin/false"}]})
    with pytest.raises(RuntimeFault, match=r"hooks\.poststart\[0\]: /bin/false: exit status 1"):
        await box.shim.start()
    assert (await box.exit())["signal"] == 9


@HOOKS.row("Lifecycle", "a poststop hook that fails is a warning; the others are called and the container is deleted")
async def _(boxes):
    then = {"path": "/bin/sh", "args": ["sh", "-c", f"echo called >{boxes.base}/seen"]}
    box = await boxes.start(["true"], hooks={"poststop": [{"path": "/bin/false"}, then]})
    await box.exit()
    await box.shim.delete()
    assert (boxes.base / "seen").read_text() == "called\n"
    assert box.shim.warnings == ["hooks.poststop[0]: /bin/false: exit status 1"]
    assert not box.cgroup.exists()


@HOOKS.row("Hooks", "a program that is not there is an error that names it")
async def _(boxes):
    for kind in ("prestart", "createContainer"):
        with pytest.raises(RuntimeFault, match=rf"hooks\.{kind}\[0\].*/no/such/program: No such file"):
            await boxes.make(["true"], hooks={kind: [{"path": "/no/such/program"}]})


@HOOKS.row("poststart", "is called before start returns, and may ask about the container meanwhile")
async def _(boxes):
    gate, seen = boxes.base / "gate", boxes.base / "seen"
    told = f"while [ ! -e {gate} ]; do sleep 0.01; done; echo done >{seen}"
    hooks = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", told], "env": ["PATH=/bin:/usr/bin"], "timeout": 20}]}
    box = await boxes.make(["sleep", "60"], hooks=hooks)
    starting = asyncio.ensure_future(box.shim.start())
    await wait_until("the program", lambda: Path(f"/proc/{box.init_pid}/cmdline").read_bytes().startswith(b"sleep"))
    from worker.containers.shim_client import Shim

    other = await Shim.connect(box.directory)
    assert (await other.state())["state"] == "running"
    assert not starting.done()
    gate.touch()
    await starting
    assert seen.read_text() == "done\n"


for kind in ALL:
    HOOKS.refuses(f"{kind}.path", "must be absolute", f"hooks.{kind}", [{"path": "sh"}], f"hooks.{kind}[0].path")
HOOKS.refuses("path", "is required", "hooks.prestart", [{}], "hooks.prestart[0].path")
HOOKS.refuses("timeout", "must be above zero", "hooks.poststop", [{"path": "/x", "timeout": 0}], "hooks.poststop[0].timeout")
HOOKS.refuses("env", "entries are NAME=value", "hooks.poststop", [{"path": "/x", "env": ["A"]}], "hooks.poststop[0].env")


test_rows, _ = TABLE.tests()
test_hooks, test_hook_refusals = HOOKS.tests()
