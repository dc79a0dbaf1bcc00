"""The directory a layer is unpacked into: where parents are found or made, and what stands in the way is removed.

Every path is resolved by worker.kernel.safe_paths below the root's descriptor; the last component is then made with
an ``…at`` call that never follows a link. Knows nothing of tar or whiteouts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from worker.kernel import safe_paths

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CACHED = 128


class LayerTree:
    """Owns descriptors for recently used parents; ``close`` gives them back.

    ``implied``: inode → path of the directories that were made because something lies in them, lowest first; what they look
    like is said by the layers below (``inherit``) unless the layer says it itself (``stated``). The root is one of them.
    """

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self.implied: dict[int, str] = {os.fstat(root_fd).st_ino: ""}
        self._parents: OrderedDict[str, int] = OrderedDict()

    def stated(self, inode: int) -> None:
        """The layer itself says what this directory looks like."""
        self.implied.pop(inode, None)

    def close(self) -> None:
        self.forget()

    def parent(self, path: str) -> int:
        """A descriptor of directory ``path`` (borrowed: valid until the next call), made with its parents if missing."""
        if not path:
            return self.root_fd
        known = self._parents.get(path)
        if known is not None:
            self._parents.move_to_end(path)
            return known
        fd = self._new(path)
        if fd is None:
            fd = self._found(path)
        self._parents[path] = fd
        if len(self._parents) > _CACHED:
            os.close(self._parents.popitem(last=False)[1])
        return fd

    def forget(self) -> None:
        """Drop the cache: a path may lead elsewhere once a directory or link was removed or replaced."""
        while self._parents:
            os.close(self._parents.popitem()[1])

    def status(self, parent_fd: int, name: str) -> os.stat_result | None:
        """lstat of ``name``, None when nothing is there."""
        try:
            return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _found(self, path: str) -> int:
        """A descriptor of directory ``path``, whose parents are made where missing."""
        try:
            return safe_paths.open_in_root(self.root_fd, path, _DIRECTORY)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            missing = error
        for end, character in enumerate(path):
            if character == "/":
                self.parent(path[:end])
        fd = self._new(path)
        if fd is None:
            raise missing
        return fd

    def _new(self, path: str) -> int | None:
        """A descriptor of directory ``path``, made now; None when its parent is not at hand, or something is there."""
        parent_path, _, name = path.rpartition("/")
        parent_fd = self._parents.get(parent_path) if parent_path else self.root_fd
        if parent_fd is None:
            return None
        try:
            os.mkdir(name, 0o755, dir_fd=parent_fd)
        except FileExistsError:
            return None
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        os.fchmod(fd, 0o755)
        self.implied[os.fstat(fd).st_ino] = path
        return fd


def inherit(root_fd: int, implied: Iterable[str], lowers: Sequence[int]) -> None:
    """Give ``implied`` directories below ``root_fd`` the attributes they have in ``lowers`` (descriptors, topmost first).

    In an overlay the upper directory's attributes are the ones seen. Deepest first: setting one changes no other's times.
    """
    for path in sorted(implied, reverse=True):
        below = _below(path, lowers)
        if below is None:
            continue
        try:
            fd = safe_paths.open_in_root(root_fd, path, _DIRECTORY | os.O_NOFOLLOW, follow=False)
        except OSError:
            continue  # a later entry put something else there
        try:
            copy_directory_attributes(below, fd)
        finally:
            os.close(fd)


def _below(path: str, lowers: Sequence[int]) -> os.stat_result | None:
    for lower in lowers:
        with contextlib.suppress(OSError):
            fd = safe_paths.open_in_root(lower, path, os.O_PATH | os.O_NOFOLLOW, follow=False)
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            return status if stat.S_ISDIR(status.st_mode) else None
    return None


def copy_directory_attributes(source: os.stat_result, to_fd: int) -> None:
    """Owner, mode and times."""
    os.fchown(to_fd, source.st_uid, source.st_gid)
    os.fchmod(to_fd, stat.S_IMODE(source.st_mode))
    os.utime(to_fd, ns=(source.st_atime_ns, source.st_mtime_ns))
