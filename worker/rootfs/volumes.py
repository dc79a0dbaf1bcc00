"""The local volumes of one node: named directories that outlive containers.

Decides names, identity and lifetime; with driver options a volume is a mount while somebody uses it. Knows no
containers: who uses a volume it is told by ``in_use``, and by ``acquire`` and ``release`` for mounts. Synchronous;
one lock around the table. Words are Docker's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covey.errors import Conflict, Internal, InvalidArgument, NotFound
from worker.kernel import mounts, safe_paths, syscalls, trees
from worker.rootfs import changes, copy_up, volume_options

VERSION = 1
DRIVER = "local"
ANONYMOUS = "com.docker.volume.anonymous"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NAME_LIMIT = 255
_FILTERS = {"name", "label", "label!", "dangling", "driver"}
_PRUNE_FILTERS = {"label", "label!", "all"}

Filters = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Volume:
    """``mountpoint`` is what containers see; ``created_at`` seconds since the epoch."""

    name: str
    mountpoint: Path
    created_at: float
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    driver: str = DRIVER


# Volumes has a method called list, so its annotations cannot say list[...].
Listed = list[Volume]
Pruned = tuple[list[str], int]
Holders = list[str]


class Volumes:
    """``root`` is ``<data>/volumes``. ``in_use`` gives, per volume name, the containers that use it, running or not."""

    def __init__(
        self,
        root: Path,
        *,
        in_use: Callable[[], Mapping[str, Sequence[str]]] = dict,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._scratch = trees.emptied(root / ".removed")
        self._in_use, self._now = in_use, now
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._lock = threading.RLock()
        self._volumes = {
            volume.name: volume
            for entry in os.scandir(root)
            if _NAME.fullmatch(entry.name) and (volume := self._restored(entry.name))
        }

    def create(
        self,
        name: str | None = None,
        driver: str = DRIVER,
        driver_opts: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """The volume ``name``, made unless it exists (then as it is, Docker's rule); without a name an anonymous one."""
        if driver not in ("", DRIVER):
            raise NotFound(
                f'create {name or "volume"}: error looking up volume plugin {driver}: plugin "{driver}" not found; '
                'this node has only the driver "local"'
            )
        if name:
            _check_name(name)
            labels = dict(labels or {})
        else:
            name, labels = secrets.token_hex(32), {**(labels or {}), ANONYMOUS: ""}
        volume_options.plan(name, driver_opts or {})
        with self._lock:
            known = self._volumes.get(name)
            if known is not None:
                if driver_opts and dict(driver_opts) != dict(known.options):
                    raise Conflict(f"volume {name} exists with other options; remove it or choose another name")
                return known
            volume = Volume(name, self.root / name / "_data", self._now(), labels, dict(driver_opts or {}))
            self._make(volume)
            self._volumes[name] = volume
            return volume

    def get(self, name: str) -> Volume:
        """NotFound in Docker's words when there is none."""
        with self._lock:
            volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def list(self, filters: Filters | None = None) -> Listed:
        """Volumes by name; ``filters``: name (part of it), label, dangling, driver."""
        wanted = filters or {}
        _check_filters(wanted, _FILTERS)
        users = self._in_use() if "dangling" in wanted else {}
        with self._lock:
            volumes = sorted(self._volumes.values(), key=lambda volume: volume.name)
        return [volume for volume in volumes if _matches(volume, wanted, bool(users.get(volume.name)))]

    def remove(self, name: str, force: bool = False) -> None:
        """Delete the volume and its content. Conflict while a container uses it; ``force`` forgives a missing one."""
        users = self._in_use().get(name, ())
        with self._lock:
            volume = self._volumes.get(name)
            if volume is None:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            holders = list(users) or self._holders(name)
            if holders:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(holders)}]")
            self._unmount(volume)
            aside = self._scratch / secrets.token_hex(8)
            os.rename(self.root / name, aside)
            del self._volumes[name]
        trees.remove_path(aside)

    def prune(self, filters: Filters | None = None) -> Pruned:
        """Delete unused anonymous volumes, or with ``all=true`` named ones too; (names, bytes freed)."""
        wanted = dict(filters or {})
        _check_filters(wanted, _PRUNE_FILTERS)
        everything = any(_boolean("all", value) for value in wanted.pop("all", ()))
        users = self._in_use()
        gone, freed = [], 0
        for volume in self.list(wanted):
            if users.get(volume.name) or not (everything or ANONYMOUS in volume.labels):
                continue
            size = self.size(volume.name)
            with contextlib.suppress(Conflict, NotFound):
                self.remove(volume.name)
                gone.append(volume.name)
                freed += size
        return gone, freed

    def size(self, name: str) -> int:
        """Bytes of the files in the volume, each inode once; -1 for one that is a mount of something else."""
        volume = self.get(name)
        if volume.options:
            return -1
        return changes.size(volume.mountpoint)

    def populate(self, name: str, rootfs: Path, inside: str) -> bool:
        """Copy what the mounted ``rootfs`` has at container path ``inside`` into the volume, if that is empty.

        Owners, modes and links are kept; the volume takes over the directory's own owner and mode. Whether it copied.
        """
        volume = self.get(name)
        with contextlib.ExitStack() as stack:

            def opened(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            target = opened(os.open(volume.mountpoint, trees.DIRECTORY))
            if os.listdir(target):
                return False
            root = opened(os.open(rootfs, trees.DIRECTORY))
            try:
                source = opened(safe_paths.open_in_root(root, inside, os.O_RDONLY | os.O_DIRECTORY))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return False
                raise
            try:
                copy_up.copy_tree(source, target)
            except OSError as error:
                for child in os.listdir(target):
                    trees.remove_tree(target, child)
                raise Internal(
                    f"cannot fill volume {name} from {inside} of the image: {error.strerror} ({volume.mountpoint})"
                ) from error
        return True

    def acquire(self, name: str, holder: str) -> Path:
        """The directory to bind into container ``holder``; a volume with options is mounted on first use."""
        with self._lock:
            volume = self.get(name)
            plan = volume_options.plan(name, volume.options)
            if plan is None:
                return volume.mountpoint
            holders = self._holders(name)
            if not _mounted(volume):
                self._mount(volume, plan)
            if holder not in holders:
                self._write_holders(name, [*holders, holder])
            return volume.mountpoint

    def release(self, name: str, holder: str) -> None:
        """Undo ``acquire``: the last holder's release unmounts. Safe without it, and for a volume that is gone."""
        with self._lock:
            volume = self._volumes.get(name)
            if volume is None or not volume.options:
                return
            left = [each for each in self._holders(name) if each != holder]
            if not left:
                self._unmount(volume)
            self._write_holders(name, left)

    def _make(self, volume: Volume) -> None:
        place = self.root / volume.name
        record = {
            "version": VERSION,
            "created_at": volume.created_at,
            "labels": dict(volume.labels),
            "options": dict(volume.options),
        }
        try:
            place.mkdir(mode=0o701, exist_ok=True)
            volume.mountpoint.mkdir(exist_ok=True)
            os.chmod(volume.mountpoint, 0o755)
            trees.write_atomically(place / "volume.json", json.dumps(record).encode())
            trees.sync_directory(self.root)
        except OSError as error:
            raise Internal(f"cannot create volume {volume.name} in {place}: {error.strerror}") from error

    def _restored(self, name: str) -> Volume | None:
        """The volume as recorded; None where a crash came before the record."""
        try:
            record: dict[str, Any] = json.loads((self.root / name / "volume.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        if record["version"] != VERSION:
            raise Internal(f"volume {name} was written by another release (version {record['version']})")
        data = self.root / name / "_data"
        return Volume(name, data, record["created_at"], record["labels"], record["options"])

    def _holders(self, name: str) -> Holders:
        """Who mounted the volume in this boot; survives a restart of the daemon."""
        try:
            record = json.loads((self.root / name / "holders.json").read_bytes())
        except FileNotFoundError:
            return []
        return record["holders"] if record["boot"] == self._boot else []

    def _write_holders(self, name: str, holders: Sequence[str]) -> None:
        record = {"version": VERSION, "boot": self._boot, "holders": list(holders)}
        trees.write_atomically(self.root / name / "holders.json", json.dumps(record).encode())

    def _mount(self, volume: Volume, plan: volume_options.MountPlan) -> None:
        try:
            if plan.bind:
                mount_fd = mounts.clone(plan.source, recursive=plan.recursive)
            else:
                mount_fd = mounts.new_filesystem(plan.fstype, list(plan.options), source=plan.source)
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, mount_fd)
                if plan.attributes:
                    mounts.set_attributes(mount_fd, plan.attributes, 0)
                target = os.open(volume.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, target)
                mounts.attach(mount_fd, target)
        except OSError as error:
            raise Internal(
                f"failed to mount local volume {volume.name}: mount {plan.source}:{volume.mountpoint} "
                f"(type {plan.fstype}): {error.strerror}"
            ) from error

    @staticmethod
    def _unmount(volume: Volume) -> None:
        for point in _mounted(volume):
            with contextlib.suppress(FileNotFoundError):
                syscalls.umount2(point, syscalls.MNT_DETACH)


def _mounted(volume: Volume) -> list[str]:
    """Mount points at and below the volume's directory, deepest first."""
    return mounts.mount_points(os.path.realpath(volume.mountpoint))


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) and len(name) <= _NAME_LIMIT:
        return
    if len(name) == 1:
        raise InvalidArgument(f"create {name}: volume name is too short, names should be at least two alphanumeric characters")
    raise InvalidArgument(
        f'create {name}: "{name}" includes invalid characters for a local volume name, only '
        '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
    )


def _check_filters(filters: Filters, known: set[str]) -> None:
    for key in filters:
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'; known are {', '.join(sorted(known))}")


def _boolean(key: str, text: str) -> bool:
    if text.lower() in ("1", "true", "t", ""):
        return True
    if text.lower() in ("0", "false", "f"):
        return False
    raise InvalidArgument(f"invalid filter '{key}={text}': not true or false")


def _has_label(volume: Volume, wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == value)


def _matches(volume: Volume, filters: Filters, used: bool) -> bool:
    names, drivers = filters.get("name", ()), filters.get("driver", ())
    return (
        (not names or any(name in volume.name for name in names))
        and (not drivers or volume.driver in drivers)
        and all(_has_label(volume, label) for label in filters.get("label", ()))
        and not any(_has_label(volume, label) for label in filters.get("label!", ()))
        and all(_boolean("dangling", value) != used for value in filters.get("dangling", ()))
    )
