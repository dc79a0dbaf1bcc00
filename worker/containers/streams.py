"""Couples a client's hijacked connection with an attach stream of the shim, in both directions.

Without a terminal the shim's frames are Docker's and pass through; with one only their content does. The client's
half-close reaches the process; the detach keys of a terminal end the coupling and leave the process alone.
"""

from __future__ import annotations

import asyncio

from covey.engine_api import framing
from covey.errors import InvalidArgument
from worker.containers.shim_client import Attachment

CHUNK = 64 * 1024
DETACH_KEYS = "ctrl-p,ctrl-q"

Duplex = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def detach_sequence(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` as bytes. Raises InvalidArgument."""
    out = bytearray()
    for key in (text or DETACH_KEYS).split(","):
        if len(key) == 1:
            out += key.encode("latin-1", "replace")
        elif key.startswith("ctrl-") and len(key) == 6 and (key[5].isalpha() or key[5] in "@[\\]^_"):
            out.append(ord(key[5].upper()) & 0x1F)
        else:
            raise InvalidArgument(f"Invalid detach keys ({text}) provided: give keys such as ctrl-p,ctrl-q")
    return bytes(out)


class Detacher:
    """Finds the detach sequence in what is typed, across pieces."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what goes on to the process, whether the sequence came)."""
        data = self._held + data
        self._held = b""
        at = data.find(self._sequence)
        if at >= 0:
            return data[:at], True
        for length in range(min(len(self._sequence) - 1, len(data)), 0, -1):
            if data.endswith(self._sequence[:length]):
                self._held = data[-length:]
                return data[:-length], False
        return data, False


async def couple(
    client: Duplex, attachment: Attachment, *, tty: bool, stdin: bool, detach_keys: str = "", once: bool = True
) -> bool:
    """Until the process's output has ended and is delivered, the client is gone, or it detached (then True).

    ``once``: the client's half-close is the end of the process's input, else others may still type.
    """
    reader, writer = client
    inward = asyncio.create_task(_inward(reader, attachment, tty, detach_keys, once)) if stdin else None
    outward = asyncio.create_task(_outward(writer, attachment, tty))
    try:
        waiting: set[asyncio.Task[bool] | asyncio.Task[None]] = {outward}
        if inward is not None:
            waiting.add(inward)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if inward is not None and inward in done and inward.result():
                return True
            if outward in done:
                return False
        return False
    finally:
        tasks = [task for task in (inward, outward) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        attachment.close()


async def _inward(reader: asyncio.StreamReader, attachment: Attachment, tty: bool, detach_keys: str, once: bool) -> bool:
    """Client to process; True when the client wants no more of it (detached)."""
    detacher = Detacher(detach_sequence(detach_keys)) if tty else None
    try:
        while data := await reader.read(CHUNK):
            if detacher is not None:
                data, detached = detacher.feed(data)
                await attachment.send(data)
                if detached:
                    return True
            else:
                await attachment.send(data)
        if once:
            await attachment.half_close()
    except (ConnectionError, OSError):
        return False
    return False


async def _outward(writer: asyncio.StreamWriter, attachment: Attachment, tty: bool) -> None:
    """Process to client."""
    try:
        if tty:
            async for _, data in attachment.frames():
                writer.write(data)
                await writer.drain()
            return
        while data := await attachment.reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, OSError):
        return


async def collect(attachment: Attachment, limit: int) -> bytes:
    """All output of a process, at most ``limit`` bytes of it kept."""
    kept = bytearray()
    async for stream, data in attachment.frames():
        if stream != framing.STDIN and len(kept) < limit:
            kept += data[: limit - len(kept)]
    return bytes(kept)
