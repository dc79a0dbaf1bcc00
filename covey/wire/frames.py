"""Bytes ↔ messages, without I/O: ``encode(message)`` and ``FrameReader.feed(bytes)``.

A frame is one MessagePack map; MessagePack delimits itself, so there is no length prefix. A peer that sends something
else, or more than ``MAX_FRAME`` bytes without completing a message, has broken the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgpack
import msgspec

from covey.wire.messages import AnyMessage

#: The largest frame a peer may send: a complete assignment of a few thousand tasks and their secrets.
MAX_FRAME = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()


class ProtocolError(Exception):
    """The peer does not speak this protocol; the connection is to be closed."""


def encode(message: AnyMessage) -> bytes:
    """The frame of ``message``."""
    return _encoder.encode(message)


class FrameReader:
    """Collects bytes until they are messages. After a ProtocolError, or once released, it reads no more."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=max_frame, raw=False, strict_map_key=True)
        self._released = False
        self._fed = bytearray()
        self._consumed = 0

    def feed(self, data: bytes) -> Iterator[AnyMessage]:
        """The messages completed by ``data``, in order. A caller may ``release`` between two of them."""
        self._fed += data
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull as full:
            raise ProtocolError("a frame is larger than this side accepts; is the peer a Covey of this release?") from full
        while not self._released:
            try:
                raw = self._unpacker.unpack()
            except msgpack.OutOfData:
                break
            except (ValueError, msgpack.UnpackException) as wrong:
                raise ProtocolError(f"not a frame: {wrong}; is the peer a Covey cluster port?") from wrong
            self._drop(self._unpacker.tell())
            try:
                message = msgspec.convert(raw, AnyMessage)
            except msgspec.ValidationError as wrong:
                raise ProtocolError(f"not a message of this protocol: {wrong}") from wrong
            yield message

    def _drop(self, position: int) -> None:
        del self._fed[: position - self._consumed]
        self._consumed = position

    def release(self) -> bytes:
        """Stop framing and hand over what came behind the last message: the connection changes its protocol here."""
        self._released = True
        rest = bytes(self._fed)
        self._fed.clear()
        return rest
