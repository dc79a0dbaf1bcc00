"""One entry of a log: decide whether a reader wants it, print it; and the json-file form of it. Pure.

The form is Docker's: ``{"log":"text\\n","stream":"stdout","time":"RFC 3339"}``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from urllib.parse import quote_plus

import msgspec

from covey.clock import parse_rfc3339
from covey.engine_api import framing

STREAMS = {"stdout": framing.STDOUT, "stderr": framing.STDERR}


class _Line(msgspec.Struct):
    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Line)
_BLOCK = 64 * 1024


class Entry(NamedTuple):
    """``stamp`` as in the file; ``at`` the same as seconds since the epoch; ``stream`` 1 or 2."""

    stream: int
    text: bytes
    stamp: str
    at: float
    attrs: dict[str, str]


@dataclass(frozen=True)
class Query:
    """What a reader wants. ``tail``: last lines, None for all. ``since``, ``until``: seconds since the epoch, 0 open."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    tail: int | None = None
    since: float = 0.0
    until: float = 0.0

    def wants(self, entry: Entry) -> bool:
        """Whether stream and time fit."""
        if not (self.stdout if entry.stream == framing.STDOUT else self.stderr):
            return False
        return entry.at >= self.since and not (self.until and entry.at > self.until)


def parse(line: bytes) -> Entry | None:
    """The entry of one line; None for a damaged one (a power cut), which readers pass over."""
    try:
        raw = _DECODER.decode(line)
        at = parse_rfc3339(raw.time)
    except (msgspec.DecodeError, ValueError):
        return None
    return Entry(STREAMS.get(raw.stream, framing.STDOUT), raw.log.encode("utf-8", "surrogatepass"), raw.time, at, raw.attrs)


def split(data: bytes) -> tuple[list[Entry], bytes]:
    """(the entries of the whole lines of ``data``, what is left of it)."""
    *lines, rest = data.split(b"\n")
    return [entry for line in lines if (entry := parse(line)) is not None], rest


def tail_offset(file: BinaryIO, lines: int) -> tuple[int, int]:
    """(offset of the last ``lines`` whole lines, how many lines that is); a line without its end is not counted."""
    end = file.seek(0, os.SEEK_END)
    found, at = 0, end
    while at > 0:
        start = max(0, at - _BLOCK)
        file.seek(start)
        block = file.read(at - start)
        position = len(block)
        while (position := block.rfind(b"\n", 0, position)) >= 0:
            found += 1
            if found == lines + 1:
                return start + position + 1, lines
        at = start
    return 0, found


def fixed_stamp(stamp: str) -> str:
    """The time with exactly nine digits of a second, as Docker prints it before a line."""
    head, dot, rest = stamp.partition(".")
    if not dot:
        zone = "Z" if head.endswith("Z") else ""
        return f"{head.removesuffix('Z')}.000000000{zone}"
    digits = rest.rstrip("Z")
    return f"{head}.{digits[:9]:0<9}Z"


def render(entry: Entry, query: Query, tty: bool) -> bytes:
    """The line as a client gets it: framed, or bare for a container with a terminal."""
    text = entry.text
    if query.details:
        pairs = sorted(entry.attrs.items())
        text = ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs).encode() + b" " + text
    if query.timestamps:
        text = fixed_stamp(entry.stamp).encode() + b" " + text
    return text if tty else framing.encode(entry.stream, text)
