"""Recognises how a layer or archive is compressed and reads it as plain bytes.

Decides by magic number, never by name or media type. Knows nothing of tar.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from covey.errors import InvalidArgument

CHUNK = 1 << 18
WINDOW_LIMIT = 1 << 27
"""Bytes of decoder window a zstd or xz stream may ask for: more is a memory bomb."""


INFLATION = 200
INFLATION_FREE = 1 << 30
"""A stream may have INFLATION times the bytes it came in, and INFLATION_FREE in any case: gzip makes a thousand zeros of one
byte, which real layers do too, but not by the gigabyte."""


class Readable(Protocol):
    """What is read here: ``read(n)`` gives up to ``n`` bytes, ``b""`` at the end."""

    def read(self, n: int = -1, /) -> bytes: ...


class BadCompression(InvalidArgument):
    """The stream is damaged or ends early."""


class Peeked:
    """A stream whose first bytes were read ahead."""

    def __init__(self, stream: Readable, want: int) -> None:
        self._stream = stream
        self.head = read_up_to(stream, want)
        self._left = self.head
        self.taken = len(self.head)
        """Bytes read of the stream so far."""

    def read(self, n: int = -1, /) -> bytes:
        if not self._left or n < 0:
            data = self._stream.read(n)
            self.taken += len(data)
            taken, self._left = self._left + data, b""
            return taken
        taken, self._left = self._left[:n], self._left[n:]
        return taken

    def readinto(self, buffer: memoryview, /) -> int:
        """As file objects have it: isal's reader asks for it."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_up_to(stream: Readable, size: int) -> bytes:
    """``size`` bytes of ``stream``, fewer only at its end: sockets and pipes give short reads."""
    parts = []
    while size > 0:
        part = stream.read(min(size, CHUNK))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Guarded:
    """Turns every decoder's own exception into BadCompression."""

    def __init__(self, name: str, inner: Readable, errors: tuple[type[Exception], ...]) -> None:
        self._name, self._inner, self._errors = name, inner, errors

    def read(self, n: int = -1, /) -> bytes:
        try:
            return self._inner.read(n)
        except self._errors as error:
            raise BadCompression(f"{self._name} stream is damaged or cut short: {error}") from error


class _Bounded:
    """Decompressed bytes, no more of them than those they were made of may give."""

    def __init__(self, inner: Readable, source: Peeked) -> None:
        self._inner, self._source = inner, source
        self._given = 0

    def read(self, n: int = -1, /) -> bytes:
        data = self._inner.read(n)
        self._given += len(data)
        if self._given > max(INFLATION_FREE, INFLATION * self._source.taken):
            raise BadCompression(
                f"the stream inflates too much: {self._source.taken} bytes give {self._given} and more "
                f"(more than {INFLATION} for one)"
            )
        return data


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Multistream:
    """bzip2 and xz: one or more streams after another, with bounded output a call."""

    def __init__(self, stream: Readable, make: Callable[[], _Decoder]) -> None:
        self._stream, self._make = stream, make
        self._decoder = make()

    def read(self, n: int = -1, /) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data or self._stream.read(CHUNK)
                if not data.strip(b"\0"):
                    return b""
                self._decoder = self._make()
            elif self._decoder.needs_input:
                data = self._stream.read(CHUNK)
                if not data:
                    raise EOFError("unexpected end")
            out = self._decoder.decompress(data, n)
            if out:
                return out


def _gzip(stream: Readable) -> Readable:
    errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        from isal.igzip import IGzipFile as File
        from isal.isal_zlib import error

        errors = (*errors, cast(type[Exception], error))
    except ImportError:
        from gzip import GzipFile as File
    inner = File(fileobj=cast(Any, stream), mode="rb")
    return _Guarded("gzip", cast(Readable, inner), errors)


def _zstd(stream: Readable) -> Readable:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT)
    inner = decoder.stream_reader(cast(Any, stream), read_size=CHUNK, read_across_frames=True)
    return _Guarded("zstd", cast(Readable, inner), (zstandard.ZstdError,))


def _bzip2(stream: Readable) -> Readable:
    return _Guarded("bzip2", _Multistream(stream, bz2.BZ2Decompressor), (OSError, EOFError))


def _xz(stream: Readable) -> Readable:
    def make() -> _Decoder:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_LIMIT)

    return _Guarded("xz", _Multistream(stream, make), (lzma.LZMAError, EOFError))


_BY_MAGIC: tuple[tuple[bytes, str, Callable[[Readable], Readable]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\x00", "xz", _xz),
)
_LONGEST_MAGIC = max(len(magic) for magic, _, _ in _BY_MAGIC)


def kind(head: bytes) -> str | None:
    """ "gzip", "zstd", "bzip2" or "xz" for a stream that begins with ``head``; None when it is plain."""
    return next((name for magic, name, _ in _BY_MAGIC if head.startswith(magic)), None)


def plain(stream: Readable) -> Readable:
    """``stream`` decompressed as its first bytes say. Reading raises BadCompression when it is damaged."""
    peeked = Peeked(stream, _LONGEST_MAGIC)
    for magic, _, opener in _BY_MAGIC:
        if peeked.head.startswith(magic):
            return _Bounded(opener(peeked), peeked)
    return peeked
