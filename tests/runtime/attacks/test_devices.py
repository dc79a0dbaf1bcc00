"""The machine's devices and settings, reached from inside: device nodes, masks, cgroup files."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from worker.runtime.cgroups import Cgroup

from .conftest import PYTHON, Default, outcome, told

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
OPEN = {"CapAdd": ["SYS_ADMIN"], "SecurityOpt": ["seccomp=unconfined"]}
#: (type, major, minor) that every container may open: defaults.DEVICE_RULES, but for the terminals of 136.
ALLOWED = {("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 1), ("c", 5, 2)}
#: Whose opening does nothing: fuse, tun, the loop and device mapper controls, the kernel's log.
HARMLESS = [("c", 10, 229), ("c", 10, 200), ("c", 10, 237), ("c", 10, 236), ("c", 1, 11)]
SAFE_PATH = "/tmp"


def _devices() -> list[tuple[str, int, int]]:
    """Every device that the kernel has now, and the first sixteen numbers of each driver."""
    found: set[tuple[str, int, int]] = set()
    for kind, directory in (("c", "char"), ("b", "block")):
        for name in os.listdir(f"/sys/dev/{directory}"):
            major, minor = name.split(":")
            found.add((kind, int(major), int(minor)))
    kind = "c"
    for line in Path("/proc/devices").read_text().splitlines():
        if line.startswith("Block"):
            kind = "b"
        fields = line.split()
        if len(fields) == 2 and fields[0].isdigit():
            found |= {(kind, int(fields[0]), minor) for minor in range(16)}
    return sorted(found)


def _opens(kind: str, major: int, minor: int) -> bool:
    """Whether the host's own root can open it."""
    with tempfile.TemporaryDirectory(prefix="covey-test-device-") as directory:
        os.mknod(f"{directory}/node", 0o600 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
        try:
            os.close(os.open(f"{directory}/node", os.O_RDONLY | os.O_NONBLOCK))
        except OSError:
            return False
    return True


_TRY = """
import stat
found = {}
for kind, major, minor in %r:
    place = f"%s/{kind}{major}-{minor}"
    if not os.path.lexists(place):
        os.mknod(place, 0o600 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
    found[f"{kind} {major} {minor}"] = kit.tried(os.open, place, os.O_RDONLY | os.O_NONBLOCK)
kit.tell(**found)
"""


async def test_no_device_of_the_machine_can_be_opened(covey: Default):
    """mknod is allowed, as with Docker; opening what is not on the list is not, whatever the node's mode."""
    version = Cgroup("/").version
    wanted = [device for device in _devices() if device not in ALLOWED and device[:2] != ("c", 136)]
    mount = [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=8m"]}]
    found = await covey.python(_TRY % (wanted, SAFE_PATH), mounts=mount)
    assert len(found) == len(wanted) > 50
    print(f"{len(found)} devices, cgroup v{version}")
    assert {name: answer for name, answer in found.items() if answer != "Operation not permitted"} == {}
    harmless = [device for device in HARMLESS if device in wanted and _opens(*device)]
    if not harmless:
        pytest.skip(f"the control needs one of {HARMLESS}, which this machine lacks or keeps from its own root")
    kind, major, minor = harmless[0]
    rule = {"DeviceCgroupRules": [f"{kind} {major}:{minor} r"]}
    control = await covey.python(_TRY % (harmless[:1], SAFE_PATH), mounts=mount, host=rule)
    outcome("mknod", f"a rule that allows {kind} {major}:{minor}", "ok" in control.values(), str(control))
    assert set(control.values()) == {"ok"}


async def test_devices_that_an_image_brings_are_not_opened(covey: Default, own_root: Path):
    wanted = [device for device in _devices() if device not in ALLOWED and device[:2] != ("c", 136)][:200]
    (own_root / "nodes").mkdir()
    for kind, major, minor in wanted:
        bits = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
        os.mknod(own_root / "nodes" / f"{kind}{major}-{minor}", bits | 0o666, os.makedev(major, minor))
    found = await covey.python(_TRY % (wanted, "/nodes"), root={"path": str(own_root)})
    assert set(found.values()) == {"Operation not permitted"}


async def test_the_allowed_devices_are_there(covey: Default):
    program = """
names = sorted(os.listdir("/dev"))
kit.tell(**{name: kit.tried(os.open, f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK) for name in names})
"""
    found = await covey.python(program)
    for name in ("fd", "mqueue", "pts", "shm", "stdin", "stdout", "stderr", "core"):
        found.pop(name, None)
    # A container without a terminal has no controlling one.
    assert found.pop("tty") == "No such device or address"
    assert found == dict.fromkeys(("full", "null", "ptmx", "random", "urandom", "zero"), "ok")


_REMOUNT = """
import ctypes
MS_REMOUNT, MS_BIND, MNT_DETACH = 32, 4096, 2
def text(value):
    return ctypes.c_char_p(value)
found = {}
for path in ("/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger", "/sys", "/sys/fs/cgroup"):
    if not os.path.exists(path):
        continue
    found[f"remount {path}"] = kit.call(165, text(b""), text(path.encode()), text(b""), MS_REMOUNT | MS_BIND, 0)
    found[f"umount {path}"] = kit.call(166, text(path.encode()), MNT_DETACH)
for path in ("/proc/kcore", "/proc/keys", "/proc/interrupts", "/sys/firmware"):
    if os.path.exists(path):
        found[f"umount {path}"] = kit.call(166, text(path.encode()), MNT_DETACH)
found["proc"] = kit.call(165, text(b"proc"), text(b"/tmp"), text(b"proc"), 0, 0)
found["sysfs"] = kit.call(165, text(b"sysfs"), text(b"/tmp"), text(b"sysfs"), 0, 0)
found["bind"] = kit.call(165, text(b"/proc"), text(b"/tmp"), text(b""), MS_BIND | 16384, 0)
found["move"] = kit.call(165, text(b"/proc"), text(b"/tmp"), text(b""), 8192, 0)
kit.tell(**found)
"""


@pytest.mark.parametrize("filtered", [True, False])
async def test_masks_and_read_only_paths_stay(covey: Default, filtered: bool):
    """By the filter, and without one by the missing capability."""
    found = await covey.python(_REMOUNT, host={} if filtered else {"SecurityOpt": ["seccomp=unconfined"]})
    assert set(found.values()) == {-1}, found


async def test_who_may_mount_lifts_them(covey: Default):
    """The control: with CAP_SYS_ADMIN and no filter they are gone."""
    control = await covey.python(_REMOUNT, host=OPEN)
    lifted = [name for name, answer in control.items() if answer == 0]
    outcome("remount", "CAP_SYS_ADMIN, unconfined", lifted, f"{len(lifted)} of {len(control)}")
    assert "remount /proc/sys" in lifted


async def test_masked_and_read_only_paths_of_a_default_container(covey: Default):
    program = """
hidden = ["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
          "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
          "/sys/devices/virtual/powercap", "/sys/firmware"]
shut = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
found = {}
for path in hidden:
    if os.path.isdir(path):
        found[path] = os.listdir(path)
    elif os.path.exists(path):
        found[path] = open(path, "rb").read(64).decode()
flags = {}
for path in shut:
    if os.path.exists(path):
        flags[path] = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
kit.tell(found=found, flags=flags, trigger=kit.tried(os.open, "/proc/sysrq-trigger", os.O_WRONLY))
"""
    found = await covey.python(program)
    assert len(found["found"]) >= 4
    assert not any(found["found"].values()), found["found"]
    assert set(found["flags"].values()) == {True}
    assert found["trigger"] == (
        "Read-only file system" if "/proc/sysrq-trigger" in found["flags"] else "No such file or directory"
    )
    control = await covey.python(
        program.replace("hidden =", "hidden = ['/proc/interrupts'] or"), linux={"maskedPaths": [], "readonlyPaths": []}
    )
    outcome("masks", "a bundle without masks", any(control["found"].values()))
    assert control["found"]["/proc/interrupts"]


_AGENT = """
import ctypes
def text(value):
    return ctypes.c_char_p(value)
found = {}
for base, _, files in os.walk("/sys/fs/cgroup"):
    for name in files:
        if name in ("release_agent", "notify_on_release", "cgroup.procs", "devices.allow", "memory.limit_in_bytes"):
            answer = kit.tried(os.open, f"{base}/{name}", os.O_WRONLY)
            if answer == "ok" or name == "release_agent":
                found[f"{base}/{name}"] = answer
if %r:
    found["unshare"] = kit.call(272, %r)
for controller in ("memory", "pids", "devices", "rdma", "name=systemd", "name=covey-canary"):
    place = f"/tmp/{controller}"
    os.mkdir(place)
    answer = kit.call(165, text(b"cgroup"), text(place.encode()), text(b"cgroup"), 0, text(controller.encode()))
    found[f"mount {controller}"] = answer
    if answer == 0 and os.path.exists(place + "/release_agent"):
        # Its own value once more: whether it may be written to is minded at the write.
        with open(place + "/release_agent") as file:
            now = file.read()
        def write():
            fd = os.open(place + "/release_agent", os.O_WRONLY)
            os.write(fd, now.encode() or b"\\n")
        found[f"agent {controller}"] = kit.tried(write)
kit.tell(**found)
"""
_TMP = [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]}]


async def test_no_release_agent_can_be_set(covey: Default):
    """CVE-2022-0492: a program named there is run by the kernel as root of the host. What it is is written, nothing else."""
    found = await covey.python(_AGENT % (False, 0), mounts=_TMP)
    assert {name: answer for name, answer in found.items() if answer in (0, "ok")} == {}
    # Without the filter: from a user and cgroup namespace of its own, where it has every capability.
    flags = 0x10000000 | 0x20000 | 0x02000000
    found = await covey.python(_AGENT % (True, flags), mounts=_TMP, host={"SecurityOpt": ["seccomp=unconfined"]})
    assert found["unshare"] == 0
    assert {name: answer for name, answer in found.items() if answer == "ok"} == {}
    if Cgroup("/").version == 1:
        shared = [one for one in covey.bundle([], "x")["linux"]["namespaces"] if one["type"] != "cgroup"]
        program = [*PYTHON, f"import kit, os\n{_AGENT % (False, 0)}"]
        control = told(await covey.run(program, mounts=_TMP, host=OPEN, linux={"namespaces": shared}))
        agents = [name for name, answer in control.items() if name.startswith("agent") and answer == "ok"]
        outcome("CVE-2022-0492", "CAP_SYS_ADMIN, the host's cgroups", agents, ", ".join(agents))
        assert agents
