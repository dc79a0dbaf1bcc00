"""``GET /events`` of the cluster: filters, since and until as dockerd reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from covey.clock import Clock, parse_rfc3339
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.framing import line
from covey.errors import InvalidArgument
from manager.events import Event, Events

NOUNS = ("config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume")
FILTERS = (*NOUNS, "event", "label", "scope", "type")


class System:
    """Handlers by route name in ``handlers``."""

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    def handlers(self) -> dict[str, Any]:
        return {"system_events": self.events}

    async def events(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        since, until = read_time("since", call.text("since")), read_time("until", call.text("until"))
        return Stream(_Coming(self._events, self._clock, filters, since, until))


class _Coming:
    """The body of the answer. It listens from the moment it is made, so that nothing falls between past and future."""

    def __init__(
        self, events: Events, clock: Clock, filters: Mapping[str, list[str]], since: float | None, until: float | None
    ) -> None:
        now = clock.now()
        self._events = events
        self._clock = clock
        self._filters = filters
        self._until = until
        self._queue = events.subscribe()
        self._past = [] if since is None else events.kept(since, now if until is None else min(now, until))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            event = self._past.pop(0) if self._past else await self._next()
            if wanted(event, self._filters):
                return line(event)

    async def _next(self) -> Event:
        left = None if self._until is None else self._until - self._clock.now()
        if left is not None and left <= 0:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(left):
                return await self._queue.get()
        except TimeoutError:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self._events.unsubscribe(self._queue)


def read_time(name: str, text: str) -> float | None:
    """Seconds since the epoch of ``text`` (such seconds, or RFC 3339); None of nothing."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise InvalidArgument(f"invalid {name} {text!r}: give seconds since the epoch or an RFC 3339 time") from None


def wanted(event: Event, filters: Mapping[str, list[str]]) -> bool:
    """Whether ``event`` passes; several values of a key are alternatives, keys add up."""
    attributes = event["Actor"]["Attributes"]
    exact = {"type": event["Type"], "event": event["Action"], "scope": event["scope"]}
    if any(value not in filters[key] for key, value in exact.items() if filters.get(key)):
        return False
    called = (event["Actor"]["ID"], attributes.get("name", ""))
    for noun in NOUNS:
        if filters.get(noun) and not any(name.startswith(prefix) for prefix in filters[noun] for name in called):
            return False
    return _has_labels(attributes, filters.get("label", []))


def _has_labels(attributes: Mapping[str, str], labels: list[str]) -> bool:
    for entry in labels:
        key, equals, value = entry.partition("=")
        if key not in attributes or (equals and attributes[key] != value):
            return False
    return True
