"""What a decision wants written: Changes, and the Plan that holds them. Pure data; the committer turns it into transactions.

A Change is one intended write or a batch of like ones, row by row: rows are independent of each other, what stands in one
row (a retired task and its successor) is written in one transaction. Every Change carries its cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from covey.model.objects import (
    NetworkAllocation,
    NodeStatus,
    ServiceAllocation,
    ServiceStatus,
    Task,
    TaskNetwork,
)
from covey.model.task_states import TaskState


@dataclass(frozen=True, slots=True)
class CreateTasks:
    """New tasks that are alike: ``prototype`` with these columns, all of one length.

    ``replaces`` rows that are not "" name a task whose desired state becomes SHUTDOWN in the same transaction.
    ``networks`` is empty or one tuple a row; so is ``retires``: more tasks of the row's slot of which the same is true.
    """

    prototype: Task
    ids: Sequence[str]
    slots: Sequence[int]
    node_ids: Sequence[str]
    attempts: Sequence[int]
    replaces: Sequence[str]
    cause: str
    networks: Sequence[tuple[TaskNetwork, ...]] = ()
    retires: Sequence[tuple[str, ...]] = ()

    def tasks(self) -> Iterator[Task]:
        """The objects to be stored, row by row."""
        for row, task_id in enumerate(self.ids):
            yield msgspec.structs.replace(
                self.prototype,
                id=task_id,
                slot=self.slots[row],
                node_id=self.node_ids[row],
                attempt=self.attempts[row],
                replaces=self.replaces[row],
                networks=self.networks[row] if self.networks else self.prototype.networks,
                cause=self.cause,
            )


@dataclass(frozen=True, slots=True)
class AllocateTasks:
    """Tasks get their addresses and move to PENDING; ``networks`` is one tuple a row."""

    ids: Sequence[str]
    networks: Sequence[tuple[TaskNetwork, ...]]
    cause: str


@dataclass(frozen=True, slots=True)
class AssignTasks:
    """Tasks get their node and move to ASSIGNED. ``message`` says why there.

    ``generic_named`` is empty, or one mapping a row: the names of generic resources given, by kind. ``together``: all rows or
    none, in one transaction.
    """

    ids: Sequence[str]
    node_ids: Sequence[str]
    cause: str
    message: str = ""
    generic_named: Sequence[Mapping[str, tuple[str, ...]]] = ()
    together: bool = False


@dataclass(frozen=True, slots=True)
class MoveTasks:
    """The leader's part of like tasks changes: what is None stays. States and desired states only rise."""

    ids: Sequence[str]
    cause: str
    state: TaskState | None = None
    desired: TaskState | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteTasks:
    """Tasks leave the store with their statuses: history, or removed and over."""

    ids: Sequence[str]
    cause: str


@dataclass(frozen=True, slots=True)
class PutNodeStatus:
    """The leader's verdict on a node."""

    status: NodeStatus
    cause: str


@dataclass(frozen=True, slots=True)
class PutServiceStatus:
    """The leader's account of a service."""

    status: ServiceStatus
    cause: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """A service's previous spec becomes its spec again, and ``status`` its status, in one transaction.

    ``generation`` is that of the spec that failed; the status is written with the next one's.
    """

    status: ServiceStatus
    generation: int
    cause: str


@dataclass(frozen=True, slots=True)
class PutAllocation:
    """Addresses or ports given to a network or a service."""

    allocation: NetworkAllocation | ServiceAllocation
    cause: str


@dataclass(frozen=True, slots=True)
class DropAllocation:
    """Addresses or ports of what is gone: ``kind`` is network_allocation or service_allocation."""

    kind: str
    id: str
    cause: str


@dataclass(frozen=True, slots=True)
class DropStatus:
    """The leader's account of what is gone: ``kind`` is node_status or service_status."""

    kind: str
    id: str
    cause: str


Change = (
    CreateTasks
    | AllocateTasks
    | AssignTasks
    | MoveTasks
    | DeleteTasks
    | PutNodeStatus
    | PutServiceStatus
    | RollBack
    | PutAllocation
    | DropAllocation
    | DropStatus
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one decision wants, seen at ``base_revision``. ``wake_at`` is when, without any event, to decide again."""

    base_revision: int
    changes: tuple[Change, ...] = ()
    cause: str = ""
    wake_at: float | None = field(default=None)

    def __bool__(self) -> bool:
        return bool(self.changes)
