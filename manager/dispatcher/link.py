"""One framed connection on the cluster port, the manager's end: messages in, messages out, who the peer is.

It decides nothing; purposes are port.py's table.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from covey.errors import InvalidArgument
from covey.tls import Peer
from covey.wire.frames import FrameReader, encode
from covey.wire.messages import AnyMessage

READ_SIZE = 256 * 1024

Expected = TypeVar("Expected", bound=AnyMessage)


class Closed(Exception):
    """The peer has ended the connection, or it broke."""


class Link:
    """``peer`` is None for a client without a certificate; ``address`` is its IP address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer | None) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._ready: list[AnyMessage] = []
        self.peer = peer
        name = writer.get_extra_info("peername")
        self.address = str(name[0]) if name else ""

    async def send(self, message: AnyMessage) -> None:
        """Write one message; slow peers hold the caller back. Raises Closed."""
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise Closed(str(error)) from error

    async def receive(self) -> AnyMessage:
        """The next message. Raises Closed, and frames.ProtocolError for nonsense."""
        while not self._ready:
            try:
                data = await self._reader.read(READ_SIZE)
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed("the peer closed the connection")
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def expect(self, kind: type[Expected], seconds: float) -> Expected:
        """The next message, which must be a ``kind`` and come within ``seconds``. Raises InvalidArgument, TimeoutError."""
        async with asyncio.timeout(seconds):
            message = await self.receive()
        if not isinstance(message, kind):
            raise InvalidArgument(f"the client sent {type(message).__name__} where {kind.__name__} was due")
        return message

    def release(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The bare stream, to change its protocol. Raises InvalidArgument when the peer has already said more."""
        if self._ready or self._frames.release():
            raise InvalidArgument("the client talked before the connection was taken over")
        return self._reader, self._writer

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Close without waiting for what is still to be sent."""
        self._writer.transport.abort()
