"""A pipe from the event loop to a thread: what the network gives, the synchronous stores read.

Bounded: the writer waits while the reader is behind. Knows nothing of what flows through it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

LIMIT = 4 << 20


class Pipe:
    """``write``, ``close`` and ``fail`` belong to the loop it was made in, ``read`` to one other thread."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._ended = False
        self._fault: BaseException | None = None
        self._room = asyncio.Event()
        self._room.set()

    async def write(self, data: bytes) -> None:
        """Hands ``data`` over; waits until there is room for more."""
        if data:
            with self._changed:
                self._chunks.append(data)
                self._held += len(data)
                if self._held >= self._limit:
                    self._room.clear()
                self._changed.notify()
        await self._room.wait()

    def close(self) -> None:
        """The stream is whole: the reader comes to its end."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def fail(self, fault: BaseException) -> None:
        """The stream will never be whole: the reader's next ``read`` raises ``fault``."""
        with self._changed:
            self._fault = fault
            self._changed.notify()

    def read(self, n: int = -1, /) -> bytes:
        """At most ``n`` bytes once there are any, b"" at the end; a negative ``n`` takes what is at hand."""
        with self._changed:
            while not self._chunks and not self._ended and self._fault is None:
                self._changed.wait()
            if self._fault is not None:
                raise self._fault
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if 0 <= n < len(chunk):
                self._chunks.appendleft(chunk[n:])
                chunk = chunk[:n]
            was_full = self._held >= self._limit
            self._held -= len(chunk)
            if was_full and self._held < self._limit:
                self._loop.call_soon_threadsafe(self._room.set)
        return chunk
