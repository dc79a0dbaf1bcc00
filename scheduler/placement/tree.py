"""Places a group of like tasks under spread preferences: each level of preferences is a level of a tree of branches.

At every level a task goes to the branch with the fewest of its service's replicas that has a feasible node, as SwarmKit's
decision tree balances (manager/scheduler/decision_tree.go); among equal branches the one whose best node is best. Within
the last branch the strategy decides. One heap a branch; a placement changes the one path from the root to its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

import numpy as np

from scheduler.placement.capacity import Capacity, Rows
from scheduler.placement.constraints import node_attributes
from scheduler.placement.feasible import has_room, suitable
from scheduler.placement.rank import DISTINCT, preference
from scheduler.placement.request import Request

Key = tuple[float, ...]


class _Branch:
    """A branch: its replicas, infeasible nodes' included, and its parts, the best first: branches, or rows at the end."""

    __slots__ = ("count", "heap")

    def __init__(self, count: int) -> None:
        self.count = count
        self.heap: list[tuple[Key, Any]] = []

    def key(self) -> Key:
        return (self.count, *self.heap[0][0])


class _Group:
    """One group being placed."""

    def __init__(self, capacity: Capacity, request: Request, strategy: str) -> None:
        self.capacity = capacity
        self.request = request
        self.strategy = strategy
        self.replicas: Rows = request.replicas if request.replicas is not None else np.zeros(len(capacity.ids), dtype=np.int64)
        self.paths = _paths(capacity, request.spec.placement.spread)
        self.totals: dict[tuple[str, ...], int] = {}
        for row in np.flatnonzero(self.replicas).tolist():
            self._grown(self.paths[row], int(self.replicas[row]))

    def _grown(self, path: tuple[str, ...], by: int) -> None:
        for depth in range(1, len(path) + 1):
            self.totals[path[:depth]] = self.totals.get(path[:depth], 0) + by

    def place(self, rows: Rows, count: int) -> list[int]:
        """The rows of the first of ``count`` tasks, of ``rows``, which have room."""
        root = self._plant(rows)
        placed: list[int] = []
        while root.heap and len(placed) < count:
            row = self._take(root)
            self._grown(self.paths[row], 1)
            placed.append(row)
        return placed

    def _plant(self, rows: Rows) -> _Branch:
        branches: dict[tuple[str, ...], _Branch] = {(): _Branch(0)}
        numbers = preference(self.strategy, self.capacity, self.request, rows).tolist()
        depth = len(self.request.spec.placement.spread)
        for number, row in zip(numbers, rows.tolist(), strict=True):
            path = self.paths[row]
            for level in range(1, depth + 1):
                branches.setdefault(path[:level], _Branch(self.totals.get(path[:level], 0)))
            branches[path].heap.append((self._key(number, row), row))
        for path in sorted(branches, key=len, reverse=True):
            branch = branches[path]
            heapify(branch.heap)
            if path:
                branches[path[:-1]].heap.append((branch.key(), branch))
        return branches[()]

    def _key(self, number: float, row: int) -> Key:
        score = -int(self.request.score[row]) if self.request.score is not None else 0
        if self.strategy in DISTINCT:
            return (int(self.replicas[row]), score, number, row)
        return (score, number, row)

    def _take(self, branch: _Branch) -> int:
        part = branch.heap[0][1]
        if isinstance(part, _Branch):
            row = self._take(part)
            part.count += 1
            key = part.key() if part.heap else None
        else:
            row = part
            key = self._spend(row)
        if key is None:
            heappop(branch.heap)
        else:
            heapreplace(branch.heap, (key, part))
        return row

    def _spend(self, row: int) -> Key | None:
        """One task on ``row``: its next key, None if that was the last it has room for."""
        capacity, request = self.capacity, self.request
        capacity.spend_one(row, request)
        if request.replicas is None:
            self.replicas[row] += 1
        only = np.array([row], dtype=np.int64)
        limit = request.spec.placement.max_replicas
        if (limit and self.replicas[row] >= limit) or not has_room(capacity, request, only)[0]:
            return None
        return self._key(float(preference(self.strategy, capacity, request, only)[0]), row)


def _paths(capacity: Capacity, descriptors: Sequence[str]) -> list[tuple[str, ...]]:
    """By row, what the node has for each descriptor; a node that has it not is in the branch of the empty word."""
    attributes = [node_attributes(capacity.view(row)) for row in range(len(capacity.ids))]
    return [tuple(each.get(descriptor, "") for descriptor in descriptors) for each in attributes]


def place_under_preferences(capacity: Capacity, request: Request, strategy: str, count: int) -> Rows:
    """As ``levels.place_group``, for a request with spread preferences."""
    mask = suitable(capacity, request) & has_room(capacity, request, slice(None))
    group = _Group(capacity, request, strategy)
    placed: list[int] = []
    failing = request.failing if request.failing is not None else np.zeros(len(mask), dtype=np.int64)
    for failures in np.unique(failing[mask]).tolist():
        placed += group.place(np.flatnonzero(mask & (failing == failures)), count - len(placed))
    return np.array(placed, dtype=np.int64)
