"""A build's context as a tar that is made while it is sent: a directory, less what ``.dockerignore`` leaves out.

It decides what is sent: everything root's, sockets not at all, the Dockerfile and ``.dockerignore`` always. It must not know
the daemon.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from covey import dockerignore
from covey.errors import InvalidArgument

_PIECE = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
IGNORE = ".dockerignore"
_NODES = {stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}


def matcher(root: Path, dockerfile: Path) -> dockerignore.Matcher:
    """What is left out: by ``<Dockerfile>.dockerignore`` beside the Dockerfile, else by the context's own."""
    for path in (dockerfile.with_name(dockerfile.name + IGNORE), root / IGNORE):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
        try:
            return dockerignore.Matcher(dockerignore.lines(text))
        except dockerignore.BadPattern as error:
            raise InvalidArgument(f"{path}: {error}") from None
    return dockerignore.Matcher([])


def pieces(root: Path, left_out: dockerignore.Matcher, added: dict[str, bytes], always: frozenset[str]) -> Iterator[bytes]:
    """The tar. ``added``: files that are sent beside those of ``root``; ``always``: names that are never left out."""
    for name, data in added.items():
        info = tarfile.TarInfo(name)
        info.mode, info.size = 0o600, len(data)
        yield _head(info) + data + b"\0" * (-len(data) % _BLOCK)
    pending = [""]
    while pending:
        directory = pending.pop()
        below = []
        with os.scandir(root / directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = f"{directory}/{entry.name}" if directory else entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            excluded = left_out.excludes(path) and not any(path == one or one.startswith(f"{path}/") for one in always)
            if is_directory and (not excluded or left_out.has_exceptions):
                below.append(path)
            if not excluded:
                yield from _entry(path, entry.path)
        pending += reversed(below)
    yield b"\0" * (2 * _BLOCK)


def _head(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _entry(name: str, path: str) -> Iterator[bytes]:
    status = os.lstat(path)
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        yield from _file(info, path)
    elif kind == stat.S_IFDIR:
        info.type, info.name = tarfile.DIRTYPE, f"{name}/"
        yield _head(info)
    elif kind == stat.S_IFLNK:
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        yield _head(info)
    elif kind in _NODES:
        info.type = _NODES[kind]
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        yield _head(info)


def _file(info: tarfile.TarInfo, path: str) -> Iterator[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        words = f"cannot read {path}: permission denied; name it in {IGNORE} if the build does not need it"
        raise InvalidArgument(words) from None
    with open(fd, "rb", buffering=0) as file:
        info.size = left = os.fstat(fd).st_size
        yield _head(info)
        while left:
            # It shrank meanwhile: the header has promised its size.
            data = file.read(min(left, _PIECE)) or b"\0" * min(left, _PIECE)
            left -= len(data)
            yield data
    yield b"\0" * (-info.size % _BLOCK)
