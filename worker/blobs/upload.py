"""Blobs of this node on their way out: how many at once, how fast, and counted. For the blob port and for managers that relay.

It decides that only a whole blob of the content store, named by its digest, leaves the node. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO

from covey.clock import Clock
from covey.errors import InvalidArgument, Unavailable
from worker.blobs.traffic import Tally, Traffic
from worker.images.content import ContentStore

PIECE = 256 * 1024
#: A manager lets a node send six at a time; what is beyond is refused, and tried again elsewhere or later.
AT_ONCE = 12


@dataclass(slots=True)
class Upload:
    """One blob from an offset on. Read ``pieces`` to their end or close them, else its place stays taken."""

    size: int
    offset: int
    pieces: Pieces


class Uploads:
    """``rate`` is the most bytes a second for all uploads together, 0 for no limit."""

    def __init__(self, content: ContentStore, traffic: Traffic, clock: Clock, rate: int = 0) -> None:
        self._content = content
        self.traffic = traffic
        self._clock = clock
        self._rate = rate
        self._under_way = 0
        self._due = 0.0

    async def open(self, digest: str, offset: int = 0, *, relayed: bool = False) -> Upload:
        """A blob to send. Raises InvalidArgument (no digest, beyond its end), NotFound, Unavailable (too many at once)."""
        if self._under_way >= AT_ONCE:
            raise Unavailable(f"{self._under_way} blobs are being sent already: ask again later, or another node")
        self._under_way += 1
        try:
            size, file = await asyncio.to_thread(self._find, digest, offset)
        except BaseException:
            self._under_way -= 1
            raise
        tally = self.traffic.relayed if relayed else self.traffic.sent
        return Upload(size, offset, Pieces(self, digest, file, size - offset, tally))

    def ended(self) -> None:
        """An upload gives its place back."""
        self._under_way -= 1

    def piece(self) -> int:
        """How many bytes are sent at a time."""
        return min(PIECE, max(4096, self._rate // 8)) if self._rate else PIECE

    async def pace(self, size: int) -> None:
        """Wait until ``size`` bytes may have been sent."""
        if self._rate:
            now = self._clock.monotonic()
            self._due = max(self._due, now) + size / self._rate
            await self._clock.sleep(self._due - now)

    def statistics(self) -> dict[str, int]:
        return {"under_way": self._under_way, "rate": self._rate}

    def _find(self, digest: str, offset: int) -> tuple[int, BinaryIO]:
        size = self._content.size(digest)
        if not 0 <= offset <= size:
            raise InvalidArgument(f"blob {digest} has {size} bytes: none at {offset}")
        file = self._content.open(digest)
        file.seek(offset)
        return size, file


class Pieces:
    """An Upload's bytes. Counted as they are taken; whole when the last has been."""

    def __init__(self, uploads: Uploads, digest: str, file: BinaryIO, left: int, tally: Tally) -> None:
        self._uploads = uploads
        self._digest = digest
        self._file: BinaryIO | None = file
        self._left = left
        self._tally = tally

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._file is None:
            raise StopAsyncIteration
        if not self._left:
            self._tally.add(self._digest, blobs=1)
            await self.aclose()
            raise StopAsyncIteration
        data = await asyncio.to_thread(self._file.read, min(self._uploads.piece(), self._left))
        if not data:
            await self.aclose()
            raise ConnectionError(f"blob {self._digest} is shorter than it was: the disk is failing or was written to")
        await self._uploads.pace(len(data))
        self._left -= len(data)
        self._tally.add(self._digest, size=len(data))
        return data

    async def aclose(self) -> None:
        """Give the place back; may be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            self._uploads.ended()
            await asyncio.to_thread(file.close)
