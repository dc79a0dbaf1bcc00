"""Collects what a decision wants, row by row, and hands it out as few batched Changes. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from covey.ids import task_id
from covey.model.objects import Task
from covey.model.task_states import TaskState
from scheduler.plan import AssignTasks, Change, CreateTasks, DeleteTasks, MoveTasks, Plan

#: So many rows at most are moved or deleted by one Change: between two of them whoever looks at a plan may stop.
BATCH = 5_000


class Row(NamedTuple):
    """One task to be created. ``replaces`` and ``retires`` as in CreateTasks."""

    slot: int
    node_id: str
    attempt: int
    replaces: str
    retires: tuple[str, ...] = ()


class _Move(NamedTuple):
    state: TaskState | None
    desired: TaskState | None
    message: str | None
    cause: str


class Draft:
    """Rows of one decision; ``plan`` batches those that are alike, in the order in which each batch began.

    After ``creates`` tasks to be made, further ones are left to the next decision, which is then due at once.
    """

    def __init__(self, creates: int | None = None) -> None:
        self._room = creates
        self._creates: dict[tuple[Any, ...], tuple[Task, list[Row]]] = {}
        self._moves: dict[_Move, list[str]] = {}
        self._deletes: dict[str, list[str]] = {}
        self._assigns: list[tuple[tuple[str, str, bool, bool], list[str], list[str], list[Mapping[str, tuple[str, ...]]]]] = []
        self._others: list[Change] = []
        self._wake_at: float | None = None

    @property
    def full(self) -> bool:
        """Whether no more tasks are made this time."""
        return self._room == 0

    def create(self, prototype: Task, row: Row, *, desired: TaskState, not_before: float, cause: str) -> None:
        """A task like ``prototype`` (whose service, execution and marks tell it from others)."""
        if self.full:
            self.wake(0.0)
            return
        if self._room is not None:
            self._room -= 1
        marks = (prototype.job_iteration, prototype.rollout, prototype.crashes, prototype.avoid)
        key = (cause, prototype.service_id, desired, not_before, *marks)
        if key not in self._creates:
            alike = msgspec.structs.replace(prototype, desired=desired, not_before=not_before)
            self._creates[key] = (alike, [])
        self._creates[key][1].append(row)

    def move(
        self,
        ids: Iterable[str],
        cause: str,
        *,
        state: TaskState | None = None,
        desired: TaskState | None = None,
        message: str | None = None,
    ) -> None:
        """The leader's part of tasks changes."""
        rows = list(ids)
        if rows:
            self._moves.setdefault(_Move(state, desired, message, cause), []).extend(rows)

    def delete(self, ids: Iterable[str], cause: str) -> None:
        """Tasks leave."""
        rows = list(ids)
        if rows:
            self._deletes.setdefault(cause, []).extend(rows)

    def assign(
        self,
        tasks: Iterable[str],
        node_ids: Iterable[str],
        cause: str,
        message: str,
        generic_named: Sequence[Mapping[str, tuple[str, ...]]] = (),
        together: bool = False,
    ) -> None:
        """Tasks get their nodes, row by row, and names of generic resources where ``generic_named`` has any."""
        key = (cause, message, bool(generic_named), together)
        if not self._assigns or self._assigns[-1][0] != key:
            # Only neighbours are batched: what is verified in another order may be refused.
            self._assigns.append((key, [], [], []))
        _, ids, nodes, names = self._assigns[-1]
        ids.extend(tasks)
        nodes.extend(node_ids)
        names.extend(generic_named)

    def add(self, change: Change) -> None:
        """A change that stands alone."""
        self._others.append(change)

    def wake(self, at: float) -> None:
        """Decide again at ``at`` at the latest."""
        self._wake_at = at if self._wake_at is None else min(at, self._wake_at)

    def plan(self, base_revision: int, cause: str) -> Plan:
        """Everything collected."""
        changes: list[Change] = list(self._others)
        for key, (prototype, rows) in self._creates.items():
            changes.append(_creation(prototype, rows, key[0]))
        changes += [
            MoveTasks(some, m.cause, m.state, m.desired, m.message) for m, ids in self._moves.items() for some in _batches(ids)
        ]
        changes += [
            AssignTasks(tuple(ids), tuple(nodes), why, message, tuple(names), together)
            for (why, message, _, together), ids, nodes, names in self._assigns
        ]
        changes += [DeleteTasks(some, why) for why, ids in self._deletes.items() for some in _batches(ids)]
        return Plan(base_revision, tuple(changes), cause, self._wake_at)


def _batches(ids: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(ids[at : at + BATCH]) for at in range(0, len(ids), BATCH))


def _creation(prototype: Task, rows: list[Row], cause: str) -> CreateTasks:
    return CreateTasks(
        prototype=prototype,
        ids=tuple(task_id(prototype.service_id, row.slot, row.node_id, row.attempt, prototype.job_iteration) for row in rows),
        slots=tuple(row.slot for row in rows),
        node_ids=tuple(row.node_id for row in rows),
        attempts=tuple(row.attempt for row in rows),
        replaces=tuple(row.replaces for row in rows),
        cause=cause,
        retires=tuple(row.retires for row in rows) if any(row.retires for row in rows) else (),
    )
