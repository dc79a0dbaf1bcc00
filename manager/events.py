"""Cluster events in Docker's shape, from what the mirror sees change. Keeps the newest for ``since``; stores none.

It decides what is worth an event and what its attributes are (dockerd's daemon/events.go for swarm objects). It must not know
who listens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from covey.clock import Clock
from covey.model.objects import Node, NodeStatus, Service, Stored
from covey.model.spec import read_service_spec
from manager.store.mirror import Mirror
from manager.store.notify import Changed, ChangesLost

KEPT = 256
#: What a slow reader may be behind before it loses events.
BACKLOG = 1024

Event = dict[str, Any]
Attributes = Callable[[Any, Any, Mirror], dict[str, str] | None]


def _named(before: Any, after: Any, mirror: Mirror) -> dict[str, str]:
    return {"name": str((after or before).spec.get("Name", ""))}


def _network(before: Any, after: Any, mirror: Mirror) -> dict[str, str]:
    return {**_named(before, after, mirror), "type": str((after or before).spec.get("Driver") or "overlay")}


def _service(before: Service | None, after: Service | None, mirror: Mirror) -> dict[str, str]:
    told = _named(before, after, mirror)
    if before is not None and after is not None:
        old, new = read_service_spec(before.spec), read_service_spec(after.spec)
        told |= _change("image", old.task.image, new.task.image)
        if new.mode.startswith("replicated"):
            told |= _change("replicas", old.replicas, new.replicas)
    return told


def _node(before: Node | None, after: Node | None, mirror: Mirror) -> dict[str, str]:
    node = after or before
    assert node is not None
    told = {"name": _hostname(mirror, node.id)}
    if before is not None and after is not None:
        told |= _change("availability", before.availability, after.availability)
        told |= _change("role", before.role, after.role)
    return told


def _node_state(before: NodeStatus | None, after: NodeStatus | None, mirror: Mirror) -> dict[str, str] | None:
    if after is None or (before is not None and before.state == after.state):
        return None
    return {"name": _hostname(mirror, after.id), **_change("state", before.state if before else "unknown", after.state)}


def _hostname(mirror: Mirror, node_id: str) -> str:
    view = mirror.snapshot().nodes.get(node_id)
    return view.hostname if view is not None else ""


def _change(name: str, old: Any, new: Any) -> dict[str, str]:
    return {f"{name}.old": str(old), f"{name}.new": str(new)} if old != new else {}


#: Stored kind → (type of event, how to describe the change; None: it is none for people).
DESCRIBED: dict[str, tuple[str, Attributes]] = {
    "service": ("service", _service),
    "node": ("node", _node),
    "node_status": ("node", _node_state),
    "network": ("network", _network),
    "secret": ("secret", _named),
    "config": ("config", _named),
}


def describe(changed: Changed, mirror: Mirror, now: float) -> Event | None:
    """The event of ``changed``, None when it is none."""
    kind, attributes = DESCRIBED[changed.kind]
    told = attributes(changed.before, changed.after, mirror)
    if told is None:
        return None
    updated = changed.kind == "node_status" or (changed.before is not None and changed.after is not None)
    action = "update" if updated else "create" if changed.before is None else "remove"
    nanos = int(now * 1e9)
    return {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": changed.id, "Attributes": told | _labels(changed.after or changed.before)},
        "scope": "swarm",
        "time": nanos // 1_000_000_000,
        "timeNano": nanos,
    }


def _labels(item: Stored | None) -> dict[str, str]:
    """Labels ride along unseen by most, so that ``label`` filters find them."""
    spec = getattr(item, "spec", None)
    labels = spec.get("Labels") if isinstance(spec, dict) else None
    return {str(name): str(value) for name, value in cast("Mapping[str, Any]", labels or {}).items()}


class Events:
    """Run ``follow`` in a TaskGroup; ``kept`` and ``subscribe`` give what happened and what happens."""

    def __init__(self, mirror: Mirror, clock: Clock) -> None:
        self._mirror = mirror
        self._clock = clock
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._readers: set[asyncio.Queue[Event]] = set()
        self._lost = 0

    async def follow(self) -> None:
        """Turn changes into events until cancelled."""
        while True:
            with self._mirror.events(tuple(DESCRIBED)) as changes:
                try:
                    async for changed in changes:
                        event = describe(changed, self._mirror, self._clock.now())
                        if event is not None:
                            self._publish(event)
                except ChangesLost:
                    self._lost += 1

    def kept(self, since: float, until: float) -> list[Event]:
        """Events of that time that are still kept, in seconds since the epoch."""
        return [event for event in self._kept if since <= event["timeNano"] / 1e9 <= until]

    def subscribe(self) -> asyncio.Queue[Event]:
        """Events from now on, until ``unsubscribe``; a reader that is too slow misses some."""
        queue: asyncio.Queue[Event] = asyncio.Queue(BACKLOG)
        self._readers.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Event]) -> None:
        """End a subscription; one that has ended is no error."""
        self._readers.discard(queue)

    def statistics(self) -> dict[str, Any]:
        """What is kept, who listens, what was lost."""
        return {"kept": len(self._kept), "readers": len(self._readers), "lost": self._lost}

    def _publish(self, event: Event) -> None:
        self._kept.append(event)
        for queue in self._readers:
            if queue.full():
                self._lost += 1
            else:
                queue.put_nowait(event)
