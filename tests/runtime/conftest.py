"""Real containers for tests: one zygote a session, a busybox root file system, and boxes that are gone afterwards.

``boxes.make(args, ...)`` creates a container up to where it waits for ``start``; ``boxes.run(args, ...)`` runs one to
its end and answers what it printed and how it ended. Keyword arguments change the bundle: ``process``, ``linux`` and
``root`` are merged into the default one, ``mounts`` is appended.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from worker.containers.shim_client import Shim, sweep
from worker.containers.shim_socket import ShimGone
from worker.containers.zygote_client import Zygote
from worker.kernel import process as kernel_process
from worker.kernel.mounts import mount_points
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault

PATIENCE = 10.0
_APPLETS = (
    "sh cat echo sleep ps id mount ls env head tail wc hostname stty tty dd true false kill mkdir touch readlink stat "
    "grep seq yes unshare mknod ip printf tr date cut test chmod umount sysctl ulimit setsid nslookup"
)
DOCKER_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
]  # fmt: skip


def default_bundle(rootfs: Path, cgroup: str) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "hostname": "box",
        "process": {
            "cwd": "/",
            "env": ["PATH=/bin:/sbin", "TERM=xterm"],
            "args": ["true"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), DOCKER_CAPABILITIES),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/no-such-file"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


@dataclass
class Result:
    code: int
    out: str
    err: str
    exit: dict[str, Any]


@dataclass
class Box:
    """A container with its shim."""

    shim: Shim
    directory: Path
    shim_pid: int
    init_pid: int
    cgroup: Cgroup

    @property
    def log(self) -> Path:
        return self.directory / "box.log"

    async def exit(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            async for event in self.shim.events():
                if event["type"] == "exit":
                    return event
        raise AssertionError("no exit event")

    async def output(self, **attach: Any) -> tuple[bytes, bytes]:
        """Attach and read both streams to their end."""
        attachment = await self.shim.attach(**attach)
        return await read_all(attachment)

    async def logged(self, text: str, times: int = 1) -> None:
        """Wait until the container has printed ``text``."""
        await wait_until(f"{text!r} in the log", lambda: self.log.read_text().count(text) >= times)

    async def run_exec(self, ident: str, args: list[str], **process: Any) -> tuple[int, bytes, bytes]:
        body = {
            "cwd": "/",
            "env": ["PATH=/bin:/sbin"],
            "args": args,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), DOCKER_CAPABILITIES),
            **process,
        }
        await self.shim.exec(ident, body)
        attachment = await self.shim.attach(exec_id=ident)
        await self.shim.exec_start(ident)
        out, err = await read_all(attachment)
        state = await self.shim.exec_state(ident)
        assert state["running"] is False, state
        return state["exit_code"], out, err


async def read_all(attachment: Any) -> tuple[bytes, bytes]:
    streams: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
    async with asyncio.timeout(30):
        async for stream, data in attachment.frames():
            streams[stream] += data
    attachment.close()
    return bytes(streams[1]), bytes(streams[2])


async def wait_until(what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The condition's first true value; on failure say what was awaited and what it was last."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come to be in {patience} s; last: {value!r}"
        await asyncio.sleep(0.005)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``config`` with whole keys changed: mounts are appended, objects merged, None takes a key away."""
    for key, value in copy.deepcopy(changes).items():
        if key == "mounts":
            config["mounts"] += value
        elif isinstance(value, dict):
            config[key] = {**config.get(key, {}), **value}
        elif value is None:
            config.pop(key, None)
        else:
            config[key] = value
    return config


class Boxes:
    def __init__(self, zygote: Zygote, rootfs: Path, base: Path, parent: str) -> None:
        self.zygote = zygote
        self.rootfs = rootfs
        self.parent = parent
        self.base = base
        self._made: list[tuple[Path, int, int]] = []

    def bundle(self, args: list[str], ident: str, **changes: Any) -> dict[str, Any]:
        config = default_bundle(self.rootfs, f"{self.parent}/{ident}")
        config["process"]["args"] = args
        return merged(config, changes)

    async def shim(self) -> tuple[Shim, Path, int]:
        ident = f"box{len(self._made)}"
        directory = self.base / ident
        directory.mkdir(mode=0o700)
        pid, started = await self.zygote.fork_shim(ident, directory, self.parent)
        self._made.append((directory, pid, started))
        return await Shim.connect(directory), directory, pid

    async def make(
        self, args: list[str], *, stdin: bool = False, init: bool = False, log: dict[str, Any] | None = None, **changes: Any
    ) -> Box:
        shim, directory, pid = await self.shim()
        config = self.bundle(args, directory.name, **changes)
        (directory / "config.json").write_text(dumps(config))
        how = {"path": str(directory / "box.log"), "driver": "json-file", **(log or {})}
        async with asyncio.timeout(PATIENCE):
            init_pid, _ = await shim.create(directory, log=how, stdin=stdin, init=init)
        return Box(shim, directory, pid, init_pid, Cgroup(config["linux"]["cgroupsPath"]))

    async def start(self, args: list[str], **changes: Any) -> Box:
        box = await self.make(args, **changes)
        async with asyncio.timeout(PATIENCE):
            await box.shim.start()
        return box

    async def run(self, args: list[str], **changes: Any) -> Result:
        box = await self.make(args, **changes)
        attachment = await box.shim.attach()
        async with asyncio.timeout(PATIENCE):
            await box.shim.start()
        out, err = await read_all(attachment)
        event = await box.exit()
        await box.shim.delete()
        return Result(event["code"], out.decode(), err.decode(), event)

    async def sh(self, script: str, **changes: Any) -> Result:
        return await self.run(["sh", "-c", script], **changes)

    async def clear(self) -> None:
        """End every shim and say what one left behind that had been deleted properly."""
        for directory, pid, started in self._made:
            if kernel_process.is_alive(pid, started):
                with contextlib.suppress(ShimGone, RuntimeFault, TimeoutError):
                    async with asyncio.timeout(5):
                        shim = await Shim.connect(directory)
                        with contextlib.suppress(RuntimeFault):
                            await shim.kill(signal.SIGKILL)
                        if shim.hello["state"] != "empty":
                            async for event in shim.events():
                                if event["type"] == "exit":
                                    break
                        await shim.delete()
                with contextlib.suppress(TimeoutError, AssertionError):
                    await wait_until("end of shim", lambda p=pid, s=started: not kernel_process.is_alive(p, s), 3)
            kernel_process.kill_verified(pid, started, signal.SIGKILL)
            await wait_until("death of shim", lambda p=pid, s=started: not kernel_process.is_alive(p, s))
            await wait_until("sweep", lambda d=directory: sweep(d))
            left = [path for path in Cgroup(f"{self.parent}/{directory.name}").directories() if os.path.exists(path)]
            assert not left, f"{directory.name} left {left}"


def copied(root: Path, place: Path) -> Path:
    """A copy of a root file system, without what is no file, directory or link: a copy of /dev/full never ends."""

    def special(directory: str, names: list[str]) -> list[str]:
        kinds = {name: stat.S_IFMT(os.lstat(os.path.join(directory, name)).st_mode) for name in names}
        return [name for name, kind in kinds.items() if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)]

    return Path(shutil.copytree(root, place, symlinks=True, ignore=special))


@pytest.fixture(autouse=True)
def _no_nodes_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Device nodes go with their test, though pytest keeps its directories: whoever copies or backs up a zero never ends."""
    base: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if base is not None:
        for directory, _, files in os.walk(base):
            for path in (os.path.join(directory, name) for name in files):
                if stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                    os.unlink(path)


@pytest.fixture(scope="session")
def rootfs() -> Iterator[Path]:
    """A root file system of the static busybox; tests of one session share it and write only to their own mounts.

    Not below pytest's directories: those are closed to the mapped root of a user namespace.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox: apt-get install busybox-static")
    with tempfile.TemporaryDirectory(prefix="covey-test-rootfs-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "sbin"):
            (root / name).mkdir()
        shutil.copy(busybox, root / "bin/busybox")
        for name in _APPLETS.split():
            (root / "bin" / name).symlink_to("busybox")
        (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        (root / "etc/not-a-program").write_text("text\n")
        (root / "tmp").chmod(0o1777)
        yield root


@pytest.fixture(scope="session")
def cgroup_parent() -> Iterator[str]:
    parent = f"/covey-test-runtime-{os.getpid()}"
    yield parent
    for group in (Cgroup(f"{parent}/shims"), Cgroup(parent)):
        deadline = time.monotonic() + PATIENCE
        while not group.remove():
            assert time.monotonic() < deadline, f"{group.path} still holds {group.pids()}"
            time.sleep(0.01)


@pytest.fixture(scope="session")
def zygote_socket(tmp_path_factory: pytest.TempPathFactory, cgroup_parent: str) -> Iterator[Path]:
    """The session's zygote; it has ended when the session has, and no mount shows outside the containers."""
    base = tmp_path_factory.mktemp("zygote")
    mounts_before = set(mount_points("/"))

    async def spawn() -> Zygote:
        zygote = await Zygote.spawn(base / "zygote.sock", base / "zygote.log", cgroup_parent)
        zygote.close()
        return zygote

    zygote = asyncio.run(spawn())
    yield base / "zygote.sock"

    async def stop() -> None:
        with contextlib.suppress(ShimGone):
            await (await Zygote.connect(base / "zygote.sock")).stop()
        await wait_until("end of the zygote", lambda: not zygote.alive())

    asyncio.run(stop())
    words = (base / "zygote.log").read_text()
    assert words == "", f"the zygote or a shim complained: {words}"
    new = {path for path in mount_points("/") if str(base.parent) in path} - mounts_before
    assert not new, f"mounts left: {new}"


@pytest_asyncio.fixture
async def boxes(zygote_socket: Path, rootfs: Path, cgroup_parent: str, tmp_path: Path) -> AsyncIterator[Boxes]:
    zygote = await Zygote.connect(zygote_socket)
    made = Boxes(zygote, rootfs, tmp_path, cgroup_parent)
    yield made
    await made.clear()
    # A bundle without a mount there leaves devices, and a test that copies the root would read /dev/full without end.
    for entry in (rootfs / "dev").iterdir():
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink()
    zygote.close()
