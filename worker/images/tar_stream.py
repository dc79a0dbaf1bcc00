"""Reads a tar stream entry by entry: V7, ustar, GNU and PAX headers, long names, extended attributes, sparse maps.

It parses and bounds; it writes nothing and judges no path (worker.images.unpack does). Own parser, because an archive
from outside must not decide how much memory a header takes. Formats: POSIX.1-2017 pax, GNU tar manual (tar internals).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from covey.errors import InvalidArgument
from worker.images.compression import CHUNK, Readable, read_up_to

BLOCK = 512
_DISK_BLOCK = 4096
Kind = Literal["file", "hardlink", "symlink", "char", "block", "directory", "fifo"]

_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_XATTR_PREFIX = b"SCHILY.xattr."


class BadArchive(InvalidArgument):
    """The tar stream is damaged, cut short, or asks for more than it may have."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one archive may hold. Bytes, counts; the defaults are far above what images have."""

    total_bytes: int = 64 << 30
    entries: int = 5_000_000
    path_bytes: int = 4096
    name_bytes: int = 255
    header_bytes: int = 1 << 20
    sparse_pieces: int = 100_000
    apparent_bytes: int = 1 << 40
    """What all sparse files together may claim to hold."""


@dataclass(slots=True)
class Entry:
    """One member. ``size`` is what the file will have; ``sparse`` lists (offset, length) of its stored pieces."""

    name: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: str
    major: int
    minor: int
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None


class TarReader:
    """Iterate for the entries; between two steps ``read`` gives the stored data of the current one.

    At the end of the archive the rest of the stream is read too, so that a hash over it is that of the whole.
    """

    def __init__(self, stream: Readable, limits: Limits | None = None) -> None:
        self._stream = stream
        self._limits = limits or Limits()
        self._data_left = 0
        self._padding = 0
        self._total = 0
        self._apparent = 0
        self._global: list[tuple[bytes, bytes]] = []

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        while (entry := self._next()) is not None:
            count += 1
            if count > self._limits.entries:
                raise BadArchive(f"archive has more than {self._limits.entries} entries")
            yield entry
        while self._take_some(CHUNK):
            pass

    def read(self, n: int = -1, /) -> bytes:
        """Up to ``n`` bytes of the current entry's stored data; ``b""`` at its end."""
        want = self._data_left if n < 0 else min(n, self._data_left)
        data = self._take_some(min(want, CHUNK)) if want else b""
        if want and not data:
            raise BadArchive("archive is cut short in the middle of a file")
        self._data_left -= len(data)
        return data

    def _take_some(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._total += len(data)
        if self._total > self._limits.total_bytes:
            raise BadArchive(f"archive is larger than the {self._limits.total_bytes} bytes it may have unpacked")
        return data

    def _take(self, size: int) -> bytes:
        data = read_up_to(self._stream, size)
        self._total += len(data)
        if len(data) < size:
            raise BadArchive("archive is cut short")
        return data

    def _skip_rest(self) -> None:
        left = self._data_left + self._padding
        while left:
            data = self._take_some(min(left, CHUNK))
            if not data and left > self._padding:
                raise BadArchive("archive is cut short")
            if not data:
                break  # The docker command ends a context it has put a Dockerfile into without padding.
            left -= len(data)
        self._data_left = self._padding = 0

    def _next(self) -> Entry | None:
        self._skip_rest()
        extended: list[tuple[bytes, bytes]] = []
        long_name = long_link = None
        while True:
            header = read_up_to(self._stream, BLOCK)
            self._total += len(header)
            if not header or not header.strip(b"\0"):
                return None
            if len(header) < BLOCK:
                raise BadArchive("archive is cut short in a header")
            _check_sum(header)
            kind, size = header[156:157], _number(header[124:136], "size")
            if kind == b"L":
                long_name = self._header_data(size).split(b"\0", 1)[0]
            elif kind == b"K":
                long_link = self._header_data(size).split(b"\0", 1)[0]
            elif kind in b"xX":
                extended = _pax_records(self._header_data(size))
            elif kind == b"g":
                self._global = _pax_records(self._header_data(size))
            elif kind == b"V":
                self._begin_data(size)
                self._skip_rest()
            else:
                return self._entry(header, kind, size, [*self._global, *extended], long_name, long_link)

    def _header_data(self, size: int) -> bytes:
        if size > self._limits.header_bytes:
            raise BadArchive(f"archive has an extended header of {size} bytes")
        return self._take(size + -size % BLOCK)[:size]

    def _begin_data(self, size: int) -> None:
        self._data_left, self._padding = size, -size % BLOCK

    def _entry(
        self,
        header: bytes,
        kind: bytes,
        size: int,
        records: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        if kind not in _KINDS:
            raise BadArchive(f"archive has an entry of unknown type {kind!r}")
        pax = dict(records) if records else {}
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or long_name or _ustar_name(header)
        link = pax.get(b"linkpath") or long_link or _text(header[157:257])
        stored = _decimal(pax[b"size"], "size") if b"size" in pax else size
        what: Kind = _KINDS[kind]
        if what == "file" and name.endswith(b"/"):
            what = "directory"
        entry = Entry(
            name=os.fsdecode(name),
            kind=what,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=_decimal(pax[b"uid"], "uid") if b"uid" in pax else _number(header[108:116], "uid"),
            gid=_decimal(pax[b"gid"], "gid") if b"gid" in pax else _number(header[116:124], "gid"),
            size=stored if what == "file" else 0,
            mtime_ns=_nanoseconds(pax[b"mtime"]) if b"mtime" in pax else _number(header[136:148], "mtime") * 10**9,
            link=os.fsdecode(link),
            major=_number(header[329:337], "major") if what in ("char", "block") else 0,
            minor=_number(header[337:345], "minor") if what in ("char", "block") else 0,
            xattrs=_xattrs(records) if records else {},
        )
        # Links and devices carry a size in some archives; only PAX hard links may really carry data, which we skip.
        self._begin_data(stored if what in ("file", "hardlink") or kind == b"5" else 0)
        if kind == b"S":
            self._gnu_sparse(entry, header)
        elif records and any(key.startswith(b"GNU.sparse.") for key, _ in records):
            self._pax_sparse(entry, records, pax)
        return entry

    def _gnu_sparse(self, entry: Entry, header: bytes) -> None:
        pieces = _sparse_slots(header[386:482], 4)
        more = header[482] != 0
        while more:
            if len(pieces) > self._limits.sparse_pieces:
                raise BadArchive(f"sparse file {entry.name!r} has too many pieces")
            block = self._take(BLOCK)
            pieces += _sparse_slots(block, 21)
            more = block[504] != 0
        self._set_sparse(entry, pieces, _number(header[483:495], "size"))

    def _pax_sparse(self, entry: Entry, records: list[tuple[bytes, bytes]], pax: dict[bytes, bytes]) -> None:
        if b"GNU.sparse.major" in pax:
            numbers = self._sparse_map_in_data(entry)
        elif b"GNU.sparse.map" in pax:
            numbers = [_decimal(n, "sparse map") for n in pax[b"GNU.sparse.map"].split(b",") if n]
        else:
            wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            numbers = [_decimal(value, "sparse map") for key, value in records if key in wanted]
        real = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
        if real is None or len(numbers) % 2:
            raise BadArchive(f"sparse file {entry.name!r} has an incomplete map")
        self._set_sparse(entry, list(zip(numbers[::2], numbers[1::2])), _decimal(real, "size"))

    def _sparse_map_in_data(self, entry: Entry) -> list[int]:
        """PAX 1.0: decimal lines at the head of the data, padded to a block; the first counts the pairs."""
        buffer = b""
        wanted = 1
        while buffer.count(b"\n") < wanted:
            if len(buffer) > 2 * 20 * self._limits.sparse_pieces or self._data_left < BLOCK:
                raise BadArchive(f"sparse file {entry.name!r} has a damaged map")
            buffer += self._take(BLOCK)
            self._data_left -= BLOCK
            if wanted == 1 and b"\n" in buffer:
                pairs = _decimal(buffer.split(b"\n", 1)[0], "sparse map")
                if pairs > self._limits.sparse_pieces:
                    raise BadArchive(f"sparse file {entry.name!r} has too many pieces")
                wanted += 2 * pairs
        return [_decimal(line, "sparse map") for line in buffer.split(b"\n")[1:wanted]]

    def _set_sparse(self, entry: Entry, pieces: list[tuple[int, int]], real_size: int) -> None:
        kept = [(offset, length) for offset, length in pieces if length]
        overlapping = any(a + n > b for (a, n), (b, _) in pairwise(kept))
        beyond = kept and kept[-1][0] + kept[-1][1] > real_size
        if len(kept) > self._limits.sparse_pieces or overlapping or beyond:
            raise BadArchive(f"sparse file {entry.name!r} has a map that contradicts itself")
        if sum(length for _, length in kept) != self._data_left:
            raise BadArchive(f"sparse file {entry.name!r} has a map that does not fit its data")
        self._apparent += real_size
        if self._apparent > self._limits.apparent_bytes:
            raise BadArchive(f"sparse file {entry.name!r} claims to hold {real_size} bytes, more than an archive may")
        # A byte in a hole takes a whole block of the disk.
        self._total += sum(max(0, _DISK_BLOCK - length) for _, length in kept)
        entry.sparse, entry.size = kept, real_size


def _xattrs(records: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {os.fsdecode(key[len(_XATTR_PREFIX) :]): value for key, value in records if key.startswith(_XATTR_PREFIX)}


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _ustar_name(header: bytes) -> bytes:
    name = _text(header[0:100])
    # GNU headers ("ustar  ") keep times where POSIX ones keep the prefix.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _check_sum(header: bytes) -> None:
    try:
        wanted = _number(header[148:156], "checksum")
    except BadArchive:
        wanted = -1
    # The checksum itself counts as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 == wanted:
        return
    spaced = header[:148] + b" " * 8 + header[156:]
    if sum(byte - 256 if byte > 127 else byte for byte in spaced) != wanted:
        raise BadArchive("not a tar archive, or a damaged one: a header's checksum is wrong")


def _number(raw: bytes, what: str) -> int:
    """A header number: octal text, or base 256 when the top bit is set (GNU, star)."""
    plain = raw.rstrip(b"\0 ")
    if plain.isdigit():
        try:
            return int(plain, 8)
        except ValueError:
            raise BadArchive(f"archive has a bad {what} field: {raw!r}") from None
    if raw[0] in (0x80, 0xFF):
        value = int.from_bytes(raw[1:], "big", signed=False) - (256 ** (len(raw) - 1) if raw[0] == 0xFF else 0)
    else:
        digits = raw.split(b"\0", 1)[0].strip()
        try:
            value = int(digits, 8) if digits else 0
        except ValueError:
            raise BadArchive(f"archive has a bad {what} field: {raw!r}") from None
    if value < 0 and what != "mtime":
        raise BadArchive(f"archive has a negative {what} field")
    return value


def _decimal(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > 20:
        raise BadArchive(f"archive has a bad {what}: {raw[:40]!r}")
    return int(raw)


def _nanoseconds(raw: bytes) -> int:
    """A PAX time, decimal seconds with a fraction and perhaps a sign, in nanoseconds."""
    sign = -1 if raw.startswith(b"-") else 1
    whole, _, fraction = raw.lstrip(b"-").partition(b".")
    return sign * (_decimal(whole or b"0", "time") * 10**9 + _decimal((fraction + b"0" * 9)[:9], "time"))


def _pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """``<length> <key>=<value>\\n`` records in order; keys may repeat (sparse 0.0)."""
    records = []
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 21)
        length = _decimal(data[at:space], "extended header") if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if space <= at or length <= space - at or at + length > len(data) or not equals or not value.endswith(b"\n"):
            raise BadArchive("archive has a damaged extended header")
        records.append((key, value[:-1]))
        at += length
    return records


def _sparse_slots(raw: bytes, count: int) -> list[tuple[int, int]]:
    slots = [raw[i * 24 : i * 24 + 24] for i in range(count)]
    return [(_number(s[:12], "sparse map"), _number(s[12:], "sparse map")) for s in slots if s.strip(b"\0")]
