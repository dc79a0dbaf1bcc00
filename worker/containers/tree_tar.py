"""Writes a subtree of an untrusted root as a tar stream, in pieces.

Walked by descriptors; no link is followed below where it begins, hard links are kept. Format: POSIX.1-2017 pax (the
headers are tarfile's). It knows no containers.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from worker.kernel import safe_paths

CHUNK = 256 * 1024
BLOCK = 512
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_XATTRS = ("security.capability", "user.")
Links = dict[tuple[int, int], str]
"""(device, inode) → the name under which a file was written first."""

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


Owners = Callable[[int, int], tuple[int, int]]
"""(uid, gid) as the kernel tells them → as the archive, or the tree, is to have them."""
Piece = bytes | tarfile.TarInfo


@dataclass(frozen=True, slots=True)
class _Walk:
    """``device``: what is mounted from another is shown empty; None, and it is entered."""

    device: int | None
    left_out: Collection[str]
    links: Links = field(default_factory=dict)


def pack(
    parent_fd: int,
    name: str,
    shown: str,
    *,
    one_device: bool = False,
    owners: Owners | None = None,
    left_out: Collection[str] = (),
) -> Iterator[bytes]:
    """The tar of ``name`` in an open directory (``.``: that directory itself), its root entry called ``shown``.

    An empty ``shown`` leaves the root entry out. ``one_device``: mount points are shown empty (export). ``left_out``: names,
    as the archive has them but without a last slash, that are no part of it. Sockets are left out. OSError when something
    cannot be read.
    """
    device = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_dev if one_device else None
    for piece in _node(parent_fd, name, shown, _Walk(device, left_out)):
        if isinstance(piece, bytes):
            yield piece
            continue
        if owners is not None:
            piece.uid, piece.gid = owners(piece.uid, piece.gid)
        yield encoded(piece)
    yield b"\0" * (2 * BLOCK)


def header(name: str, status: os.stat_result) -> tarfile.TarInfo | None:
    """The entry of what lstat told; None for a socket."""
    kind = _TYPES.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, stat.S_IMODE(status.st_mode)
    info.uid, info.gid, info.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return info


def encoded(info: tarfile.TarInfo) -> bytes:
    """The entry's header blocks."""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _node(parent_fd: int, name: str, shown: str, walk: _Walk) -> Iterator[Piece]:
    try:
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    info = header(shown, status)
    if info is None:
        return
    if info.isdir():
        yield from _directory(parent_fd, name, info, walk, status)
    elif info.isreg():
        yield from regular(parent_fd, name, info, walk.links, status)
    else:
        if info.issym():
            info.linkname = os.readlink(name, dir_fd=parent_fd)
        yield info


def _directory(parent_fd: int, name: str, info: tarfile.TarInfo, walk: _Walk, status: os.stat_result) -> Iterator[Piece]:
    if info.name and not info.name.endswith("/"):
        info.name += "/"
    if info.name:
        yield info
    if walk.device is not None and status.st_dev != walk.device:
        return
    fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    try:
        for child in sorted(os.listdir(fd)):
            if info.name + child not in walk.left_out:
                yield from _node(fd, child, info.name + child, walk)
    finally:
        os.close(fd)


def regular(
    parent_fd: int,
    name: str,
    info: tarfile.TarInfo,
    links: Links,
    status: os.stat_result,
    kept: Callable[[str], bool] = lambda attribute: attribute.startswith(_KEPT_XATTRS),
) -> Iterator[Piece]:
    """A regular file: its entry, then its padded content; of an inode in ``links`` a hard link. ``kept``: which xattrs."""
    key = (status.st_dev, status.st_ino)
    if status.st_nlink > 1 and key in links:
        info.type, info.linkname = tarfile.LNKTYPE, links[key]
        yield info
        return
    links[key] = info.name
    fd = safe_paths.open_regular(parent_fd, name)
    try:
        info.size = os.fstat(fd).st_size
        for attribute in os.listxattr(fd):
            if kept(attribute):
                add_attribute(info, attribute, os.getxattr(fd, attribute))
        yield info
        left = info.size
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                # It shrank meanwhile; the header has promised its size.
                data = b"\0" * min(left, CHUNK)
            left -= len(data)
            yield data
        yield b"\0" * (-info.size % BLOCK)
    finally:
        os.close(fd)


def add_attribute(info: tarfile.TarInfo, name: str, value: bytes) -> None:
    """Give the entry an extended attribute."""
    info.pax_headers = {**info.pax_headers, f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}


def open_parent(root_fd: int, path: str) -> tuple[int, str]:
    """(descriptor of the directory that holds ``path``, its last component; ``.`` for the root itself)."""
    bare = path.rstrip("/")
    if not bare or bare.endswith("/.") or bare == ".":
        return safe_paths.open_in_root(root_fd, bare or "/", _DIRECTORY & ~os.O_NOFOLLOW), "."
    parent, name = safe_paths.split(bare)
    if path.endswith("/"):
        return safe_paths.open_in_root(root_fd, bare, _DIRECTORY & ~os.O_NOFOLLOW), "."
    return safe_paths.open_in_root(root_fd, parent or "/", _DIRECTORY & ~os.O_NOFOLLOW), name
