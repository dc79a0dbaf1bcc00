"""Connections from a manager to a worker's Engine API: asked for over the session, dialled by the worker.

It decides who may answer which request (the node that was asked) and how long to wait. The stream it gives is plain and
half-closes (covey.tunnel).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from covey import tunnel
from covey.errors import Forbidden, NotFound, Unavailable
from covey.wire.messages import DialBack, DialBackOpen
from manager.dispatcher.link import Closed, Link
from manager.dispatcher.port import HELLO_SECONDS

DIAL_SECONDS = 10.0

Ask = Callable[[str, DialBack], Awaitable[None]]


class _Asked(NamedTuple):
    """A request that waits for its worker."""

    node_id: str
    duplex: asyncio.Future[tunnel.Duplex]


class DialBacks:
    """``ask(node_id, message)`` sends over the node's session; it raises Unavailable when there is none here."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._asked: dict[str, _Asked] = {}
        self._counts = dict.fromkeys(("asked", "answered"), 0)

    async def connect(self, node_id: str, cause: str = "") -> tunnel.Duplex:
        """A plain stream to the Engine API of ``node_id``; the caller closes its writer. Raises Unavailable."""
        connection_id = secrets.token_hex(16)
        duplex: asyncio.Future[tunnel.Duplex] = asyncio.get_running_loop().create_future()
        self._asked[connection_id] = _Asked(node_id, duplex)
        self._counts["asked"] += 1
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await self._ask(node_id, DialBack(connection_id=connection_id, cause=cause))
                return await duplex
        except (TimeoutError, Closed) as error:
            raise Unavailable(f"node {node_id} did not dial back ({error or 'too slow'}): is it alive? see `node ls`") from None
        finally:
            del self._asked[connection_id]
            duplex.cancel()

    async def serve(self, link: Link) -> None:
        """A worker has dialled: join its connection with the one that waits, until either ends."""
        opened = await link.expect(DialBackOpen, HELLO_SECONDS)
        asked = self._asked.get(opened.connection_id)
        if asked is None or asked.duplex.done():
            raise NotFound(f"nobody waits for connection {opened.connection_id}: it was given up")
        if link.peer is None or link.peer.node_id != asked.node_id:
            raise Forbidden(f"connection {opened.connection_id} was asked of another node")
        framed = link.release()
        near, far = socket.socketpair()
        plain = await asyncio.open_unix_connection(sock=far, limit=tunnel.LARGEST)
        mine = await asyncio.open_unix_connection(sock=near, limit=tunnel.LARGEST)
        if asked.duplex.done():
            mine[1].close()
        else:
            asked.duplex.set_result(mine)
            self._counts["answered"] += 1
        await tunnel.splice(framed, plain)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and how many wait now."""
        return {**self._counts, "waiting": len(self._asked)}
