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
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.errors import Internal, NotFound
from worker.kernel import mounts, syscalls, trees, user_namespace
from worker.rootfs import changes, places
from worker.runtime.errors import remedy

VERSION = 1
_VALUE_LIMIT = 255
"""fsconfig takes no longer string than this (strndup_user in fs/fsopen.c); beyond it a path goes by descriptor."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FEW_LAYERS = 32
"""Up to so many are opened at once to look what an image has."""


class Overlay:
    """``root`` is ``<data>/rootfs``. Thread-safe as long as one container id is handled by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._containers = root / "containers"
        self._containers.mkdir(mode=0o700, parents=True, exist_ok=True)
        trees.spread(self._containers)
        self._scratch = trees.emptied(root / "removed")
        self._lock = threading.Lock()
        self._ids: dict[str, dict[str, Any] | None] = {}
        """Of the records read so far: a start asks for them more than once."""
        self._user_namespaces: dict[tuple[str, ...], int] = {}

    def prepare(self, container_id: str, layers: Sequence[Path], ids: Mapping[str, Any] | None = None) -> None:
        """Make the container's writable part over ``layers`` (TOPMOST FIRST). Repeating it changes nothing.

        ``ids``: {"uids", "gids": [[inside, outside, count], …]} where its processes have a user namespace: layers are then
        shown, and files written, with the host's numbers.
        """
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
            uid, gid = (
                _outside((ids or {}).get(key), number) for key, number in (("uids", below.st_uid), ("gids", below.st_gid))
            )
            os.chown(place / "upper", uid, gid)
            os.chmod(place / "upper", stat.S_IMODE(below.st_mode))
            record = {"version": VERSION, "lowers": [str(layer) for layer in layers], **({"ids": ids} if ids else {})}
            trees.write_atomically(place / "lowers.json", json.dumps(record).encode())
        except OSError as error:
            trees.remove_path(place)
            raise _explained(error, f"cannot prepare the root file system of container {container_id} in {place}") from error

    def furnish(self, container_id: str) -> None:
        """Make what is mounted upon in every container, which the first start would otherwise do; it may be left to that."""
        record = self._record(container_id)
        lowers = [Path(lower) for lower in record["lowers"]]
        if record.get("ids") or len(lowers) > _FEW_LAYERS:
            return
        with contextlib.suppress(OSError):
            places.make(self._containers / container_id / "upper", lowers)

    def mount(self, container_id: str, target: Path) -> None:
        """Mount the container's root at ``target`` (made if missing); nothing happens if it is mounted there."""
        record = self._record(container_id)
        place = f"{self._containers}/{container_id}"
        try:
            target.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if os.path.ismount(target):
                return
        try:
            with contextlib.ExitStack() as stack:
                spelled = _Spelling(stack)
                target_fd = spelled.opened(target, os.O_PATH)
                upper = f"upperdir={spelled.path(f'{place}/upper')}"
                work = f"workdir={spelled.path(f'{place}/work')}"
                if record.get("ids"):
                    shown = [spelled.mapped(lower, self._user_namespace(record["ids"])) for lower in record["lowers"]]
                else:
                    shown = [spelled.path(lower) for lower in record["lowers"]]
                mount_fd = _filesystem(shown, upper, work)
                stack.callback(os.close, mount_fd)
                mounts.attach(mount_fd, target_fd)
        except OSError as error:
            raise _explained(error, f"cannot mount the root file system of container {container_id} at {target}") from error

    def unmount(self, target: Path) -> None:
        """Unmount whatever is mounted at and below ``target``; nothing there is fine.

        Not by a list of mounts: to read that is to read all of the machine's, of which each container has one.
        """
        flags = syscalls.UMOUNT_NOFOLLOW
        while True:
            try:
                syscalls.umount2(str(target), flags)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):
                    return
                if error.errno != errno.EBUSY or flags & syscalls.MNT_DETACH:
                    raise Internal(f"cannot unmount {target}: {error.strerror}") from error
                # Something is mounted below, or somebody still looks at it (a shell, a backup): gone from the tree now, freed
                # when they leave.
                flags |= syscalls.MNT_DETACH

    def retire(self, container_id: str) -> Path | None:
        """Take the container's writable part away (unmount first): where it lies now, for ``trees.remove_path``."""
        self._ids.pop(container_id, None)
        return trees.set_aside(self._containers / container_id, self._scratch)

    def remove(self, container_id: str) -> None:
        """Delete the container's writable part (unmount first); nothing there is fine."""
        aside = self.retire(container_id)
        if aside is not None:
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

    def ids(self, container_id: str) -> dict[str, Any] | None:
        """The id maps it was prepared with. NotFound when it was not prepared."""
        if container_id not in self._ids:
            self._record(container_id)
        return self._ids[container_id]

    def _user_namespace(self, ids: Mapping[str, Any]) -> int:
        texts = tuple("".join(f"{a} {b} {c}\n" for a, b, c in ids[key]) for key in ("uids", "gids"))
        with self._lock:
            if texts not in self._user_namespaces:
                self._user_namespaces[texts] = user_namespace.make(*texts)
            return self._user_namespaces[texts]

    def _lowers(self, container_id: str) -> list[Path]:
        return [Path(lower) for lower in self._record(container_id)["lowers"]]

    def _record(self, container_id: str) -> dict[str, Any]:
        path = Path(f"{self._containers}/{container_id}/lowers.json")
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"No root file system for container {container_id}: prepare it first") from None
        if record.get("version") != VERSION:
            raise Internal(f"{path} was written by another release (version {record.get('version')})")
        self._ids[container_id] = record.get("ids")
        return record


def _outside(ranges: Sequence[Sequence[int]] | None, number: int) -> int:
    """The host's number of an id that a layer has; of one beyond the ranges the first's, root."""
    for first, there, count in ranges or ():
        if 0 <= number - first < count:
            return there + number - first
    return number if not ranges else ranges[0][1]


class _Spelling:
    """How a path is written in a mount option: as it is, or through a descriptor where it is too long."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def opened(self, path: Path | str, flags: int) -> int:
        fd = os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def mapped(self, lower: str, namespace: int) -> str:
        """A layer whose owners are shown through the maps of a user namespace (Linux 5.19, and a filesystem that can)."""
        copy = mounts.clone(lower)
        self._stack.callback(os.close, copy)
        try:
            mounts.map_ids(copy, namespace)
        except OSError as error:
            words = (
                f"the filesystem or kernel below {lower} cannot map owners ({error.strerror}): --userns-remap needs Linux 5.19 "
                "and ext4, xfs, btrfs or the like; or give the container --userns=host"
            )
            raise Internal(words) from error
        return f"/proc/self/fd/{copy}"

    def path(self, text: str) -> str:
        plain = len(os.fsencode(text)) <= _VALUE_LIMIT and not any(mark in text for mark in ",:\\")
        return text if plain else f"/proc/self/fd/{self.opened(text, os.O_PATH)}"


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
