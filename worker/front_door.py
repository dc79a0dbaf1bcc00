"""The front door: which part of the node answers a call. Node routes here, cluster routes at the manager, merged ones both.

It decides nothing about containers or clusters. The place of a route is the table's (covey.engine_api.routes); this file
says how the merged ones merge: local first, then the cluster, where there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from covey.engine_api.aio import Client
from covey.engine_api.answers import Answer, Empty, Json, Stream
from covey.engine_api.call import Call
from covey.engine_api.proxy import NOT_A_MANAGER, connect_unix, forward
from covey.engine_api.routes import CLUSTER, MERGED, ROUTES
from covey.engine_api.server import Handler
from covey.errors import Conflict, CoveyError, Unavailable
from worker.cluster_life import ClusterLife

WORKER_ONLY = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command "
    "on a manager node or promote the current node to a manager."
)

STARTING = "this node's manager does not answer: it is being started; try again, or see logs/manager.log in the data root"

Knows = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Local:
    """What this node answers by itself, and whether it has the thing a call names."""

    handlers: Mapping[str, Handler]
    knows_container: Knows
    knows_exec: Knows
    knows_network: Knows


class FrontDoor:
    """Handlers and forwards for the server chassis."""

    def __init__(self, local: Local, life: ClusterLife) -> None:
        self._local = local
        self._life = life

    def handlers(self) -> dict[str, Handler]:
        """Every route this node answers, by name; the rest goes by ``forwards``."""
        own: dict[str, Handler] = {
            "swarm_init": self._swarm_init,
            "swarm_join": self._swarm_join,
            "swarm_leave": self._swarm_leave,
            "swarm_unlock": self._swarm_unlock,
            "system_info": self._info,
            "system_events": self._events,
            "network_list": self._network_list,
            "network_create": self._network_create,
            "network_prune": self._network_prune,
        }
        knows = {
            "containers": self._local.knows_container,
            "exec": self._local.knows_exec,
            "networks": self._local.knows_network,
        }
        merged = {
            route.name: self._local_first(route.name, knows[route.path.split("/")[1]])
            for route in ROUTES
            if route.place == MERGED and route.name not in own and "{id}" in route.path
        }
        return {**self._local.handlers, **{name: handler for name, handler in merged.items() if handler}, **own}

    def forwards(self) -> dict[str, Handler]:
        """By place, for routes without a handler here."""
        return {CLUSTER: self._to_manager}

    async def _to_manager(self, call: Call) -> Answer:
        """Stream the call to this node's manager. Raises Unavailable in Docker's words where there is none."""
        if not self._life.is_manager:
            raise Unavailable(WORKER_ONLY if self._life.membership else NOT_A_MANAGER)
        return await forward(call, connect_unix(str(self._life.manager_socket)), unreachable=Unavailable(STARTING))

    def _local_first(self, name: str, knows: Knows) -> Handler | None:
        here = self._local.handlers.get(name)
        if here is None:
            return None

        async def answer(call: Call) -> Answer:
            if not self._life.is_manager or await knows(call.params["id"]):
                return await here(call)
            return await self._to_manager(call)

        return answer

    # -- swarm -----------------------------------------------------------------------------------------------------

    async def _swarm_init(self, call: Call) -> Answer:
        return Json(await self._life.init(await call.json()))

    async def _swarm_join(self, call: Call) -> Answer:
        await self._life.join(await call.json())
        return Empty(200)

    async def _swarm_leave(self, call: Call) -> Answer:
        await self._life.leave(call.boolean("force"))
        return Empty(200)

    async def _swarm_unlock(self, call: Call) -> Answer:
        raise Conflict("swarm is not locked")

    # -- merged ----------------------------------------------------------------------------------------------------

    async def _of_manager(self, route: str, query: Mapping[str, str] | None = None) -> Any:
        """A manager's answer to a merged call; None where there is no manager, or it does not answer now."""
        if not self._life.is_manager:
            return None
        client = Client(connect_unix(str(self._life.manager_socket)), name="this node's manager")
        with suppress(Unavailable):
            return await client.call(route, query=query)
        return None

    async def _info(self, call: Call) -> Answer:
        answer = await self._local.handlers["system_info"](call)
        assert isinstance(answer, dict)
        cluster = await self._of_manager("system_info") or {}
        return {**answer, "Swarm": {**self._life.swarm_info(), **cluster.get("Swarm", cluster)}}

    async def _network_list(self, call: Call) -> Answer:
        answer = await self._local.handlers["network_list"](call)
        assert isinstance(answer, list)
        query = {"filters": call.text("filters")} if call.text("filters") else None
        cluster = await self._of_manager("network_list", query) or []
        local = {network["Id"] for network in cluster}
        return [*cluster, *(network for network in answer if network["Id"] not in local)]

    async def _network_create(self, call: Call) -> Answer:
        body = await call.json()
        again = _with_body(call, body)
        if body.get("Driver") == "overlay" or body.get("Scope") == "swarm":
            return await self._to_manager(again)
        return await self._local.handlers["network_create"](again)

    async def _network_prune(self, call: Call) -> Answer:
        answer = await self._local.handlers["network_prune"](call)
        if self._life.is_manager:
            client = Client(connect_unix(str(self._life.manager_socket)), name="this node's manager")
            query = {"filters": call.text("filters")} if call.text("filters") else None
            with suppress(CoveyError):
                cluster = await client.call("network_prune", query=query)
                if isinstance(answer, dict) and cluster:
                    answer["NetworksDeleted"] = [
                        *(answer.get("NetworksDeleted") or ()),
                        *(cluster.get("NetworksDeleted") or ()),
                    ]
        return answer

    async def _events(self, call: Call) -> Answer:
        local = await self._local.handlers["system_events"](call)
        if not self._life.is_manager or not isinstance(local, Stream):
            return local
        client = Client(connect_unix(str(self._life.manager_socket)), name="this node's manager")
        return Stream(_interleave(local.chunks, _cluster_events(client, dict(call.query))))


async def _cluster_events(client: Client, query: Mapping[str, str]) -> AsyncIterator[bytes]:
    """The cluster's events; a manager that goes away ends them without ending the node's."""
    with suppress(CoveyError):
        async with client.stream("system_events", query=query) as response:
            async for piece in response:
                yield piece


async def _interleave(*streams: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of several streams as they come; ends when all have."""
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)

    async def pump(stream: AsyncIterator[bytes]) -> None:
        try:
            async for piece in stream:
                await pieces.put(piece)
        finally:
            await pieces.put(None)

    pumps = [asyncio.create_task(pump(stream), name="events") for stream in streams]
    try:
        left = len(pumps)
        while left:
            piece = await pieces.get()
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        for task in pumps:
            task.cancel()
        while not pieces.empty():
            pieces.get_nowait()
        await asyncio.gather(*pumps, return_exceptions=True)


def _with_body(call: Call, body: Any) -> Call:
    """``call`` with its JSON body, which has been read, to be read again."""
    import dataclasses

    import msgspec

    data = msgspec.json.encode(body)

    async def again() -> AsyncIterator[bytes]:
        yield data

    headers = {
        name: value for name, value in call.headers.items() if name.lower() not in ("content-length", "transfer-encoding")
    }
    return dataclasses.replace(call, chunks=again(), headers={**headers, "Content-Length": str(len(data))})
