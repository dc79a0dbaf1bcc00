"""What an unpacked layer holds, written down when it is unpacked, so that any later change of it can be named.

JSON lines: the version; the entry of the root itself; one line a directory, ``[path, {name: entry}]``; the SHA-256 of all
these. An entry is a list: kind, mode, uid, gid, mtime in ns, what it is made of (size and SHA-256 of the content, link
target, device number), its extended attributes. Decides the form and the comparison; why a tree changed, and what is done
about it, is worker.images.fsck's. The tree is read as one that may have been damaged: no link is followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from worker.kernel import safe_paths

VERSION = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLES = "holes:"
_BLOCK = 4096
_PIECE = 1 << 20
_FIELDS = ("kind", "mode", "owner", "group", "time", "content", "attributes")
Entry = list[Any]
Summed = Callable[[str, str, int, os.stat_result], str]
"""(directory, name, the directory's descriptor, status) of a regular file that is not empty → what its content is."""


class Difference(NamedTuple):
    """``path`` below the layer's root ("" is the root itself) and what is not as it was written down."""

    path: str
    what: str


def write(path: Path, root_fd: int, sums: Mapping[int, str]) -> str:
    """Write the record of the tree below ``root_fd`` to a new file; its checksum.

    ``sums``: inode → SHA-256 of the content, of every file that is not sparse.
    """

    def summed(directory: str, name: str, parent_fd: int, status: os.stat_result) -> str:
        return sums.get(status.st_ino) or _content_sum(parent_fd, name, holes=True)

    hasher = hashlib.sha256()
    with open(path, "xb") as file:
        head = ({"version": VERSION}, _entry("", ".", root_fd, summed))
        for value in itertools.chain(head, _walk(root_fd, summed)):
            line = _line(value)
            hasher.update(line)
            file.write(line)
        file.write(_line({"sum": f"sha256:{hasher.hexdigest()}"}))
    return f"sha256:{hasher.hexdigest()}"


def checksum(data: bytes) -> str | None:
    """The checksum of a whole record; None when a bit of it is not as ``write`` wrote it."""
    end = data.rfind(b"\n", 0, -1) + 1
    digest = f"sha256:{hashlib.sha256(data[:end]).hexdigest()}"
    return digest if data[end:] == _line({"sum": digest}) else None


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def compare(record: Iterable[bytes], root_fd: int) -> Iterator[Difference]:
    """Where the tree below ``root_fd`` is not as ``record`` (its lines) says.

    A line that cannot be read says nothing: what is in its directory is then not of the layer.
    """
    root, wanted = _read(record)

    def summed(directory: str, name: str, parent_fd: int, status: os.stat_result) -> str:
        before = wanted.get(directory, {}).get(name)
        return _content_sum(parent_fd, name, holes=_HOLES in str(before)) if before else ""

    yield from _differences("", {"": root}, {"": _entry("", ".", root_fd, summed)})
    for path, entries in _walk(root_fd, summed):
        yield from _differences(path, wanted.pop(path, {}), entries)
    for path, missed in wanted.items():
        yield from _differences(path, missed, {})


def _read(record: Iterable[bytes]) -> tuple[Entry, dict[str, dict[str, Entry]]]:
    """(the root's entry, directory → entries)."""
    root: Entry = []
    wanted: dict[str, dict[str, Entry]] = {}
    for number, line in enumerate(record):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found = json.loads(line)
            if number == 1:
                root = list(found)
            elif number:
                path, entries = found
                wanted[path] = dict(entries)
    return root, wanted


def _differences(path: str, before: Mapping[str, Entry], now: Mapping[str, Entry]) -> Iterator[Difference]:
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        where = f"{path}/{name}".strip("/")
        if old is None or new is None:
            yield Difference(where, "is missing" if old else "is not of the layer")
        else:
            changed = [field for field, one, other in zip(_FIELDS, old, new) if one != other]
            yield Difference(where, f"its {' and '.join(changed) or 'entry'} changed")


def _walk(root_fd: int, summed: Summed) -> Iterator[tuple[str, dict[str, Entry]]]:
    """(path, entries by name) of every directory, the root's ("") first."""
    waiting = [""]
    while waiting:
        path = waiting.pop()
        fd = safe_paths.open_in_root(root_fd, path, _DIRECTORY, follow=False)
        try:
            entries = {name: _entry(path, name, fd, summed) for name in sorted(os.listdir(fd))}
        finally:
            os.close(fd)
        waiting += [f"{path}/{name}" if path else name for name, entry in entries.items() if entry[0] == "directory"]
        yield path, entries


def _entry(directory: str, name: str, parent_fd: int, summed: Summed) -> Entry:
    status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    mode = status.st_mode
    content: Any = ""
    if stat.S_ISREG(mode):
        kind = "file"
        content = [status.st_size, summed(directory, name, parent_fd, status) if status.st_size else ""]
    elif stat.S_ISDIR(mode):
        kind = "directory"
    elif stat.S_ISLNK(mode):
        kind, content = "symlink", os.readlink(name, dir_fd=parent_fd)
    else:
        kind, content = f"{stat.S_IFMT(mode):o}", status.st_rdev
    where = f"/proc/self/fd/{parent_fd}/{name}"
    keys = os.listxattr(where, follow_symlinks=False)
    attributes = {key: os.getxattr(where, key, follow_symlinks=False).hex() for key in keys}
    return [kind, stat.S_IMODE(mode), status.st_uid, status.st_gid, status.st_mtime_ns, content, attributes]


def _content_sum(parent_fd: int, name: str, *, holes: bool) -> str:
    """SHA-256 of a file's content; with ``holes`` that of its blocks that are not all zeros, and where they are.

    Reading holes would cost as much as a file claims to hold, and claiming costs its author nothing.
    """
    hasher = hashlib.sha256()
    try:
        fd = safe_paths.open_regular(parent_fd, name)
        try:
            if holes:
                _hash_blocks(fd, hasher.update)
                return _HOLES + hasher.hexdigest()
            while data := os.read(fd, _PIECE):
                hasher.update(data)
            return hasher.hexdigest()
        finally:
            os.close(fd)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _hash_blocks(fd: int, update: Callable[[bytes], None]) -> None:
    end = 0
    while (start := _next_data(fd, end)) is not None:
        end = os.lseek(fd, start, os.SEEK_HOLE)
        start -= start % _BLOCK
        while start < end and (data := os.pread(fd, min(_PIECE, end - start), start)):
            for offset in range(0, len(data), _BLOCK):
                if block := data[offset : offset + _BLOCK].rstrip(b"\0"):
                    update(b"%d+%d:%b" % (start + offset, len(block), block))
            start += len(data)


def _next_data(fd: int, at: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.lseek(fd, at, os.SEEK_DATA)
    return None
