"""Reads a container's log, rotated and compressed files included, and follows it while the container may still write.

The shim is the only writer: it renames files when it rotates (``<log>.1`` is the youngest old one) and then may compress
them (worker.shim.logfile). What the bytes mean is the form's: log_lines (json-file) or log_frames (local). Following
polls: one stat a tenth of a second a reader.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from worker.containers import log_frames, log_lines
from worker.containers.log_lines import Entry, Query

log = logging.getLogger(__name__)

BLOCK = 64 * 1024
POLL_SECONDS = 0.1
PIECE_LIMIT = 4 * 1024 * 1024
_EXTRA, _COMMENT = 0x04, 0x10
_TRIES = 5


@dataclass(frozen=True)
class Form:
    """How a driver's bytes are cut: ``split`` into entries and a rest, ``tail_offset`` of the last ones of a file."""

    split: Callable[[bytes], tuple[list[Entry], bytes]]
    tail_offset: Callable[[BinaryIO, int], tuple[int, int]]


FORMS = {
    "json-file": Form(log_lines.split, log_lines.tail_offset),
    "local": Form(log_frames.split, log_frames.tail_offset),
}


def files(path: Path) -> list[Path]:
    """The log's files by their names without .gz, oldest first."""
    numbers: set[int] = set()
    for other in path.parent.glob(f"{path.name}.*"):
        suffix = other.name[len(path.name) + 1 :].removesuffix(".gz")
        if suffix.isdigit():
            numbers.add(int(suffix))
    return [path.with_name(f"{path.name}.{number}") for number in sorted(numbers, reverse=True)] + [path]


class Opened:
    """One file of a log at a place in it; hands out whole entries.

    ``packed``: "device:inode:nanoseconds of the last write" that a compressed file had before, None for a plain file.
    """

    def __init__(self, file: BinaryIO, packed: str | None, form: Form) -> None:
        self.file = file
        self._packed = packed
        self._form = form
        self._held = b""
        self._damaged = False

    def is_same(self, other: Opened) -> bool:
        """Whether both are one file of the log, renamed or compressed meanwhile.

        An inode is one file's while that is open; one that was compressed and unlinked may have passed its number on.
        """
        if self._packed is None and other._packed is None:
            return _inode(self.file) == _inode(other.file)
        return self._name() == other._name()

    def _name(self) -> str:
        return self._packed or f"{_inode(self.file)}:{os.fstat(self.file.fileno()).st_mtime_ns}"

    def is_at(self, path: Path) -> bool:
        """False when ``path`` names another file now."""
        try:
            now = os.stat(path)
        except FileNotFoundError:
            return True
        return self._packed is None and f"{now.st_dev}:{now.st_ino}" == _inode(self.file)

    def entries(self) -> list[Entry]:
        """The entries of the next blocks; empty at the end of what is written."""
        while not self._damaged:
            block = self.file.read(BLOCK)
            if not block:
                self._begin_anew_if_cut()
                return []
            try:
                found, self._held = self._form.split(self._held + block)
            except log_frames.Damaged as words:
                log.warning("log file %s holds %s: what follows it is not read", self.file.name, words)
                self._damaged = True
                break
            if len(self._held) > PIECE_LIMIT:
                self._held = b""
            if found:
                return found
        return []

    def _begin_anew_if_cut(self) -> None:
        """A log of a single file is emptied when it is full."""
        if os.fstat(self.file.fileno()).st_size < self.file.tell():
            self.file.seek(0)
            self._held = b""

    def close(self) -> None:
        self.file.close()


def _inode(file: BinaryIO) -> str:
    known = os.fstat(file.fileno())
    return f"{known.st_dev}:{known.st_ino}"


def _open(path: Path, form: Form) -> Opened | None:
    """The file of this name, compressed or not; None when there is none (any more)."""
    try:
        file = cast(BinaryIO, open(path, "rb"))  # noqa: SIM115 (the caller closes it)
        return Opened(file, None, form)
    except FileNotFoundError:
        pass
    packed = path.with_name(f"{path.name}.gz")
    try:
        with open(packed, "rb") as source:
            packed_from = _comment(source) or _inode(source)
            source.seek(0)
            unpacked = cast(BinaryIO, tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115 (the caller closes it)
            with gzip.open(source) as plain:
                shutil.copyfileobj(plain, unpacked)
    except FileNotFoundError:
        return None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        log.warning("log file %s cannot be unpacked and is passed over: %s", packed, error)
        return None
    unpacked.seek(0)
    return Opened(unpacked, packed_from, form)


def _comment(file: BinaryIO) -> str:
    """The comment in a gzip header without a file name (RFC 1952), "" when there is none."""
    head = file.read(1024)
    if len(head) < 12 or head[3] & ~(_EXTRA | _COMMENT) or not head[3] & _COMMENT:
        return ""
    at = 12 + struct.unpack_from("<H", head, 10)[0] if head[3] & _EXTRA else 10
    return head[at : head.find(b"\0", at)].decode("ascii", "replace")


def _open_all(path: Path, tail: int | None, form: Form) -> list[Opened]:
    """The files to read, oldest first, each at its place, as they are between two rotations."""
    for _ in range(_TRIES):
        opened = _open_each(path, tail, form)
        if not opened or opened[-1].is_at(path):
            break
        for one in opened:
            one.close()
    else:
        # It rotates faster than it can be read: what is left of it has to do.
        opened = _open_each(path, tail, form)
    return opened


def _open_each(path: Path, tail: int | None, form: Form) -> list[Opened]:
    opened: list[Opened] = []
    left = tail
    for name in reversed(files(path)):
        if left is not None and left <= 0 and opened:
            break
        one = _open(name, form)
        if one is None:
            continue
        if any(other.is_same(one) for other in opened):
            one.close()
            continue
        if left is not None:
            offset, count = form.tail_offset(one.file, left)
            one.file.seek(offset)
            left -= count
        opened.append(one)
    return opened[::-1]


def _later(former: Opened, path: Path, form: Form) -> list[Opened]:
    """The files that came after ``former``; empty while it is still the newest."""
    later: list[Opened] = []
    for name in reversed(files(path)):
        one = _open(name, form)
        if one is None:
            continue
        if one.is_same(former):
            one.close()
            break
        if any(other.is_same(one) for other in later):
            one.close()
            continue
        later.append(one)
    # When the former file is gone altogether, everything that is left is later.
    return later[::-1]


async def _entries(opened: Opened) -> AsyncIterator[Entry]:
    while entries := await asyncio.to_thread(opened.entries):
        for entry in entries:
            yield entry


async def read(path: Path, query: Query, ended: Callable[[], bool], form: Form = FORMS["json-file"]) -> AsyncIterator[Entry]:
    """The entries ``query`` wants, in order. With ``follow`` until ``ended()`` says that no more will be written."""
    opened = await asyncio.to_thread(_open_all, path, query.tail, form)
    try:
        while not opened and query.follow:
            # There is no file before the first entry. Asked before looking: what was written before the end is found after it.
            over = ended()
            opened = await asyncio.to_thread(_open_all, path, None, form)
            if over:
                break
            if not opened:
                await asyncio.sleep(POLL_SECONDS)
        while opened:
            # Asked before reading: what was written before the end is read after it.
            final = ended() or not query.follow
            moved = len(opened) > 1 or (query.follow and not opened[0].is_at(path))
            async for entry in _entries(opened[0]):
                if query.until and entry.at > query.until:
                    return
                if query.wants(entry):
                    yield entry
            if moved:
                if len(opened) == 1:
                    opened += await asyncio.to_thread(_later, opened[0], path, form)
                opened.pop(0).close()
            elif final:
                return
            else:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        for one in opened:
            one.close()
