"""A request's body for code that reads in a thread: a file-like object over the chunks, at most one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class BodyReader:
    """``read`` is called from another thread than the event loop's; it blocks until there is data."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._ended = False

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, b"" at the end; everything when negative."""
        if size < 0:
            parts = []
            while part := self.read(1 << 20):
                parts.append(part)
            return b"".join(parts)
        while not self._held and not self._ended:
            fetched = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            if fetched is None:
                self._ended = True
            else:
                self._held = fetched
        out, self._held = self._held[:size], self._held[size:]
        return out

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)
