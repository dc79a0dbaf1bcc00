"""Room for tasks of a high priority where tasks of a lower one are: on which node, and who has to leave.

A task that waits is promised the room that others are about to leave before anybody is told to go, so a decision that is
made again asks for nothing more. What is promised is spent in this pass: nobody of a lower priority takes it meanwhile.
Few and unimportant victims are the best; resources, ports and generic resources come into question, nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from covey.model.objects import Task
from covey.model.resources import generic_counts
from covey.model.task_states import TaskState, is_terminal
from scheduler.placement.capacity import Capacity, Mask, Port, host_ports
from scheduler.placement.feasible import suitable
from scheduler.placement.request import Request

#: So many tasks are made room for in one pass; the next goes on.
MOST = 64
#: So many nodes on which there is room to be made are compared.
_CHOICE = 64


class Promise(NamedTuple):
    """The node on which a task will have room, once ``victims`` (by id; maybe none) and those already told to go are gone."""

    row: int
    victims: tuple[str, ...]


class _Room(NamedTuple):
    """What a node would have free."""

    cpus: int
    memory: int
    generic: Mapping[str, int]
    taken: frozenset[Port]

    def fits(self, request: Request) -> bool:
        return (
            (not request.cpus or self.cpus >= request.cpus)
            and (not request.memory or self.memory >= request.memory)
            and all(self.generic.get(kind, 0) >= number for kind, number in request.generic.items())
            and not (request.ports & self.taken)
        )


class Preemption:
    """The promises of one pass."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._snapshot = capacity.snapshot
        self._leaving: set[str] = set()
        self._promised = 0

    def promise(self, request: Request, bound: str = "") -> Promise | None:
        """Room for one task of ``request``, on the node ``bound`` if given, which is spent; None: there is none to make."""
        if self._promised >= MOST:
            return None
        candidates = self._candidates(request)
        # Not all are compared, and where somebody leaves anyway there may be nobody to be told to.
        rows = [*np.flatnonzero(candidates & self._emptying).tolist(), *np.flatnonzero(candidates & ~self._emptying).tolist()]
        best: tuple[tuple[int, int, int], Promise] | None = None
        looked_at = 0
        for row in rows:
            if bound and self._capacity.ids[row] != bound:
                continue
            victims = self._victims(request, row)
            if victims is None:
                continue
            priorities = [self._priority(task) for task in victims]
            key = (max(priorities, default=-1), sum(priorities) + len(priorities), row)
            if best is None or key < best[0]:
                best = (key, Promise(row, tuple(task.id for task in victims)))
            looked_at += 1
            if not victims or looked_at == _CHOICE:
                break
        if best is None:
            return None
        promise = best[1]
        self._leaving.update(promise.victims)
        self._capacity.spend_one(promise.row, request)
        self._promised += 1
        self._emptying[promise.row] = True
        return promise

    @cached_property
    def _emptying(self) -> Mask:
        """Which nodes somebody is about to leave."""
        staying: Counter[str] = Counter()
        for nodes in self._snapshot.replicas.values():
            staying.update(nodes)
        held = self._snapshot.columns.tasks[self._capacity.column_rows]
        return np.asarray(held > np.array([staying[node_id] for node_id in self._capacity.ids], dtype=np.int64))

    def _candidates(self, request: Request) -> Mask:
        rows = suitable(self._capacity, request).copy()
        if request.allowed is not None:
            rows &= request.allowed
        limit = request.spec.placement.max_replicas
        if limit and request.replicas is not None:
            rows &= request.replicas < limit
        rows &= self._capacity.total_cpus >= request.cpus
        rows &= self._capacity.total_memory >= request.memory
        return rows

    def _victims(self, request: Request, row: int) -> list[Task] | None:
        """Who has to leave the node, the least important first; None: it would not help."""
        held = [
            task
            for task in self._snapshot.tasks_on(self._capacity.ids[row])
            if task.state >= TaskState.ASSIGNED and not is_terminal(self._snapshot.state(task))
        ]
        leaving = [task for task in held if task.desired >= TaskState.SHUTDOWN or task.id in self._leaving]
        if self._room(row, held, leaving).fits(request):
            return []
        mine = request.spec.placement.priority
        lower = [task for task in held if task not in leaving and self._priority(task) < mine]
        lower.sort(key=lambda task: (self._priority(task), -task.created_at, task.id))
        chosen: list[Task] = []
        for task in lower:
            chosen.append(task)
            if self._room(row, held, [*leaving, *chosen]).fits(request):
                break
        else:
            return None
        for task in chosen[::-1]:
            fewer = [each for each in chosen if each is not task]
            if self._room(row, held, [*leaving, *fewer]).fits(request):
                chosen = fewer
        return chosen

    def _room(self, row: int, held: Sequence[Task], gone: Sequence[Task]) -> _Room:
        """What is free once ``gone`` of the tasks ``held`` there are over."""
        capacity = self._capacity
        node_id = capacity.ids[row]
        asked = [self._snapshot.task_specs[task.id].reservations for task in gone]
        generic = Counter(capacity.offered(row))
        generic.subtract(capacity.generic(node_id))
        for each in asked:
            generic.update(generic_counts(each))
        ids = {task.id for task in gone}
        freed = {port for task in gone for port in host_ports(task.ports)}
        staying = {port for task in held if task.id not in ids for port in host_ports(task.ports)}
        return _Room(
            int(capacity.free_cpus[row]) + sum(each.nano_cpus for each in asked),
            int(capacity.free_memory[row]) + sum(each.memory_bytes for each in asked),
            generic,
            frozenset((capacity.ports(node_id) - freed) | staying),
        )

    def _priority(self, task: Task) -> int:
        return self._snapshot.task_specs[task.id].placement.priority
