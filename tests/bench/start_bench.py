"""Start to exit of one container that runs ``true``, Covey's shim against crun, alternated round by round.

Cold: no warm pool on either side. Both run the same bundle (namespaces, mounts, masks, capabilities, limits) of the same
busybox root file system. Covey's time is what the daemon pays through the shim client: fork a shim, create, start, the
exit event, delete. crun's is ``crun run`` as a child process, from fork to its exit. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.containers import defaults
from worker.containers.shim_client import Shim, Zygote
from worker.kernel import process, syscalls
from worker.kernel.mounts import mount_points
from worker.runtime.cgroups import Cgroup

ROUNDS = 50
_DEFAULT_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
]  # fmt: skip
_NODEV = ["nosuid", "noexec", "nodev"]
_PHASES = ("fork", "create", "start", "exit", "delete")


@dataclass
class Times:
    """Milliseconds a round: Covey's phases and whole, crun's whole."""

    phases: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _PHASES})
    covey: list[float] = field(default_factory=list)
    crun: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Covey's median by crun's: below 1 Covey is the quicker."""
        return statistics.median(self.covey) / statistics.median(self.crun)


def bundle(rootfs: Path, cgroup: str) -> dict[str, Any]:
    """A config.json of Docker's shape that both can run."""
    mounts: list[tuple[str, str, list[str]]] = [
        ("/proc", "proc", _NODEV),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", [*_NODEV, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", _NODEV),
        ("/sys", "sysfs", [*_NODEV, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*_NODEV, "ro"]),
    ]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "hostname": "bench",
        "process": {
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/bin"],
            "args": ["/bin/true"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _DEFAULT_CAPABILITIES),
        },
        "mounts": [
            {"destination": destination, "type": kind, "source": kind, "options": options}
            for destination, kind, options in mounts
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": 256 << 20},
                "pids": {"limit": 512},
                "cpu": {"shares": 512},
            },
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }


def make_rootfs(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("bench: no busybox. Run: apt-get install busybox-static")
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    (directory / "bin/true").symlink_to("busybox")
    return directory


async def covey_round(zygote: Zygote, base: Path, rootfs: Path, parent: str, ident: str) -> dict[str, float]:
    """Milliseconds of each phase."""
    directory = base / ident
    directory.mkdir(mode=0o700)
    config = bundle(rootfs, f"{parent}/{ident}")
    (directory / "config.json").write_text(json.dumps(config))
    marks = [time.perf_counter()]
    shim_pid, shim_started = await zygote.fork_shim(ident, directory, parent)
    shim = await Shim.connect(directory)
    marks.append(time.perf_counter())
    events = shim.events()
    exited = asyncio.ensure_future(anext(events))
    await shim.create(directory, config=config)
    marks.append(time.perf_counter())
    await shim.start()
    marks.append(time.perf_counter())
    event = await exited
    marks.append(time.perf_counter())
    await events.aclose()
    await shim.delete()
    marks.append(time.perf_counter())
    if event["code"] != 0:
        raise SystemExit(f"bench: Covey's container ended with {event}")
    while process.is_alive(shim_pid, shim_started):
        await asyncio.sleep(0.001)
    shutil.rmtree(directory)
    return {name: (after - before) * 1000 for name, before, after in zip(_PHASES, marks, marks[1:], strict=False)}


def crun_round(base: Path, rootfs: Path, parent: str, ident: str) -> float:
    """Milliseconds of ``crun run``."""
    directory = base / ident
    directory.mkdir(mode=0o700)
    (directory / "config.json").write_text(json.dumps(bundle(rootfs, f"{parent}/{ident}")))
    argv = ["crun", "--root", str(base / "crun"), "--cgroup-manager=cgroupfs", "run", "--bundle", str(directory), ident]
    before = time.perf_counter()
    pid = os.posix_spawn(shutil.which("crun") or "crun", argv, dict(os.environ))
    status = os.waitpid(pid, 0)[1]
    spent = (time.perf_counter() - before) * 1000
    if status:
        raise SystemExit(f"bench: {' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    shutil.rmtree(directory)
    return spent


@contextlib.asynccontextmanager
async def _zygote(base: Path, parent: str) -> AsyncIterator[Zygote]:
    zygote = await Zygote.spawn(base / "zygote.sock", base / "zygote.log", parent)
    try:
        yield zygote
    finally:
        await zygote.stop()
        while zygote.alive():
            await asyncio.sleep(0.005)


async def _remove_cgroups(parent: str) -> None:
    """The parent last: what is below is empty, and gone within a moment. crun leaves some in systemd's hierarchy too."""
    deadline = time.monotonic() + 5
    for path in (f"{parent}/shims", parent):
        while not Cgroup(path).remove() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
    for base, _, _ in os.walk(f"/sys/fs/cgroup/systemd{parent}", topdown=False):
        os.rmdir(base)


def hide_unified() -> None:
    """In a mount namespace of this process's own, leave one version of cgroups: crun refuses a machine that mixes them."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    unified = "/sys/fs/cgroup/unified"
    if Cgroup("/").version == 1 and unified in mount_points(unified):
        # Over it, not off it: crun makes directories there whatever it is.
        syscalls.mount("tmpfs", unified, "tmpfs", 0)


async def measure(rounds: int = ROUNDS) -> Times:
    """Alternated rounds after one unmeasured of each."""
    if shutil.which("crun") is None:
        raise SystemExit("bench: no crun. Run: apt-get install --no-install-recommends crun")
    times = Times()
    parent = f"/covey-bench-start-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="covey-bench-start-") as name:
        base = Path(name)
        base.chmod(0o755)
        rootfs = make_rootfs(base / "rootfs")
        try:
            async with _zygote(base, parent) as zygote:
                for number in range(rounds + 1):
                    phases = await covey_round(zygote, base, rootfs, parent, f"covey{number}")
                    other = crun_round(base, rootfs, parent, f"crun{number}")
                    if number == 0:
                        continue
                    for phase, spent in phases.items():
                        times.phases[phase].append(spent)
                    times.covey.append(sum(phases.values()))
                    times.crun.append(other)
        finally:
            await _remove_cgroups(parent)
    return times


def table(times: Times) -> str:
    """Median, 10th and 90th percentile of each row, and the ratio."""
    lines = [f"{'start to exit of true (ms)':28}{'median':>9}{'p10':>9}{'p90':>9}"]
    rows = [("Covey", times.covey), *((f"  {name}", spent) for name, spent in times.phases.items()), ("crun run", times.crun)]
    for name, spent in rows:
        ordered = sorted(spent)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        lines.append(f"{name:28}{statistics.median(ordered):9.1f}{low:9.1f}{high:9.1f}")
    lines.append(f"{'Covey / crun':28}{times.ratio:9.2f}   ({len(times.covey)} rounds, alternated)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(argv)
    hide_unified()
    print(table(asyncio.run(measure(options.rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
