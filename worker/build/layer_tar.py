"""What a container changed, as the tar stream of an image layer.

Reads an overlay upper directory, written by a container and hence walked by descriptors, no link followed. Decides how its
deletions are told (OCI image-spec layer.md: ``.wh.`` entries). The same tree gives the same bytes: sorted, with times of
whole seconds.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from covey.errors import InvalidArgument
from worker.containers import tree_tar
from worker.containers.tree_tar import Links, Owners, Piece
from worker.kernel import safe_paths, trees

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_OPAQUE_XATTR = "trusted.overlay.opaque"
_REDIRECT = "trusted.overlay.redirect"
_LEFT_XATTRS = ("trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm")


def pack(upper: Path, left_out: Collection[str] = (), owners: Owners | None = None) -> Iterator[bytes]:
    """The layer's tar. ``left_out``: paths (no leading slash) that are no part of it; ``owners``: see tree_tar.pack.

    InvalidArgument for a file that a layer cannot hold; OSError when something cannot be read.
    """
    root = os.open(upper, trees.DIRECTORY)
    try:
        for piece in _walk(root, frozenset(left_out)):
            if isinstance(piece, bytes):
                yield piece
                continue
            if owners is not None:
                piece.uid, piece.gid = owners(piece.uid, piece.gid)
            yield tree_tar.encoded(piece)
    finally:
        os.close(root)
    yield b"\0" * (2 * tree_tar.BLOCK)


def _walk(root: int, left_out: frozenset[str]) -> Iterator[Piece]:
    links: Links = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        fd = safe_paths.open_in_root(root, directory, trees.DIRECTORY, follow=False)
        below: list[str] = []
        try:
            if directory:
                yield from _directory(fd, directory)
            for name in sorted(os.listdir(fd)):
                path = f"{directory}/{name}" if directory else name
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if path in left_out:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    below.append(path)
                else:
                    yield from _other(fd, name, path, status, links)
        finally:
            os.close(fd)
        pending += reversed(below)


def _directory(fd: int, path: str) -> Iterator[Piece]:
    info = tree_tar.header(f"{path}/", os.fstat(fd))
    assert info is not None
    names = os.listxattr(fd)
    for name in filter(_kept, names):
        tree_tar.add_attribute(info, name, os.getxattr(fd, name))
    _check_name(path)
    if _REDIRECT in names:
        raise InvalidArgument(f"cannot make a layer: /{path} is an overlayfs redirect; load the module with redirect_dir=off")
    yield info
    if _OPAQUE_XATTR in names and os.getxattr(fd, _OPAQUE_XATTR) == b"y":
        yield _mark(f"{path}/{OPAQUE}")


def _other(fd: int, name: str, path: str, status: os.stat_result, links: Links) -> Iterator[Piece]:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        yield _mark(path.removesuffix(name) + WHITEOUT + name)
        return
    _check_name(path)
    info = tree_tar.header(path, status)
    if info is None:
        return
    if info.isreg():
        yield from tree_tar.regular(fd, name, info, links, status, _kept)
        return
    if info.issym():
        info.linkname = os.readlink(name, dir_fd=fd)
    yield info


def _mark(path: str) -> tarfile.TarInfo:
    """An empty file, root's, of no time: it says only its name."""
    info = tarfile.TarInfo(path)
    info.mode = 0
    return info


def _check_name(path: str) -> None:
    if os.path.basename(path).startswith(WHITEOUT):
        raise InvalidArgument(f"cannot make a layer with /{path}: in a layer such a name means a deletion; remove or rename it")


def _kept(attribute: str) -> bool:
    return not attribute.startswith(_LEFT_XATTRS)


class Stream:
    """The pieces as a stream that is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, memoryview(b"")

    def read(self, n: int = -1, /) -> bytes:
        if n < 0:
            return bytes(self._held) + b"".join(self._pieces)
        parts: list[bytes | memoryview] = []
        while n:
            if not self._held:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._held = memoryview(piece)
            parts.append(self._held[:n])
            n -= len(parts[-1])
            self._held = self._held[len(parts[-1]) :]
        return b"".join(parts)
