"""TLS for asyncio that keeps half-close: a plain local socket whose other end is encrypted onto the wire.

asyncio's own TLS closes both directions at the peer's close_notify. It must not know HTTP or certificates' meaning.
"""

from __future__ import annotations

import asyncio
import socket
import ssl

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


async def pump(wire: Duplex, stream: TlsStream, plain: socket.socket, early: list[bytes]) -> None:
    """Carries bytes between ``plain`` and the wire until the plain side has ended; closes both.

    The wire's end becomes a half-close of ``plain``; its loss, a full close.
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
    except (OSError, ssl.SSLError):
        pass
    finally:
        inward.cancel()
        await asyncio.gather(inward, return_exceptions=True)
        inner_writer.close()
        writer.close()
