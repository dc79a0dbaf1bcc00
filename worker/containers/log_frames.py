"""One entry of a log in Docker's local format: parse it, find the last ones. Pure.

A protobuf LogEntry between two equal 4-byte big-endian lengths; its fields are told in worker.shim.locallog, which writes it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import BinaryIO

from worker.containers.log_lines import STREAMS, Entry

_LENGTH = struct.Struct(">I")
#: What Docker takes for the largest entry; more is damage.
LARGEST = 1_000_000


class Damaged(ValueError):
    """The bytes are no entry, and where the next one begins cannot be known."""


def split(data: bytes) -> tuple[list[Entry], bytes]:
    """(the whole entries of ``data``, what is left of it). Raises Damaged."""
    found: list[Entry] = []
    at = 0
    while len(data) >= at + 4:
        (length,) = _LENGTH.unpack_from(data, at)
        if length > LARGEST:
            raise Damaged(f"an entry of {length} bytes")
        end = at + 4 + length
        if len(data) < end + 4:
            break
        if _LENGTH.unpack_from(data, end) != (length,):
            raise Damaged("an entry whose two lengths differ")
        found.append(parse(data[at + 4 : end]))
        at = end + 4
    return found, data[at:]


def tail_offset(file: BinaryIO, entries: int) -> tuple[int, int]:
    """(offset of the last ``entries`` entries, how many that is), by the lengths after them; a half one is not counted."""
    at = file.seek(0, os.SEEK_END)
    found = 0
    while at > 8 and found < entries:
        file.seek(at - 4)
        (length,) = _LENGTH.unpack(file.read(4))
        start = at - 8 - length
        if length > LARGEST or start < 0:
            break
        file.seek(start)
        if _LENGTH.unpack(file.read(4)) != (length,):
            break
        at, found = start, found + 1
    return (at, found) if found or not entries else _from_the_front(file, entries)


def _from_the_front(file: BinaryIO, entries: int) -> tuple[int, int]:
    """For a file that does not end with a whole entry (a power cut, a write under way)."""
    size = file.seek(0, os.SEEK_END)
    offsets: list[int] = []
    at = 0
    while at + 4 <= size:
        file.seek(at)
        (length,) = _LENGTH.unpack(file.read(4))
        if length > LARGEST or at + 8 + length > size:
            break
        offsets.append(at)
        at += 8 + length
    kept = offsets[-entries:]
    return (kept[0], len(kept)) if kept else (0, 0)


def parse(body: bytes) -> Entry:
    """The entry of one LogEntry. Raises Damaged."""
    source, at, line, partial, last = b"stdout", 0, b"", False, False
    attrs: dict[str, str] = {}
    for number, value in _fields(body):
        match number, value:
            case 1, bytes():
                source = value
            case 2, int():
                at = value
            case 3, bytes():
                line = value
            case 4, int():
                partial = bool(value)
            case 5, bytes():
                last = dict(_fields(value)).get(1) == 1
            case 6, bytes():
                pair = dict(_fields(value))
                attrs[_text(pair.get(1))] = _text(pair.get(2))
    if not partial or last:
        line += b"\n"
    return Entry(STREAMS.get(_text(source), STREAMS["stdout"]), line, _stamp(at), at / 1e9, attrs)


def _text(value: int | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _stamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message's varints and byte strings; other kinds do not occur here."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        if key & 7 == 0:
            number, at = _varint(body, at)
            yield key >> 3, number
        elif key & 7 == 2:
            length, at = _varint(body, at)
            if at + length > len(body):
                raise Damaged("a field that is longer than its entry")
            yield key >> 3, body[at : at + length]
            at += length
        else:
            raise Damaged(f"a field of kind {key & 7}")


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body) and shift < 64:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Damaged("a number without its end")
