"""What a container changed, read from its overlay upper directory against the layers below.

Decides the kind of each change (Docker's numbers: 0 modified, 1 added, 2 deleted). Mounts nothing. The upper directory
was written by the container: it is walked by descriptors, no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.kernel import safe_paths, trees

MODIFIED, ADDED, DELETED = 0, 1, 2
#: What the engine puts into every root file system to mount upon; Docker keeps them in a layer of their own.
PLACES = frozenset(("dev", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys"))
_OPAQUE = "trusted.overlay.opaque"
_HERE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def changes(upper: Path, lowers: Sequence[Path]) -> list[tuple[str, int]]:
    """(absolute path in the container, kind) of every change, sorted by path. ``lowers``: topmost first."""
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> int:
            fd = os.open(path, _HERE)
            stack.callback(os.close, fd)
            return fd

        below = Below([opened(lower) for lower in lowers])
        left_out = _made_by_engine(opened(upper), below)
        found: list[tuple[str, int]] = []
        for path, status, opaque in _walk(opened(upper)):
            if path in left_out:
                continue
            existed = below.has(path)
            if _is_whiteout(status):
                if existed:
                    found.append((f"/{path}", DELETED))
                continue
            found.append((f"/{path}", MODIFIED if existed else ADDED))
            if opaque and existed:
                kept = set(opaque)
                found += [(f"/{path}/{name}", DELETED) for name in below.names(path) if name not in kept]
    return sorted(found)


def made_by_engine(upper: Path, lowers: Sequence[Path]) -> set[str]:
    """Paths in ``upper``, without a leading slash, that are the engine's doing: no change, and nothing to commit.

    Empty places of its mounts that no layer has, and directories that were copied up for them alone.
    """
    with contextlib.ExitStack() as stack:
        fds = [os.open(path, _HERE) for path in (upper, *lowers)]
        for fd in fds:
            stack.callback(os.close, fd)
        return _made_by_engine(fds[0], Below(fds[1:]))


def _made_by_engine(upper_fd: int, below: Below) -> set[str]:
    found: set[str] = set()
    # Longest first: a directory that holds only such places is looked at after them.
    for path in sorted({*PLACES, *(os.path.dirname(path) for path in PLACES)} - {""}, key=len, reverse=True):
        try:
            fd = safe_paths.open_in_root(upper_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, follow=False)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                nothing = all(f"{path}/{name}" in found for name in os.listdir(fd))
            else:
                nothing = stat.S_ISREG(status.st_mode) and status.st_size == 0 and not below.has(path)
        finally:
            os.close(fd)
        if nothing and below.looks(path) in (None, _looks(status)) and (path in PLACES or below.has(path)):
            found.add(path)
    return found


def _looks(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid


def size(upper: Path) -> int:
    """Bytes of the regular files below ``upper``, each inode once."""
    root = os.open(upper, _HERE)
    try:
        sizes = {status.st_ino: status.st_size for _, status, _ in _walk(root) if stat.S_ISREG(status.st_mode)}
    finally:
        os.close(root)
    return sum(sizes.values())


def _walk(root_fd: int) -> Iterator[tuple[str, os.stat_result, list[str] | None]]:
    """(path, lstat, names inside if it is an opaque directory) of everything below, parents first."""
    pending = [""]
    while pending:
        directory = pending.pop()
        fd = safe_paths.open_in_root(root_fd, directory, trees.DIRECTORY, follow=False)
        try:
            for name in os.listdir(fd):
                path = f"{directory}/{name}" if directory else name
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                opaque = None
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
                    opaque = _opaque_names(fd, name)
                yield path, status, opaque
        finally:
            os.close(fd)


def _opaque_names(parent_fd: int, name: str) -> list[str] | None:
    fd = os.open(name, trees.DIRECTORY, dir_fd=parent_fd)
    try:
        with contextlib.suppress(OSError):
            if os.getxattr(fd, _OPAQUE) == b"y":
                return os.listdir(fd)
    finally:
        os.close(fd)
    return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Below:
    """The merged view of the layers below, without mounting them."""

    def __init__(self, lowers: Sequence[int]) -> None:
        self._lowers = lowers

    def has(self, path: str) -> bool:
        return bool(self._found(path))

    def looks(self, path: str) -> tuple[int, int, int] | None:
        """(mode, uid, gid) of what is there; None for nothing."""
        for lower in self._found(path)[:1]:
            fd = safe_paths.open_in_root(lower, path, os.O_PATH | os.O_NOFOLLOW, follow=False)
            try:
                return _looks(os.fstat(fd))
            finally:
                os.close(fd)
        return None

    def has_attributes(self, path: str) -> bool:
        """Whether what is there has extended attributes."""
        for lower in self._found(path)[:1]:
            fd = safe_paths.open_in_root(lower, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, follow=False)
            try:
                return bool(os.listxattr(fd))
            finally:
                os.close(fd)
        return False

    def names(self, path: str) -> list[str]:
        """Names in directory ``path``."""
        merged: dict[str, bool] = {}
        for lower in self._found(path):
            try:
                fd = safe_paths.open_in_root(lower, path, trees.DIRECTORY, follow=False)
            except OSError:
                break
            try:
                for name in os.listdir(fd):
                    merged.setdefault(name, not _is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False)))
            finally:
                os.close(fd)
        return sorted(name for name, visible in merged.items() if visible)

    def _found(self, path: str) -> list[int]:
        """The lowers that contribute to ``path``, topmost first; none when it is not there."""
        visible = list(self._lowers)
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            visible = self._narrowed(visible, "/".join(parts[:depth]))
            if not visible:
                break
        return visible

    @staticmethod
    def _narrowed(lowers: Sequence[int], path: str) -> list[int]:
        kept: list[int] = []
        for lower in lowers:
            try:
                fd = safe_paths.open_in_root(lower, path, os.O_PATH | os.O_NOFOLLOW, follow=False)
            except OSError:
                continue
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            if _is_whiteout(status):
                break
            if not stat.S_ISDIR(status.st_mode):
                return kept or [lower]
            kept.append(lower)
            parent, _, name = path.rpartition("/")
            parent_fd = safe_paths.open_in_root(lower, parent, trees.DIRECTORY, follow=False)
            try:
                if _opaque_names(parent_fd, name) is not None:
                    break
            finally:
                os.close(parent_fd)
        return kept
