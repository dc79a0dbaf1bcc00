"""Reads a container's json-file log, rotated files included, and follows it while the container may still write.

The shim is the only writer and renames files when it rotates (``<log>.1`` is the youngest old one). What a line means is
in log_lines. Following polls: one stat a tenth of a second a reader.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from worker.containers import log_lines
from worker.containers.log_lines import Entry, Query

BLOCK = 64 * 1024
POLL_SECONDS = 0.1
LINE_LIMIT = 4 * 1024 * 1024


def files(path: Path) -> list[Path]:
    """The log's files, oldest first."""
    rotated: list[tuple[int, Path]] = []
    for other in path.parent.glob(f"{path.name}.*"):
        suffix = other.name[len(path.name) + 1 :]
        if suffix.isdigit():
            rotated.append((int(suffix), other))
    return [other for _, other in sorted(rotated, reverse=True)] + [path]


def tail_offset(file: BinaryIO, lines: int) -> tuple[int, int]:
    """(offset of the last ``lines`` whole lines, how many lines that is); a line without its end is not counted."""
    end = file.seek(0, os.SEEK_END)
    found, at = 0, end
    while at > 0:
        start = max(0, at - BLOCK)
        file.seek(start)
        block = file.read(at - start)
        position = len(block)
        while (position := block.rfind(b"\n", 0, position)) >= 0:
            found += 1
            if found == lines + 1:
                return start + position + 1, lines
        at = start
    return 0, found


class _Cursor:
    """A place in one open file; hands out whole lines."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._held = b""

    def lines(self) -> list[bytes]:
        """The whole lines of the next block; empty at the end of what is written."""
        while True:
            block = self.file.read(BLOCK)
            if not block:
                return []
            *whole, self._held = (self._held + block).split(b"\n")
            if len(self._held) > LINE_LIMIT:
                self._held = b""
            if whole:
                return whole


def _open_all(path: Path, tail: int | None) -> list[BinaryIO]:
    """The files to read, oldest first, each at its place. A file rotated away meanwhile is passed over."""
    opened: list[BinaryIO] = []
    left = tail
    for one in reversed(files(path)):
        if left is not None and left <= 0 and opened:
            break
        try:
            file = open(one, "rb")  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            continue
        if left is not None:
            offset, count = tail_offset(file, left)
            file.seek(offset)
            left -= count
        opened.append(file)
    return opened[::-1]


def _later(file: BinaryIO, path: Path) -> list[BinaryIO]:
    """The files that came after the open one; empty while it is still the newest."""
    held = os.fstat(file.fileno())
    opened: list[BinaryIO] = []
    for one in files(path):
        try:
            fresh = open(one, "rb")  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            continue
        now = os.fstat(fresh.fileno())
        if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
            fresh.close()
            for earlier in opened:
                earlier.close()
            opened = []
            continue
        opened.append(fresh)
    # When the open file is gone altogether, everything that is left is later.
    return opened


def _moved(file: BinaryIO, path: Path) -> bool:
    """Whether ``path`` names another file than the open one."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino)


async def _entries(cursor: _Cursor) -> AsyncIterator[Entry]:
    while lines := await asyncio.to_thread(cursor.lines):
        for line in lines:
            entry = log_lines.parse(line)
            if entry is not None:
                yield entry


async def read(path: Path, query: Query, ended: Callable[[], bool]) -> AsyncIterator[Entry]:
    """The entries ``query`` wants, in order. With ``follow`` until ``ended()`` says that no more will be written."""
    opened = await asyncio.to_thread(_open_all, path, query.tail)
    try:
        while not opened and query.follow and not ended():
            await asyncio.sleep(POLL_SECONDS)
            opened = await asyncio.to_thread(_open_all, path, query.tail)
        cursor = _Cursor(opened[0]) if opened else None
        while cursor is not None:
            # Asked before reading: what was written before the end is read after it.
            final = ended() or not query.follow
            moved = len(opened) > 1 or (query.follow and _moved(cursor.file, path))
            async for entry in _entries(cursor):
                if query.until and entry.at > query.until:
                    return
                if query.wants(entry):
                    yield entry
            if moved:
                former = opened.pop(0)
                if not opened:
                    opened = await asyncio.to_thread(_later, former, path)
                former.close()
                cursor = _Cursor(opened[0]) if opened else None
            elif final:
                return
            else:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        for file in opened:
            file.close()
