"""Taking a connection over from aiohttp: after our own head it is a raw stream in both directions.

aiohttp knows upgrades only as websockets, so the transport gets a new protocol, and aiohttp is told when the
connection is gone. It must not know what flows through. Measured origin: dependencies.md, row "hijack".
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections.abc import Mapping
from typing import Any

from aiohttp import web

READ_LIMIT = 256 * 1024
HEAD_SECONDS = 1.0
HEAD_POLL_SECONDS = 0.0005
# linux/sockios.h: bytes the other end has not read (unix) or not acknowledged (tcp).
SIOCOUTQ = 0x5411


class _Duplex(asyncio.StreamReaderProtocol):
    """The stream's protocol; tells aiohttp's, which owned the transport before, that the connection is lost."""

    def __init__(self, reader: asyncio.StreamReader, former: asyncio.BaseProtocol) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._former.connection_lost(exc)


class Spent(web.StreamResponse):
    """What aiohttp is given for a request whose answer is already on the wire; it closes the connection after."""

    @property
    def keep_alive(self) -> bool:
        return False

    async def prepare(self, request: web.BaseRequest) -> Any:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and header lines as bytes. Docker says ``101 UPGRADED``."""
    reason = "UPGRADED" if status == 101 else "OK"
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


async def _wait_head_read(transport: asyncio.Transport) -> None:
    """Waits, briefly, until the client has taken the head off the socket.

    The docker SDK reads the head through a buffer and the rest from the bare socket: output that arrives together with
    the head is lost to it. dockerd is slow enough never to show this.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HEAD_SECONDS
    while sock is not None and loop.time() < deadline and not transport.is_closing():
        try:
            (unread,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCOUTQ, b"\0\0\0\0"))
        except OSError:
            return
        if unread == 0 and not transport.get_write_buffer_size():
            break
        await asyncio.sleep(HEAD_POLL_SECONDS)
    if sock is not None and sock.family != socket.AF_UNIX:
        # Acknowledged by the client's kernel is not yet read by the client.
        await asyncio.sleep(4 * HEAD_POLL_SECONDS)


async def take(
    request: web.BaseRequest, status: int, headers: Mapping[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Answers ``status`` and ``headers`` and returns the connection. Raises ConnectionResetError: the client is gone.

    The request's body must have been read; on return nothing but the head has been sent.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client closed the connection before it was taken over")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_LIMIT, loop=loop)
    protocol = _Duplex(reader, request.protocol)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if not transport.is_reading():
        transport.resume_reading()
    transport.write(head(status, headers))
    await _wait_head_read(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def finish(writer: asyncio.StreamWriter) -> None:
    """Delivers what was written and closes; a client that is already gone is no error."""
    try:
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError:
        writer.transport.abort()
