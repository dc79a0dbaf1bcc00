"""Writes container output as Docker's json-file log, with rotation by size.

One line an entry: {"log":"text\\n","stream":"stdout","time":"RFC 3339, nanoseconds"}. A line longer than 16 KiB becomes
several entries of which only the last ends in a newline, as Docker splits it. Rotated files are path.1 (newest) to
path.<max_file - 1>. A failing write (full disk) is counted and never stops the container.
"""

from __future__ import annotations

import contextlib
import os
import time
from json.encoder import encode_basestring

ENTRY_LIMIT = 16 * 1024
_STREAM_NAME = {1: "stdout", 2: "stderr"}


class JsonLog:
    """``max_size`` in bytes, None for no rotation; ``max_file`` counts the current file too."""

    def __init__(self, path: str, max_size: int | None = None, max_file: int = 1) -> None:
        self._path = path
        self._max_size = max_size
        self._max_file = max(1, max_file)
        self._partial = {1: bytearray(), 2: bytearray()}
        self._second = -1
        self._prefix = ""
        self.lost_bytes = 0
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes) -> None:
        """Log the complete lines of ``data``; the rest waits for its newline, for 16 KiB or for the end."""
        buffer = self._partial[stream]
        buffer += data
        entries: list[bytes] = []
        start = 0
        while True:
            end = buffer.find(b"\n", start, start + ENTRY_LIMIT)
            if end >= 0:
                cut = end + 1
            elif len(buffer) - start >= ENTRY_LIMIT:
                cut = start + _whole_characters(buffer, start, ENTRY_LIMIT)
            else:
                break
            entries.append(self._entry(stream, bytes(buffer[start:cut])))
            start = cut
        if entries:
            del buffer[:start]
            self._store(entries)

    def end(self, stream: int) -> None:
        """The stream is over: log what had no newline."""
        rest = bytes(self._partial[stream])
        self._partial[stream].clear()
        if rest:
            self._store([self._entry(stream, rest)])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _entry(self, stream: int, text: bytes) -> bytes:
        log = encode_basestring(text.decode("utf-8", "replace"))
        return f'{{"log":{log},"stream":"{_STREAM_NAME[stream]}","time":"{self._now()}"}}\n'.encode()

    def _now(self) -> str:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._prefix}.{nanoseconds:09d}Z"

    def _store(self, entries: list[bytes]) -> None:
        pending: list[bytes] = []
        size = self._size
        for entry in entries:
            if self._max_size is not None and size > 0 and size + len(entry) > self._max_size:
                self._append(pending)
                self._rotate()
                pending, size = [], self._size
            pending.append(entry)
            size += len(entry)
        self._append(pending)

    def _append(self, entries: list[bytes]) -> None:
        data = memoryview(b"".join(entries))
        try:
            while data:
                written = os.write(self._fd, data)
                self._size += written
                data = data[written:]
        except OSError:
            self.lost_bytes += len(data)

    def _rotate(self) -> None:
        """Move path.N up by one and begin anew; a file that cannot be moved leaves the log growing."""
        try:
            for number in range(self._max_file - 1, 0, -1):
                source = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.rename(source, f"{self._path}.{number}")
            if self._max_file == 1:
                os.ftruncate(self._fd, 0)
                self._size = 0
                return
            self.close()
            self._open()
        except OSError:
            if self._fd < 0:
                with contextlib.suppress(OSError):
                    self._open()


def _whole_characters(buffer: bytearray, start: int, limit: int) -> int:
    """How many of ``limit`` bytes to take so that no UTF-8 character is cut (at most three fewer)."""
    for back in range(4):
        byte = buffer[start + limit - 1 - back]
        if byte < 0x80:
            return limit - back
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return limit if back + 1 >= needed else limit - 1 - back
    return limit
