"""Places a group of like tasks with a few vector operations: water-filling for binpack and spread, filling for pack.

Exactly what placing them one by one would do (tests/scheduler/test_placement_reference.py). It spends what it gives and
knows no preferences (tree.py).
"""

from __future__ import annotations

import numpy as np

from scheduler.placement.capacity import Capacity, Mask, Rows
from scheduler.placement.feasible import has_room, room_for, suitable
from scheduler.placement.rank import DISTINCT, best_of
from scheduler.placement.request import Request

_NONE: Rows = np.empty(0, dtype=np.int64)


def place_group(capacity: Capacity, request: Request, strategy: str, count: int) -> Rows:
    """The rows of the first tasks of a group of ``count``, in their order; fewer where there is no room for all."""
    mask = suitable(capacity, request) & has_room(capacity, request, slice(None))
    fill = _water if strategy in DISTINCT else _tight
    if request.failing is None:
        return fill(capacity, request, strategy, np.flatnonzero(mask), count)
    parts: list[Rows] = []
    for failures in np.unique(request.failing[mask]).tolist():
        rows = np.flatnonzero(mask & (request.failing == failures))
        part = fill(capacity, request, strategy, rows, count - sum(map(len, parts)))
        parts.append(part)
    return np.concatenate(parts) if parts else _NONE


def _water(capacity: Capacity, request: Request, strategy: str, rows: Rows, count: int) -> Rows:
    """Level by level: one task on each node that has fewest replicas, the best of them first."""
    if not len(rows) or not count:
        return _NONE
    held = request.replicas[rows] if request.replicas is not None else np.zeros(len(rows), dtype=np.int64)
    limit = request.spec.placement.max_replicas
    parts: list[Rows] = []
    while count and len(rows):
        level = held.min()
        lower: Mask = held == level
        everybody = bool(lower.all())
        at = np.arange(len(rows)) if everybody else np.flatnonzero(lower)
        chosen = at[best_of(capacity, request, strategy, rows[at], min(count, len(at)))]
        part = rows[chosen]
        capacity.spend(part, 1, request)
        parts.append(part)
        count -= len(part)
        if not count:
            break
        held[chosen] += 1
        stays = np.ones(len(rows), dtype=np.bool_)
        stays[chosen] = has_room(capacity, request, part) & (not limit or level + 1 < limit)
        if not stays.all():
            rows, held = rows[stays], held[stays]
    return np.concatenate(parts)


def _tight(capacity: Capacity, request: Request, strategy: str, rows: Rows, count: int) -> Rows:
    """The tightest node until it is full, then the next: what a node got makes it no worse for the next task."""
    if not len(rows) or not count:
        return _NONE
    best = rows[best_of(capacity, request, strategy, rows, min(count, len(rows)))]
    room = room_for(capacity, request, best, count)
    before = np.cumsum(room) - room
    needed = before < count
    best, room, before = best[needed], room[needed], before[needed]
    given = np.minimum(room, count - before)
    capacity.spend(best, given, request)
    return np.repeat(best, given)
