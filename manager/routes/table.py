"""The manager's handlers by route name, and the guard before them: no cluster, or not ready yet, is 503 in Docker's words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.engine_api.proxy import NOT_A_MANAGER
from covey.engine_api.routes import CLUSTER, MERGED, ROUTES
from covey.errors import NotImplementedYet, Unavailable

Handler = Callable[[Call], Awaitable[Answer]]

#: A manager that has just started answers in a moment; its clients would only try again.
PATIENCE = 10.0


class Gate:
    """Holds the handlers of a manager that serves; until then requests wait a little or are refused."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, Handler] = {}
        self._open = asyncio.Event()
        self._reason = "this manager is starting: try again in a moment"
        self._hopeless = asyncio.Event()

    def open(self, handlers: Mapping[str, Handler]) -> None:
        """From now on ``handlers`` answer."""
        self._handlers = handlers
        self._hopeless.clear()
        self._open.set()

    def shut(self, reason: str, hopeless: bool = False) -> None:
        """Nobody answers, and why; ``hopeless``: waiting does not help."""
        self._open.clear()
        self._reason = reason
        if hopeless:
            self._hopeless.set()
        else:
            self._hopeless.clear()

    def guarded(self) -> dict[str, Handler]:
        """A handler for every route that a manager may answer."""
        return {route.name: self._through for route in ROUTES if route.place in (CLUSTER, MERGED)}

    async def _through(self, call: Call) -> Answer:
        await self._wait_open()
        handler = self._handlers.get(call.route.name)
        if handler is None:
            raise NotImplementedYet(
                f"{call.route.method} {call.route.path} ({call.route.name}) is not answered by a manager of this release"
            )
        return await handler(call)

    async def _wait_open(self) -> None:
        if self._open.is_set():
            return
        either = [asyncio.ensure_future(self._open.wait()), asyncio.ensure_future(self._hopeless.wait())]
        try:
            await asyncio.wait(either, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in either:
                one.cancel()
        if not self._open.is_set():
            raise Unavailable(self._reason)


def no_cluster() -> str:
    """What a manager without a cluster says."""
    return NOT_A_MANAGER


def collect(*rooms: Any) -> dict[str, Handler]:
    """The handlers of all ``rooms`` (objects with ``handlers()``) as one table. A name twice is a mistake of ours."""
    table: dict[str, Handler] = {}
    for room in rooms:
        for name, handler in room.handlers().items():
            assert name not in table, name
            table[name] = handler
    return table
