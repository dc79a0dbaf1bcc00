"""Unpacks a tar stream into a directory of an untrusted root (docker cp into a container).

Every path is resolved by the kernel inside the root; what is in the way is replaced, directories are kept and filled.
It knows no containers; what an entry may be is worker.images.tar_stream's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from covey.errors import InvalidArgument
from worker.images.compression import Readable
from worker.images.tar_stream import Entry, TarReader
from worker.kernel import safe_paths, trees

Owner = tuple[int, int] | None
Owners = Callable[[int, int], tuple[int, int]]
_KEPT_XATTRS = frozenset(("security.capability",))


def unpack(
    stream: Readable,
    root_fd: int,
    directory: str,
    *,
    owner: Owner = None,
    owners: Owners | None = None,
    mode: int | None = None,
    strict: bool = False,
) -> None:
    """Every entry of ``stream`` below ``directory`` of the root. ``owner``, ``mode``: instead of the archive's.

    ``owners``: what of either is to be on disk, where the container has a user namespace.

    ``strict``: a directory is not replaced by another kind of file or the other way round. InvalidArgument for what
    cannot be; OSError for what the filesystem refuses.
    """
    reader = TarReader(stream)
    times: list[tuple[str, int]] = []
    for entry in reader:
        if mode is not None:
            entry.mode = mode
        path = _inside(directory, entry.name)
        if path is None:
            continue
        parent_path, name = safe_paths.split(path)
        parent = safe_paths.make_dirs_in_root(root_fd, parent_path or "/")
        try:
            _make(reader, entry, root_fd, parent, name, directory, strict)
            uid, gid = owner if owner is not None else (entry.uid, entry.gid)
            _attributes(entry, parent, name, (uid, gid) if owners is None else owners(uid, gid))
        finally:
            os.close(parent)
        if entry.kind == "directory":
            times.append((path, entry.mtime_ns))
    for path, at in reversed(times):
        _set_time(root_fd, path, at)


def _inside(directory: str, name: str) -> str | None:
    """The entry's path in the root; None for the directory itself. A climbing name is refused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"archive entry {name!r} leads out of {directory}")
    return "/".join([directory.rstrip("/"), *parts]) if parts else None


def _make(reader: TarReader, entry: Entry, root_fd: int, parent: int, name: str, directory: str, strict: bool) -> None:
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        there = None
    if there is not None:
        both = stat.S_ISDIR(there.st_mode), entry.kind == "directory"
        if all(both):
            return
        if strict and any(both):
            raise InvalidArgument(f"cannot overwrite {'directory' if both[0] else 'non-directory'} {name!r} with another kind")
        trees.remove_tree(parent, name)
    if entry.kind == "file":
        _file(reader, entry, parent, name)
    elif entry.kind == "hardlink":
        _hardlink(entry, root_fd, parent, name, directory)
    else:
        _MAKERS[entry.kind](entry, parent, name)


def _file(reader: TarReader, entry: Entry, parent: int, name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        if entry.sparse is None:
            while data := reader.read(1 << 20):
                write(fd, data)
            return
        for offset, length in entry.sparse:
            os.lseek(fd, offset, os.SEEK_SET)
            left = length
            while left and (data := reader.read(min(left, 1 << 20))):
                write(fd, data)
                left -= len(data)
        os.ftruncate(fd, entry.size)
    finally:
        os.close(fd)


def write(fd: int, data: bytes) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _hardlink(entry: Entry, root_fd: int, parent: int, name: str, directory: str) -> None:
    target = _inside(directory, entry.link)
    if target is None:
        raise InvalidArgument(f"archive entry {entry.name!r} links to nothing")
    above, last = safe_paths.split(target)
    source = safe_paths.open_in_root(root_fd, above or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(source)


def _node(kind: int) -> Callable[[Entry, int, str], None]:
    def make(entry: Entry, parent: int, name: str) -> None:
        os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)

    return make


_MAKERS: dict[str, Callable[[Entry, int, str], None]] = {
    "directory": lambda entry, parent, name: os.mkdir(name, 0o700, dir_fd=parent),
    "symlink": lambda entry, parent, name: os.symlink(entry.link, name, dir_fd=parent),
    "fifo": lambda entry, parent, name: os.mkfifo(name, 0o600, dir_fd=parent),
    "char": _node(stat.S_IFCHR),
    "block": _node(stat.S_IFBLK),
}


def _attributes(entry: Entry, parent: int, name: str, owner: tuple[int, int]) -> None:
    """Owner, mode and time of what was just made, by descriptor: a name may have become a link meanwhile."""
    if entry.kind == "hardlink":
        return
    os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
    if entry.kind != "symlink":
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(entry.mode))
                for attribute in entry.xattrs.keys() & _KEPT_XATTRS:
                    os.setxattr(f"/proc/self/fd/{fd}", attribute, entry.xattrs[attribute])
        finally:
            os.close(fd)
    if entry.kind != "directory":
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _set_time(root_fd: int, path: str, at: int) -> None:
    try:
        fd = safe_paths.open_in_root(root_fd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        os.utime(fd, ns=(at, at))
    finally:
        os.close(fd)
