"""The writable root file system of each container: an overlayfs mount over shared, read-only layers.

Decides where a container's own files lie (``<root>/containers/<id>/upper``, ``work``) and how its lowers are given to
the kernel. Which layers a container has, it is told. Knows no images and no containers beyond their ids. Every
teardown step is safe without its setup.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covey.errors import Internal, NotFound
from worker.kernel import mounts, syscalls, trees
from worker.rootfs import changes
from worker.runtime.errors import remedy

VERSION = 1
_VALUE_LIMIT = 255
"""fsconfig takes no longer string than this (strndup_user in fs/fsopen.c); beyond it a path goes by descriptor."""
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Overlay:
    """``root`` is ``<data>/rootfs``. Thread-safe as long as one container id is handled by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._containers = root / "containers"
        self._containers.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch = trees.emptied(root / "removed")

    def prepare(self, container_id: str, layers: Sequence[Path]) -> None:
        """Make the container's writable part over ``layers`` (TOPMOST FIRST). Repeating it changes nothing."""
        place = self._containers / container_id
        if (place / "lowers.json").exists():
            return
        if not layers:
            raise Internal(f"container {container_id} has no layers to stand on: its image is empty")
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            (place / "work").mkdir(mode=0o700, exist_ok=True)
            (place / "upper").mkdir(exist_ok=True)
            below = os.stat(layers[0])
            os.chown(place / "upper", below.st_uid, below.st_gid)
            os.chmod(place / "upper", stat.S_IMODE(below.st_mode))
            record = {"version": VERSION, "lowers": [str(layer) for layer in layers]}
            trees.write_atomically(place / "lowers.json", json.dumps(record).encode())
        except OSError as error:
            trees.remove_path(place)
            raise _explained(error, f"cannot prepare the root file system of container {container_id} in {place}") from error

    def mount(self, container_id: str, target: Path) -> None:
        """Mount the container's root at ``target`` (made if missing); nothing happens if it is mounted there."""
        lowers = self._lowers(container_id)
        place = self._containers / container_id
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.ismount(target):
            return
        try:
            with contextlib.ExitStack() as stack:
                spelled = _Spelling(stack)
                target_fd = spelled.opened(target, os.O_PATH)
                upper = f"upperdir={spelled.path(place / 'upper')}"
                work = f"workdir={spelled.path(place / 'work')}"
                mount_fd = _filesystem([spelled.path(lower) for lower in lowers], upper, work)
                stack.callback(os.close, mount_fd)
                mounts.attach(mount_fd, target_fd)
        except OSError as error:
            raise _explained(error, f"cannot mount the root file system of container {container_id} at {target}") from error

    def unmount(self, target: Path) -> None:
        """Unmount whatever is mounted at and below ``target``; nothing there is fine."""
        for point in mounts.mount_points(os.path.realpath(target)):
            with contextlib.suppress(FileNotFoundError):
                try:
                    syscalls.umount2(point)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        # Somebody still looks at it (a shell, a backup): gone from the tree now, freed when they leave.
                        syscalls.umount2(point, syscalls.MNT_DETACH)
                    elif error.errno != errno.EINVAL:
                        raise Internal(f"cannot unmount {point}: {error.strerror}") from error

    def remove(self, container_id: str) -> None:
        """Delete the container's writable part (unmount first); nothing there is fine."""
        aside = self._scratch / secrets.token_hex(8)
        try:
            os.rename(self._containers / container_id, aside)
        except FileNotFoundError:
            return
        trees.remove_path(aside)

    def upper(self, container_id: str) -> Path:
        """The directory that holds what the container changed."""
        self._lowers(container_id)
        return self._containers / container_id / "upper"

    def lowers(self, container_id: str) -> list[Path]:
        """The layers it was prepared with, topmost first. NotFound when it was not."""
        return self._lowers(container_id)

    def containers(self) -> list[str]:
        """Ids of all containers that have something here: what the engine does not know is an orphan to ``remove``."""
        return sorted(entry.name for entry in os.scandir(self._containers))

    def diff(self, container_id: str) -> list[dict[str, Any]]:
        """What the container changed, as FilesystemChange: ``{"Path", "Kind"}``, 0 modified, 1 added, 2 deleted."""
        found = changes.changes(self.upper(container_id), self._lowers(container_id))
        return [{"Path": path, "Kind": kind} for path, kind in found]

    def size(self, container_id: str) -> int:
        """Bytes of the files the container wrote (``SizeRw``)."""
        return changes.size(self.upper(container_id))

    def _lowers(self, container_id: str) -> list[Path]:
        path = self._containers / container_id / "lowers.json"
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"No root file system for container {container_id}: prepare it first") from None
        if record.get("version") != VERSION:
            raise Internal(f"{path} was written by another release (version {record.get('version')})")
        return [Path(lower) for lower in record["lowers"]]


class _Spelling:
    """How a path is written in a mount option: as it is, or through a descriptor where it is too long."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def opened(self, path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def path(self, path: Path) -> str:
        text = str(path)
        plain = len(os.fsencode(text)) <= _VALUE_LIMIT and not any(mark in text for mark in ",:\\")
        return text if plain else f"/proc/self/fd/{self.opened(path, os.O_PATH)}"


def _filesystem(lowers: Sequence[str], upper: str, work: str) -> int:
    """A detached overlay. One option a lower (``lowerdir+``, Linux 6.5), so their number meets no page limit."""
    try:
        return mounts.new_filesystem(
            "overlay", [*(f"lowerdir+={lower}" for lower in lowers), upper, work, *_tuning()], source="overlay"
        )
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        first = error
    try:
        return _filesystem_joined(lowers, upper, work)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; before that, {first.strerror}") from first


def _filesystem_joined(lowers: Sequence[str], upper: str, work: str) -> int:
    """The same for older kernels: mount(2), whose page of options holds some 200 lowers spelled as descriptors."""
    place = Path("/run") / f".covey-overlay-{secrets.token_hex(6)}"
    with contextlib.ExitStack() as stack:
        spelled = _Spelling(stack)
        short = [f"/proc/self/fd/{spelled.opened(Path(lower), os.O_PATH)}" for lower in lowers]
        options = ",".join([f"lowerdir={':'.join(short)}", upper, work, *_tuning()])
        place.mkdir(mode=0o700)
        stack.callback(place.rmdir)
        syscalls.mount("overlay", str(place), "overlay", 0, options)
        stack.callback(syscalls.umount2, str(place), syscalls.MNT_DETACH)
        return mounts.clone(str(place))


def _tuning() -> list[str]:
    """index=off where the kernel has it: a lower is shared by many overlays, which an index would refuse."""
    return ["index=off"] if os.path.exists("/sys/module/overlay/parameters/index") else []


def _explained(error: OSError, what: str) -> Internal:
    if error.errno in _FULL:
        return Internal(f"{what}: {os.strerror(error.errno or 0).lower()}; free space there or remove unused images")
    if error.errno == errno.ENODEV:
        return Internal(f"{what}: this kernel has no overlayfs; load the module 'overlay'")
    return Internal(f"{what}: {error.strerror or error}{remedy(error)}")
