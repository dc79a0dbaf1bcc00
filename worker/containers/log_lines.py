"""One line of a json-file log: parse it, decide whether a reader wants it, print it. Pure.

The form is Docker's: ``{"log":"text\\n","stream":"stdout","time":"RFC 3339"}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from covey.clock import parse_rfc3339
from covey.engine_api import framing

_STREAMS = {"stdout": framing.STDOUT, "stderr": framing.STDERR}


class _Line(msgspec.Struct):
    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Line)


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
    return Entry(_STREAMS.get(raw.stream, framing.STDOUT), raw.log.encode("utf-8", "surrogatepass"), raw.time, at, raw.attrs)


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
        text = ",".join(f"{key}={value}" for key, value in sorted(entry.attrs.items())).encode() + b" " + text
    if query.timestamps:
        text = fixed_stamp(entry.stamp).encode() + b" " + text
    return text if tty else framing.encode(entry.stream, text)
