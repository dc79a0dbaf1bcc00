"""Where labs are kept on this machine, who owns them, and how the remains of one that was killed are cleared.

A lab's directory holds ``lab.json``: its owner's pid, start time and boot. A directory whose owner is gone is remains.
It clears control groups and directories; namespaces, links and mounts end with the lab's processes by themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from covey.testing.lab_machine import LabError

BASE = Path("/var/lib/covey-lab")
_RECORD = "lab.json"
_CGROUPS = Path("/sys/fs/cgroup")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_PATIENCE = 10.0


def boot() -> str:
    """This boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When a process started, in ticks since boot; 0 when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def directory_of(name: str) -> Path:
    """Where the lab ``name`` is kept. Raises LabError for a name that cannot be."""
    if not _NAME.fullmatch(name):
        raise LabError(f"lab name {name!r}: use up to 20 lower-case letters, digits and dashes")
    return BASE / name


def cgroup_of(name: str) -> str:
    """The control group above all of the lab's containers."""
    return f"/covey-lab-{name}"


def record(name: str) -> dict[str, Any] | None:
    """What the lab's owner wrote; None when there is no such lab."""
    try:
        found: dict[str, Any] = json.loads((directory_of(name) / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found


def owner_lives(found: dict[str, Any] | None) -> bool:
    """Whether whoever made the lab is still there."""
    return found is not None and found["boot"] == boot() and start_time(found["pid"]) == found["start_time"]


def claim(name: str, **facts: Any) -> Path:
    """Make the lab's directory ours, clearing remains of a former one. Raises LabError if it is somebody's."""
    directory = directory_of(name)
    with _one_at_a_time():
        if owner_lives(found := record(name)):
            assert found is not None
            raise LabError(f"a lab {name} is up, owned by process {found['pid']}: choose another name, or end that one")
        clear(name)
        directory.mkdir(parents=True, mode=0o711)
        write(name, pid=os.getpid(), start_time=start_time(os.getpid()), boot=boot(), **facts)
    return directory


def write(name: str, **facts: Any) -> None:
    """The lab's record, at once whole."""
    path = directory_of(name) / _RECORD
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"name": name, **facts}))
    fresh.rename(path)


def names() -> list[str]:
    """Every lab there is a directory of."""
    return sorted(entry.name for entry in BASE.iterdir() if entry.is_dir()) if BASE.is_dir() else []


def sweep() -> list[str]:
    """Clear what killed labs left; their names."""
    with _one_at_a_time():
        gone = [name for name in names() if _NAME.fullmatch(name) and not owner_lives(record(name))]
        for name in gone:
            clear(name)
    return gone


def clear(name: str) -> None:
    """Nothing is left of the lab but what its processes, if any still end, hold. Raises LabError when they do not."""
    remove_cgroups(cgroup_of(name))
    directory = directory_of(name)
    end = time.monotonic() + _PATIENCE
    while directory.exists():
        # A process that is being killed may still write while we remove.
        shutil.rmtree(directory, ignore_errors=time.monotonic() < end)


def forget_base() -> None:
    """Remove the directory of labs with the last of them."""
    with suppress(OSError), _one_at_a_time():
        if not names():
            (BASE / ".lock").unlink()
            BASE.rmdir()


def remove_cgroups(path: str) -> None:
    """Remove a subtree of every hierarchy; its processes have a few seconds to end. Raises LabError."""
    end = time.monotonic() + _PATIENCE
    while busy := [top for top in _tops(path) if not _removed(top)]:
        if time.monotonic() > end:
            raise LabError(f"control group {busy[0]} still has processes: the lab's machines have not ended")
        time.sleep(0.02)


def _tops(path: str) -> list[Path]:
    roots = [_CGROUPS, *_CGROUPS.iterdir()]
    return [top for root in roots if (top := root / path.strip("/")).is_dir()]


def _removed(top: Path) -> bool:
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    BASE.mkdir(parents=True, exist_ok=True, mode=0o711)
    lock = os.open(BASE / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
