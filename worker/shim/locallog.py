"""The entries of Docker's local log: a protobuf LogEntry between two equal 4-byte big-endian lengths.

LogEntry (moby, daemon/logger/internal/logdriver/entry.proto): 1 source, 2 time_nano, 3 line without its newline,
4 partial, 5 {1 last, 2 id, 3 ordinal}, 6 repeated {1 key, 2 value}. Files and lines are worker.shim.logfile.
"""

from __future__ import annotations

import os
import struct
import time

from worker.shim.logfile import STREAM_NAME, LogFile

_LENGTH = struct.Struct(">I")
_SOURCE = {stream: bytes((0x0A, len(name))) + name.encode() for stream, name in STREAM_NAME.items()}


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag << 3 | 2,)) + varint(len(data)) + data


class LocalLog(LogFile):
    """One LogEntry between its lengths."""

    def begin(self, attrs: dict[str, str]) -> None:
        pairs = sorted(attrs.items())
        self._attrs = b"".join(_field(6, _field(1, key.encode()) + _field(2, value.encode())) for key, value in pairs)
        #: stream → (id, ordinal of the next piece, time) of a line that goes on.
        self._unfinished: dict[int, tuple[str, int, int]] = {}

    def entry(self, stream: int, text: bytes) -> bytes:
        """All pieces of one line carry the time of the first."""
        whole = text.endswith(b"\n")
        line = text[:-1] if whole else text
        begun = self._unfinished.pop(stream, None)
        at = begun[2] if begun else time.time_ns()
        partial = b""
        if begun or not whole:
            name, ordinal, _ = begun or (os.urandom(32).hex(), 1, at)
            if not whole:
                self._unfinished[stream] = (name, ordinal + 1, at)
            piece = (b"\x08\x01" if whole else b"") + _field(2, name.encode()) + b"\x18" + varint(ordinal)
            partial = b"\x20\x01" + _field(5, piece)
        said = _field(3, line) if line else b""
        body = _SOURCE[stream] + b"\x10" + varint(at) + said + partial + self._attrs
        length = _LENGTH.pack(len(body))
        return length + body + length
