"""Blobs through the manager, for nodes that cannot reach each other: fetched from the one by dial-back, passed to the other.

It decides how many at once, and counts what it carries. It holds one piece at a time and stores nothing; whether the bytes are
right the receiver finds out by their digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from covey.engine_api.aio import Client
from covey.engine_api.call import Duplex
from covey.errors import Unavailable
from covey.wire.messages import BlobRelay, BlobRelayed
from manager.dispatcher.link import Link
from manager.dispatcher.port import HELLO_SECONDS
from manager.images.tracker import RELAYS

#: A node that takes nothing for so long is given up.
STALL_SECONDS = 20.0


class Relay:
    """``connect(node_id, cause)`` reaches a node's Engine API (manager.dispatcher.dialback)."""

    def __init__(self, connect: Callable[[str, str], Awaitable[Duplex]]) -> None:
        self._connect = connect
        self._under_way = 0
        self._counts = dict.fromkeys(("blobs", "bytes", "refused"), 0)

    async def serve(self, link: Link) -> None:
        """A node has connected for a blob of another; raises what the other answers."""
        asked = await link.expect(BlobRelay, HELLO_SECONDS)
        if self._under_way >= 2 * RELAYS:
            self._counts["refused"] += 1
            raise Unavailable(f"this manager passes on {self._under_way} blobs already: ask for {asked.digest} again later")
        self._under_way += 1
        try:
            await self._pass_on(link, asked)
        finally:
            self._under_way -= 1

    async def _pass_on(self, link: Link, asked: BlobRelay) -> None:
        client = Client(lambda: self._connect(asked.node_id, f"blob {asked.digest}"), name=f"node {asked.node_id}")
        query = {"offset": str(asked.offset)}
        async with client.stream("covey_blob", {"id": asked.digest}, query) as response:
            await link.send(BlobRelayed(size=int(response.headers.get("Content-Length", "0"))))
            _, writer = link.release()
            async for piece in response:
                writer.write(piece)
                async with asyncio.timeout(STALL_SECONDS):
                    await writer.drain()
                self._counts["bytes"] += len(piece)
        self._counts["blobs"] += 1

    def statistics(self) -> dict[str, Any]:
        """What was carried since the start."""
        return {**self._counts, "under_way": self._under_way}
