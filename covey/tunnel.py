"""A byte stream inside a TLS stream that can be closed in one direction, which TLS over asyncio cannot.

A dial-back connection carries HTTP that may be taken over (attach, exec), where the end of stdin must reach the process
while its output goes on. So bytes travel in chunks: a 4-byte big-endian length and that many bytes; length 0 ends this
direction. ``splice`` joins such a stream with a plain one; it knows nothing of what flows through.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LARGEST = 256 * 1024
_LENGTH = struct.Struct(">I")

Duplex = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _pack(plain: asyncio.StreamReader, framed: asyncio.StreamWriter) -> None:
    while data := await plain.read(LARGEST):
        framed.write(_LENGTH.pack(len(data)))
        framed.write(data)
        await framed.drain()
    framed.write(_LENGTH.pack(0))
    await framed.drain()


async def _unpack(framed: asyncio.StreamReader, plain: asyncio.StreamWriter) -> None:
    while length := _LENGTH.unpack(await framed.readexactly(_LENGTH.size))[0]:
        if length > LARGEST:
            raise ConnectionError(f"a chunk of {length} bytes: the peer does not speak this tunnel")
        plain.write(await framed.readexactly(length))
        await plain.drain()
    if plain.can_write_eof():
        plain.write_eof()


async def splice(framed: Duplex, plain: Duplex) -> None:
    """Carry bytes both ways until both directions have ended, or either stream breaks; then both are closed."""
    try:
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(_pack(plain[0], framed[1]))
            pumps.create_task(_unpack(framed[0], plain[1]))
    except* (OSError, EOFError):
        pass
    finally:
        for _, writer in (framed, plain):
            writer.close()
        for _, writer in (framed, plain):
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def through(framed: Duplex) -> AsyncIterator[Duplex]:
    """The near end of a tunnel as an ordinary stream with half-close; the tunnel ends with the context."""
    near, far = socket.socketpair()
    plain = await asyncio.open_unix_connection(sock=far, limit=LARGEST)
    pump = asyncio.create_task(splice(framed, plain), name="tunnel")
    try:
        reader, writer = await asyncio.open_unix_connection(sock=near, limit=LARGEST)
        try:
            yield reader, writer
        finally:
            writer.close()
    finally:
        # What was written before the close is still on its way: the pump ends by itself when both ends are closed.
        done, _ = await asyncio.wait({pump}, timeout=5.0)
        if not done:
            pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump
