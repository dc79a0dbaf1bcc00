"""Docker's raw-stream framing and JSON lines, sans-io: bytes in, frames out.

A frame is an 8-byte head (stream number, three zero bytes, big-endian length) and its payload; stream 0 is stdin,
1 stdout, 2 stderr, 3 an error of the daemon's. With a TTY there is no framing. It must not know sockets.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

STDIN, STDOUT, STDERR, SYSTEM_ERROR = 0, 1, 2, 3
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
FRAME_LIMIT = 64 * 1024 * 1024
_HEAD = struct.Struct(">BxxxL")


class FramingError(ValueError):
    """The bytes are not Docker frames (often: a TTY stream read as a framed one)."""


class Frame(NamedTuple):
    """One piece of output. An empty payload on stream 0 means that stdin has ended."""

    stream: int
    payload: bytes


def content_type(version: str, tty: bool) -> str:
    """The media type of attach, exec and log streams: since 1.42 a framed stream has a name of its own."""
    major, _, minor = version.partition(".")
    framed = not tty and (int(major), int(minor or 0)) >= (1, 42)
    return MULTIPLEXED if framed else RAW


def encode(stream: int, payload: bytes) -> bytes:
    """One frame as bytes."""
    return _HEAD.pack(stream, len(payload)) + payload


class Decoder:
    """Collects bytes until frames are whole; holds at most one unfinished frame."""

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self._held = bytearray()
        self._limit = limit

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame; not 0 at end of stream means that it was cut."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises FramingError for an unknown stream or an absurd length."""
        held = self._held
        held += data
        frames: list[Frame] = []
        at = 0
        while len(held) - at >= _HEAD.size:
            stream, length = _HEAD.unpack_from(held, at)
            if stream > SYSTEM_ERROR or held[at + 1 : at + 4] != b"\0\0\0":
                raise FramingError(f"stream number {stream} in a frame's head: is this a TTY stream?")
            if length > self._limit:
                raise FramingError(f"a frame of {length} bytes is larger than {self._limit}")
            end = at + _HEAD.size + length
            if end > len(held):
                break
            frames.append(Frame(stream, bytes(held[at + _HEAD.size : end])))
            at = end
        del held[:at]
        return frames


def line(value: Any) -> bytes:
    """One object of a JSON stream (events, pull, build, load), with the line end Docker writes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\r\n"


def error_line(message: str, code: int = 0) -> bytes:
    """How a progress stream tells a failure after its head was sent."""
    detail: dict[str, Any] = {"message": message}
    if code:
        detail["code"] = code
    return line({"errorDetail": detail, "error": message})


class Lines:
    """Splits a JSON stream into objects; blank lines and the separators of json-seq are skipped."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The objects that ``data`` completes. Raises ValueError for a line that is not JSON."""
        self._held += data
        *whole, rest = self._held.split(b"\n")
        self._held = bytearray(rest)
        stripped = (text.strip(b"\x1e \t\r") for text in whole)
        return [json.loads(text) for text in stripped if text]

    def end(self) -> list[Any]:
        """The last object, when the stream ended without a line end."""
        return self.feed(b"\n")
