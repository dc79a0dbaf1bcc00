"""Container output cut into entries and kept in files that rotate by size. What an entry's bytes are is the driver's.

A line longer than 16 KiB becomes several entries of which only the last ends in a newline, as Docker splits it. Rotated
files are path.1 (newest) to path.<max_file - 1>, with .gz once a child has compressed them. A failing write (full disk)
is counted and never stops the container. Readers are worker.containers.logs.
"""

from __future__ import annotations

import os
import struct
import time
import zlib

from worker.kernel import syscalls
from worker.kernel.bare import Any, signal, suppress

ENTRY_LIMIT = 16 * 1024
STREAM_NAME = {1: "stdout", 2: "stderr"}
_CHUNK = 1 << 16
_MUCH = 4096
# RFC 1952: deflate, with an extra field (Docker's last time) and a comment (which file it was).
_GZIP_HEAD = b"\x1f\x8b\x08\x14\x00\x00\x00\x00\x00\xff"


class LogFile:
    """``max_size`` in bytes, None for no rotation; ``max_file`` counts the current file too; ``compress`` the others.

    ``attrs``: labels and environment that every entry carries.
    """

    def __init__(
        self,
        path: str,
        max_size: int | None = None,
        max_file: int = 1,
        *,
        compress: bool = False,
        attrs: dict[str, str] | None = None,
    ) -> None:
        self._path = path
        self._max_size = max_size
        self._max_file = max(1, max_file)
        self._compress = compress
        self._compressing = -1
        self._partial = {1: bytearray(), 2: bytearray()}
        #: Where encoded entries go: to the file, or to a ring before it.
        self.sink = self.store
        self.lost_bytes = 0
        #: Entries that a ring had no room for; a file takes all.
        self.dropped = 0
        self._fd = -1
        self._size = 0
        self.begin(attrs or {})

    def open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size

    def begin(self, attrs: dict[str, str]) -> None:
        """Once, before the first ``entry``."""
        raise NotImplementedError

    def entry(self, stream: int, text: bytes) -> bytes:
        """The bytes of one entry; ``text`` ends in a newline unless its line goes on."""
        raise NotImplementedError

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
            entries.append(self.entry(stream, bytes(buffer[start:cut])))
            start = cut
        if entries:
            del buffer[:start]
            self.sink(entries)

    def handed(self) -> dict[str, Any] | None:
        """What another process's log with the same settings has to ``take``; None while it could not go on from there."""
        if self.sink != self.store or sum(map(len, self._partial.values())) > _MUCH or not self._is_compressed():
            return None
        partial = {str(stream): text.decode("latin-1") for stream, text in self._partial.items() if text}
        return {"partial": partial, "lost": self.lost_bytes}

    def take(self, handed: dict[str, Any]) -> None:
        self.lost_bytes = handed["lost"]
        for stream, text in handed["partial"].items():
            self._partial[int(stream)] += text.encode("latin-1")

    def end(self, stream: int) -> None:
        """The stream is over: log what had no newline."""
        rest = bytes(self._partial[stream])
        self._partial[stream].clear()
        if rest:
            self.sink([self.entry(stream, rest)])

    def flush(self) -> None:
        """Everything taken is in the file when this returns, as far as the disk lets it."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def store(self, entries: list[bytes]) -> None:
        with suppress(OSError):
            # For the first entry, and where a rotation that found no descriptor has left it closed.
            self.open()
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
            self.open()
            whole = self._size
            while data:
                written = os.write(self._fd, data)
                self._size += written
                data = data[written:]
        except OSError:
            self.lost_bytes += len(data)
            if self._fd < 0:
                return
            self._cut_half_entry(entries, whole)

    def _cut_half_entry(self, entries: list[bytes], whole: int) -> None:
        """A full disk may have taken the first half of an entry: what follows later must not be read as its end."""
        written = self._size - whole
        for entry in entries:
            if written < len(entry):
                break
            written -= len(entry)
        if written:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size - written)
                self._size -= written
                self.lost_bytes += written

    def _rotate(self) -> None:
        """Move path.N up by one and begin anew; a file that cannot be moved leaves the log growing."""
        self._is_compressed(wait=True)
        if self._fd < 0:
            return
        try:
            for number in range(self._max_file - 1, 0, -1):
                self._shift(number)
            if self._max_file == 1:
                os.ftruncate(self._fd, 0)
                self._size = 0
                return
            self.close()
            self.open()
            if self._compress:
                self._start_compressing()
        except OSError:
            with suppress(OSError):
                self.open()

    def _shift(self, number: int) -> None:
        """path.<number - 1> becomes path.<number>, compressed or not."""
        if number == 1:
            with suppress(FileNotFoundError):
                os.rename(self._path, f"{self._path}.1")
            return
        for suffix, other in (("", ".gz"), (".gz", "")):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}.{number - 1}{suffix}", f"{self._path}.{number}{suffix}")
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._path}.{number}{other}")

    def _start_compressing(self) -> None:
        """In a child: twenty megabytes take longer than the container's other output can wait."""
        pid = os.fork()
        if pid:
            with suppress(OSError):
                self._compressing = os.pidfd_open(pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.close_range(3)
            compress(f"{self._path}.1", f"{self._path}.1.gz")
        finally:
            os._exit(0)

    def _is_compressed(self, *, wait: bool = False) -> bool:
        """Whether no child is at it, whose file is to keep its name. By descriptor: a loop may have reaped it long ago."""
        if self._compressing >= 0:
            with suppress(ChildProcessError):
                if os.waitid(os.P_PIDFD, self._compressing, os.WEXITED | (0 if wait else os.WNOHANG)) is None:
                    return False
            os.close(self._compressing)
            self._compressing = -1
        return True


def compress(source: str, target: str) -> None:
    """``source`` becomes the gzip file ``target``; what fails leaves ``source``.

    The header's comment is the device, the inode and the time of last writing it had: a follower knows it again by them.
    """
    with open(source, "rb") as plain, open(f"{target}.tmp", "wb") as packed:
        known = os.fstat(plain.fileno())
        os.fchmod(packed.fileno(), known.st_mode & 0o777)
        last = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(known.st_mtime))
        extra = f'{{"lastTime":"{last}.{int(known.st_mtime % 1 * 1e9):09d}Z"}}'.encode()
        packed.write(_GZIP_HEAD + struct.pack("<H", len(extra)) + extra)
        packed.write(f"{known.st_dev}:{known.st_ino}:{known.st_mtime_ns}".encode() + b"\0")
        worker = zlib.compressobj(wbits=-15)
        crc = size = 0
        while data := plain.read(_CHUNK):
            packed.write(worker.compress(data))
            crc, size = zlib.crc32(data, crc), size + len(data)
        packed.write(worker.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF))
    os.rename(f"{target}.tmp", target)
    os.unlink(source)


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
