"""TLS for asyncio that keeps half-close: a plain local socket whose other end is encrypted onto the wire.

asyncio's own TLS closes both directions at the peer's close_notify. It must not know HTTP or certificates' meaning.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from covey.engine_api.tls import TlsStream

PIECE = 64 * 1024
HANDSHAKE_SECONDS = 10.0

Duplex = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def handshake(wire: Duplex, stream: TlsStream) -> list[bytes]:
    """Runs the handshake; returns plain text that came with its end. Raises ssl.SSLError, TimeoutError or OSError."""
    reader, writer = wire
    early: list[bytes] = []
    async with asyncio.timeout(HANDSHAKE_SECONDS):
        try:
            stream.handshake()
            while not stream.established:
                await _flush(stream, writer)
                data = await reader.read(PIECE)
                early += stream.feed(data)
                if not data and not stream.established:
                    raise ConnectionResetError("the connection ended within the TLS handshake")
        finally:
            # A refusal is an alert, which the client should see.
            writer.write(stream.outgoing())
        await writer.drain()
    return early


async def _flush(stream: TlsStream, writer: asyncio.StreamWriter) -> None:
    data = stream.outgoing()
    if data:
        writer.write(data)
        await writer.drain()


async def pump(wire: Duplex, stream: TlsStream, plain: socket.socket, early: list[bytes], keep_reading: bool = False) -> None:
    """Carries bytes between ``plain`` and the wire until the plain side has ended; closes both.

    The wire's end becomes a half-close of ``plain``; its loss, a full close. ``keep_reading``: the end of the plain side
    is a half-close too, and the wire is read to its own end (an HTTP client's side; a server's end is final).
    """
    reader, writer = wire
    try:
        inner_reader, inner_writer = await asyncio.open_connection(sock=plain, limit=4 * PIECE)
    except OSError:
        plain.close()
        writer.close()
        return

    async def decrypt() -> None:
        pieces = early
        while True:
            for piece in pieces:
                inner_writer.write(piece)
            await inner_writer.drain()
            if stream.ended:
                break
            pieces = stream.feed(await reader.read(PIECE))
            await _flush(stream, writer)
        inner_writer.write_eof()

    async def encrypt() -> None:
        while data := await inner_reader.read(PIECE):
            stream.write(data)
            await _flush(stream, writer)
        stream.close_write()
        await _flush(stream, writer)

    inward = asyncio.create_task(decrypt())
    # A wire that breaks must reach the plain side, or nobody would cancel the handler behind it.
    inward.add_done_callback(lambda done: None if done.cancelled() or not done.exception() else inner_writer.close())
    try:
        await encrypt()
        if keep_reading:
            await inward
    except (OSError, ssl.SSLError):
        pass
    finally:
        inward.cancel()
        await asyncio.gather(inward, return_exceptions=True)
        inner_writer.close()
        writer.close()


class Secured(NamedTuple):
    """A TLS connection as a plain one. ``pump`` ends by itself after both ends are closed; whoever ends early cancels it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    certificate: Mapping[str, Any] | None
    pump: asyncio.Task[None]


async def secure(wire: Duplex, stream: TlsStream) -> Secured:
    """TLS over a connected ``wire``, for the end that speaks HTTP as a client, whatever its role in TLS.

    Raises ssl.SSLError, TimeoutError or OSError when the handshake fails; the wire is closed then.
    """
    try:
        early = await handshake(wire, stream)
    except BaseException:
        wire[1].close()
        raise
    outer, inner = socket.socketpair()
    for end in (outer, inner):
        end.setblocking(False)
    task = asyncio.create_task(pump(wire, stream, outer, early, keep_reading=True))
    reader, writer = await asyncio.open_connection(sock=inner, limit=4 * PIECE)
    return Secured(reader, writer, stream.peer_certificate(), task)
