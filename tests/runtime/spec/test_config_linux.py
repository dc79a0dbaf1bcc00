"""config-linux.md, what a container has: file systems, namespaces, mappings, time, devices, network devices."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import wait_until
from tests.runtime.spec.table import KINDS, Table, own_root, spaces
from worker.runtime.errors import RuntimeFault

TABLE = Table("config-linux.md")
FILES = {"network": "net", "mount": "mnt"}
MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def link(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{FILES.get(kind, kind)}")


async def inside(boxes: Any, kind: str, **changes: Any) -> str:
    return (await boxes.sh(f"readlink /proc/self/ns/{FILES.get(kind, kind)}", **changes)).out.strip()


# Default filesystems


@TABLE.row("Default filesystems", "/proc, /sys, /dev/pts and /dev/shm of their types are made available")
async def _(boxes):
    result = await boxes.sh("cat /proc/mounts")
    found = {line.split()[1]: line.split()[2] for line in result.out.splitlines()}
    wanted = {"/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    assert wanted.items() <= found.items()


# Namespaces

for kind in (*KINDS, "time"):

    @TABLE.row("namespaces", f"{kind} without a path is a new one")
    async def _(boxes, kind=kind):
        found = await inside(boxes, kind, linux=spaces(*KINDS, kind))
        assert found.startswith(f"{FILES.get(kind, kind)}:[")
        assert found != link(kind)


@TABLE.row("namespaces", "user without a path is a new one, in which the process is mapped")
async def _(boxes):
    linux = {**spaces(*KINDS, "user"), "uidMappings": MAPS, "gidMappings": MAPS}
    result = await boxes.sh("readlink /proc/self/ns/user; id -u; cat /proc/self/uid_map", linux=linux)
    name, uid, *numbers = result.out.split()
    assert name != link("user")
    assert [uid, *numbers] == ["0", "0", "100000", "65536"]


for kind in (*KINDS, "time"):
    if kind == "mount":
        continue

    @TABLE.row("namespaces", f"{kind} that is not named is the runtime's")
    async def _(boxes, kind=kind):
        kinds = [other for other in KINDS if other != kind]
        changes = {"hostname": None} if kind == "uts" else {}
        assert await inside(boxes, kind, linux=spaces(*kinds), **changes) == link(kind)


for kind in ("pid", "network", "ipc", "uts", "cgroup", "time"):

    @TABLE.row("namespaces.path", f"the process is in the {kind} namespace of the path")
    async def _(boxes, kind=kind):
        first = await boxes.start(["sleep", "60"], linux=spaces(*KINDS, "time"))
        path = f"/proc/{first.init_pid}/ns/{FILES.get(kind, kind)}"
        kinds = [other for other in KINDS if other != kind]
        assert await inside(boxes, kind, linux=spaces(*kinds, **{kind: path})) == link(kind, first.init_pid)


@TABLE.row("namespaces.path", "the process is in the user namespace of the path, and the new ones belong to it")
async def _(boxes):
    owned = {**spaces(*KINDS, "user"), "uidMappings": MAPS, "gidMappings": MAPS}
    first = await boxes.start(["sleep", "60"], linux=owned)
    theirs = f"/proc/{first.init_pid}/ns"
    for paths in ({"user": f"{theirs}/user"}, {"user": f"{theirs}/user", "network": f"{theirs}/net"},
                  {"user": f"{theirs}/user", "pid": f"{theirs}/pid"}):  # fmt: skip
        kinds = [kind for kind in KINDS if kind not in paths]
        box = await boxes.start(["sleep", "60"], linux=spaces(*kinds, **paths))
        assert link("user", box.init_pid) == link("user", first.init_pid)
        assert os.stat(f"/proc/{box.init_pid}").st_uid == 100000
        if "pid" not in paths:
            assert link("pid", box.init_pid) != link("pid", first.init_pid)
        code, out, err = await box.run_exec("e", ["sh", "-c", "id -u; mount -t tmpfs tmpfs /tmp || echo no"],
                                            capabilities={"bounding": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"],
                                                          "effective": ["CAP_SYS_ADMIN"]})  # fmt: skip
        assert (code, out) == (0, b"0\n"), (paths, err)


@TABLE.row("namespaces.path", "the process is in the mount namespace of the path")
async def _(boxes):
    holder = subprocess.Popen(["unshare", "--mount", "sleep", "60"])
    try:
        await wait_until("a mount namespace", lambda: link("mount", holder.pid) != link("mount"))
        theirs = link("mount", holder.pid)
        kinds = [kind for kind in KINDS if kind != "mount"]
        found = await inside(boxes, "mount", linux=spaces(*kinds, mount=f"/proc/{holder.pid}/ns/mnt"))
        assert found == theirs
    finally:
        holder.kill()
        holder.wait()


for kind, path in (("network", "/proc/self/ns/uts"), ("uts", "/proc/self/ns/ipc"), ("pid", "/proc/self/ns/net"),
                   ("user", "/proc/self/ns/mnt"), ("mount", "/proc/self/ns/user"), ("cgroup", "/proc/self/ns/pid"),
                   ("time", "/proc/self/ns/net"), ("ipc", "/etc/passwd"), ("ipc", "/no/such")):  # fmt: skip

    @TABLE.row("namespaces.path", f"{path} is not associated with a namespace of type {kind}, which is an error")
    async def _(boxes, kind=kind, path=path):
        kinds = [other for other in ("mount", "pid") if other != kind]
        with pytest.raises(RuntimeFault, match=r"linux\.namespaces") as caught:
            await boxes.make(["true"], linux=spaces(*kinds, **{kind: path}), hostname=None)
        assert path in caught.value.message
        assert kind in caught.value.message


TABLE.refuses("namespaces.path", "must be absolute", "linux.namespaces", [{"type": "mount"}, {"type": "ipc", "path": "x"}],
              "linux.namespaces[1].path")  # fmt: skip
TABLE.refuses("namespaces", "duplicates are an error", "linux.namespaces", [{"type": "mount"}, {"type": "uts"}] * 2,
              "linux.namespaces[2].type")  # fmt: skip
TABLE.refuses("namespaces.type", "is one of the eight", "linux.namespaces", [{"type": "mount"}, {"type": "disk"}],
              "linux.namespaces[1].type")  # fmt: skip


# User namespace mappings


@TABLE.row("uidMappings and gidMappings", "every entry is mapped, and ownership on disk is not modified")
async def _(boxes):
    uids = [{"containerID": 0, "hostID": 100000, "size": 10}, {"containerID": 1000, "hostID": 200000, "size": 5}]
    gids = [{"containerID": 0, "hostID": 300000, "size": 10}, {"containerID": 1001, "hostID": 400000, "size": 5}]
    before = (boxes.rootfs / "etc").stat().st_uid
    linux = {**spaces(*KINDS, "user"), "uidMappings": uids, "gidMappings": gids}
    box = await boxes.start(["sleep", "60"], linux=linux, process={"user": {"uid": 1002, "gid": 1003}})
    words = Path(f"/proc/{box.init_pid}/status").read_text()
    assert words.split("\nUid:")[1].split()[0] == "200002"
    assert words.split("\nGid:")[1].split()[0] == "400002"
    assert (boxes.rootfs / "etc").stat().st_uid == before == 0


@TABLE.row("uidMappings and gidMappings", "a root that the mapped user cannot reach is an error naming the directory")
async def _(boxes):
    closed = boxes.base / "closed"
    closed.mkdir(mode=0o700)
    root = own_root(boxes).rename(closed / "root")
    os.chown(closed, 4321, 4321)
    for path in (boxes.base, boxes.base.parent, boxes.base.parent.parent):
        path.chmod(path.stat().st_mode | 0o011)
    linux = {**spaces(*KINDS, "user"), "uidMappings": MAPS, "gidMappings": MAPS}
    with pytest.raises(RuntimeFault, match=rf"root\.path: directory {closed} is closed"):
        await boxes.make(["true"], linux=linux, root={"path": str(root)})


for key in ("containerID", "hostID", "size"):
    entry = {"containerID": 0, "hostID": 1, "size": 2}
    del entry[key]
    TABLE.refuses(f"uidMappings.{key}", "is required", "linux.uidMappings", [entry], f"linux.uidMappings[0].{key}")
TABLE.refuses("uidMappings", "ranges of one side must not overlap", "linux.uidMappings", MAPS * 2, "linux.uidMappings")


# Offset for time namespace


@TABLE.row("timeOffsets", "secs and nanosecs are the clocks' offsets in the container")
async def _(boxes):
    offsets = {"boottime": {"secs": 1_000_000, "nanosecs": 5}, "monotonic": {"secs": 7}}
    result = await boxes.sh("cat /proc/uptime /proc/self/timens_offsets",
                            linux={**spaces(*KINDS, "time"), "timeOffsets": offsets})  # fmt: skip
    words = result.out.split()
    assert float(words[0]) > 1_000_000 > float(Path("/proc/uptime").read_text().split()[0])
    assert words[2:] == ["monotonic", "7", "0", "boottime", "1000000", "5"]


WITHOUT_TIME = {"namespaces": [{"type": "mount"}], "timeOffsets": {"boottime": {"secs": 1}}}
TABLE.refuses("timeOffsets", "needs a time namespace", "linux", WITHOUT_TIME, "linux.timeOffsets.boottime")
TABLE.refuses("timeOffsets", "the clocks are monotonic and boottime", "linux.timeOffsets", {"realtime": {"secs": 1}},
              "linux.timeOffsets.realtime")  # fmt: skip
TABLE.refuses("timeOffsets.nanosecs", "is below a second", "linux.timeOffsets", {"boottime": {"nanosecs": 10**9}},
              "linux.timeOffsets.boottime.nanosecs")  # fmt: skip


# Devices


@TABLE.row("devices", "are available with type, numbers, mode and owner")
async def _(boxes):
    devices = [
        {"path": "/dev/one", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/outside/of/dev", "type": "b", "major": 8, "minor": 200, "fileMode": 0o600},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
    ]
    result = await boxes.sh("stat -c '%n %F %t:%T %a %u:%g' /dev/one /outside/of/dev /dev/unbuffered /dev/pipe",
                            linux={"devices": devices}, root={"path": str(own_root(boxes))})  # fmt: skip
    assert result.out.splitlines() == [
        "/dev/one character special file a:e5 640 5:6",
        "/outside/of/dev block special file 8:c8 600 0:0",
        "/dev/unbuffered character special file 1:3 666 0:0",
        "/dev/pipe fifo 0:0 622 0:0",
    ]


@TABLE.row("devices.path", "a file there that does not match the device is an error")
async def _(boxes):
    root = own_root(boxes)
    os.mknod(root / "node", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    good = {"path": "/node", "type": "c", "major": 1, "minor": 5}
    assert (await boxes.sh("true", linux={"devices": [good]}, root={"path": str(root)})).code == 0
    for bad in ({**good, "minor": 3}, {**good, "type": "b"}, {**good, "path": "/etc/passwd"}):
        with pytest.raises(RuntimeFault, match=f"another file at {bad['path']}"):
            await boxes.make(["true"], linux={"devices": [bad]}, root={"path": str(root)})


@TABLE.row("devices", "where none can be made the host's is bound, which has to be the same one")
async def _(boxes):
    linux = {**spaces(*KINDS, "user"), "uidMappings": MAPS, "gidMappings": MAPS}
    with pytest.raises(RuntimeFault, match="another device"):
        await boxes.make(["true"], linux={**linux, "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 5}]})
    with pytest.raises(RuntimeFault, match="the host has no /dev/none"):
        await boxes.make(["true"], linux={**linux, "devices": [{"path": "/dev/none", "type": "c", "major": 1, "minor": 5}]})


TABLE.refuses("devices.path", "is absolute", "linux.devices", [{"path": "x", "type": "p"}], "linux.devices[0].path")
TABLE.refuses("devices.type", "is c, b, u or p", "linux.devices", [{"path": "/x", "type": "q"}], "linux.devices[0].type")
TABLE.refuses("devices.major", "is required unless type is p", "linux.devices", [{"path": "/x", "type": "c", "minor": 1}],
              "linux.devices[0].major")  # fmt: skip
TABLE.refuses("devices.minor", "is required unless type is p", "linux.devices", [{"path": "/x", "type": "b", "major": 1}],
              "linux.devices[0].minor")  # fmt: skip


@TABLE.row("Default devices", "null, zero, full, random, urandom and tty are supplied")
async def _(boxes):
    numbers = {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9", "tty": "5:0"}
    result = await boxes.sh("cd /dev && stat -c '%n %t:%T' null zero full random urandom tty")
    assert dict(line.split() for line in result.out.splitlines()) == numbers


@TABLE.row("Default devices", "/dev/console is the terminal's, if there is one")
async def _(boxes):
    result = await boxes.sh("stat -c %t /dev/console; echo words >/dev/console", process={"terminal": True})
    assert result.out.split() == ["88", "words"]
    assert (await boxes.sh("ls /dev/console")).code != 0


@TABLE.row("Default devices", "/dev/ptmx is the container's own")
async def _(boxes):
    result = await boxes.sh("readlink /dev/ptmx; stat -L -c %t:%T /dev/ptmx")
    assert result.out.split() == ["pts/ptmx", "5:2"]


# Network devices


@contextlib.contextmanager
def spare_devices(count: int = 1) -> Iterator[list[str]]:
    """Devices of the machine, each with an address; what is left of them is removed."""
    names = [f"cvoci{os.getpid() % 10000}-{number}" for number in range(count)]
    try:
        for number, name in enumerate(names):
            pair = f"link add {name} mtu 1400 type veth peer name {name}p"
            for words in (pair, f"addr add 198.18.99.{number + 1}/24 dev {name}", f"link set {name} up"):
                made = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
                if "Unknown device type" in made.stderr:
                    pytest.skip(f"no veth devices here: {made.stderr.strip()}")
                assert made.returncode == 0, made.stderr
        yield names
    finally:
        for name in names:
            # The end that stays goes with the other, which may be in a namespace that is just going.
            subprocess.run(["ip", "link", "del", f"{name}p"], capture_output=True)


@TABLE.row("netDevices", "are moved into the container, up, with their lasting addresses and attributes")
async def _(boxes):
    with spare_devices() as (name,):
        result = await boxes.sh(f"ip addr show {name}", linux={"netDevices": {name: {}}})
        assert "198.18.99.1/24" in result.out, result
        assert "mtu 1400" in result.out
        assert ",UP" in result.out
        assert not os.path.exists(f"/sys/class/net/{name}")


@TABLE.row("netDevices.name", "is the name inside; with %d the kernel chooses the number")
async def _(boxes):
    with spare_devices(2) as (first, second):
        devices = {first: {"name": "inside"}, second: {"name": "net%d"}}
        result = await boxes.sh("ip -o link", linux={"netDevices": devices})
        assert " inside@" in result.out
        assert " net0@" in result.out


@TABLE.row("netDevices", "a name that the container has already is an error, and what was moved before comes back")
async def _(boxes):
    with spare_devices(2) as (first, second):
        devices = {first: {"name": "inside"}, second: {"name": "lo"}}
        with pytest.raises(RuntimeFault, match=rf"netDevices\.{second}: the container has a device lo already"):
            await boxes.make(["true"], linux={"netDevices": devices})
        shown = subprocess.run(["ip", "addr", "show", first], capture_output=True, text=True, check=True).stdout
        assert "198.18.99.1/24" in shown
        assert ",UP" in shown


@TABLE.row("netDevices", "one that cannot be moved is an error that names it")
async def _(boxes):
    for name, words in (("cvoci-none", "no such device"), ("lo", "has a device lo already")):
        with pytest.raises(RuntimeFault, match=rf"netDevices\.{name}: .*{words}"):
            await boxes.make(["true"], linux={"netDevices": {name: {}}})
    kinds = [kind for kind in KINDS if kind != "network"]
    with spare_devices() as (name,):
        linux = {**spaces(*kinds, network=f"/proc/{os.getpid()}/ns/net"), "netDevices": {name: {"name": "other"}}}
        with pytest.raises(RuntimeFault, match="runtime's own network namespace"):
            await boxes.make(["true"], linux=linux)


WITHOUT_NETWORK = {"namespaces": [{"type": "mount"}], "netDevices": {"eth0": {}}}
TABLE.refuses("netDevices", "needs a network namespace", "linux", WITHOUT_NETWORK, "linux.netDevices")
TABLE.refuses("netDevices.name", "is a name", "linux.netDevices", {"eth0": {"name": "a/b"}}, "linux.netDevices.eth0")
TABLE.refuses("netDevices.name", "is given once", "linux.netDevices", {"a": {"name": "x"}, "b": {"name": "x"}},
              "linux.netDevices.b.name")  # fmt: skip


test_rows, test_refusals = TABLE.tests()
