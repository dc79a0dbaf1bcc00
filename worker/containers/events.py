"""What happened on this node, in Docker's event form: a bounded history and any number of listeners.

It decides what a filter matches. It must not know who publishes. A listener that does not keep up is cut off: the
engine never waits for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from covey.clock import Clock

HISTORY = 1024
BACKLOG = 8192

FILTERS = (
    "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret",
    "service", "type", "volume",
)  # fmt: skip

Event = dict[str, Any]


def matches(event: Event, filters: Mapping[str, list[str]]) -> bool:
    """Whether all filter keys (one value of each) fit; ``event`` values match on the part before a colon too."""
    return all(_fits(event, key, values) for key, values in filters.items() if values)


def _fits(event: Event, key: str, values: list[str]) -> bool:
    attributes = event["Actor"]["Attributes"]
    kind, action = event["Type"], event["Action"]
    if key == "event":
        return any(action == value or action.partition(":")[0] == value for value in values)
    if key == "type":
        return kind in values
    if key == "scope":
        return event["scope"] in values
    if key == "label":
        return all(_label(attributes, value) for value in values)
    names = {event["Actor"]["ID"], attributes.get("name", "")}
    if key == "image":
        names |= {attributes.get("image", "")} if kind == "container" else set()
        names |= {name.rpartition(":")[0] for name in names}
        return kind in ("image", "container") and any(value in names for value in values)
    if kind != key:
        return False
    return any(value in names or event["Actor"]["ID"].startswith(value) for value in values)


def _label(attributes: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in attributes and (not equals or attributes[name] == value)


class Subscription:
    """One listener's queue; ``get`` returns None once it was cut off for being slow."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(BACKLOG)
        self.lost = False

    def put(self, event: Event) -> None:
        if self.lost:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.lost = True

    async def get(self) -> Event | None:
        if self.lost and self._queue.empty():
            return None
        return await self._queue.get()


class EventBus:
    """Publishes and replays. Used from the engine's event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._subscriptions: set[Subscription] = set()

    def publish(self, kind: str, action: str, actor: str, attributes: Mapping[str, str]) -> Event:
        """``kind``: container | image | volume | network | daemon. Returns the event as sent."""
        now = self._clock.now()
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": dict(attributes)},
            "scope": "local",
            "time": int(now),
            "timeNano": int(now * 1_000_000_000),
        }
        if kind == "container":
            # Fields from before actors; clients of that age (and docker-py's users) still read them.
            event = {"status": action, "id": actor, "from": attributes.get("image", ""), **event}
        elif kind == "image":
            event = {"status": action, "id": actor, **event}
        self._history.append(event)
        for subscription in self._subscriptions:
            subscription.put(event)
        return event

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Everything published inside the context."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    async def stream(
        self, since: float | None = None, until: float | None = None, filters: Mapping[str, list[str]] | None = None
    ) -> AsyncIterator[Event]:
        """Events from ``since`` (history, then live; None: live only) up to ``until`` (None: without end)."""
        chosen = filters or {}
        with self.subscribe() as subscription:
            past = list(self._history) if since is not None else []
            for event in past:
                at = event["timeNano"] / 1e9
                if at >= (since or 0.0) and (until is None or at <= until) and matches(event, chosen):
                    yield event
            while True:
                left = None if until is None else until - self._clock.now()
                if left is not None and left <= 0:
                    return
                try:
                    async with asyncio.timeout(left):
                        fresh = await subscription.get()
                except TimeoutError:
                    return
                if fresh is None:
                    return
                if matches(fresh, chosen):
                    yield fresh

    def statistics(self) -> dict[str, int]:
        return {"listeners": len(self._subscriptions), "history": len(self._history)}
