"""Plan → the objects to be written, in groups that must be written together. Pure; the committer makes transactions of it.

It derives each new object from the one in the snapshot the plan was made from, and names the version it expects to find.
It must not know keys, bytes or limits. What would change nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from covey.model import versions
from covey.model.objects import Name, Stored, Task
from covey.model.task_states import TaskState
from scheduler.plan import (
    AllocateTasks,
    AssignTasks,
    Change,
    CreateTasks,
    DeleteTasks,
    DropAllocation,
    DropStatus,
    MoveTasks,
    Plan,
    PutAllocation,
    PutNodeStatus,
    PutServiceStatus,
    RollBack,
)
from scheduler.snapshot import Snapshot, name_of_port


class Write(NamedTuple):
    """One key: put ``value``, or remove it when None, if its mod_revision is ``expected_version`` (0: it is absent)."""

    kind: str
    id: str
    expected_version: int
    value: Stored | None


class Group(NamedTuple):
    """Writes that happen all or not at all, and only while the keys ``absent`` (kind, id) do not exist."""

    writes: tuple[Write, ...]
    cause: str
    absent: tuple[tuple[str, str], ...] = ()


def groups(plan: Plan, snapshot: Snapshot, now: float) -> Iterator[Group]:
    """Every group of ``plan``, in its order; rows of tasks the snapshot does not hold are left out."""
    for change in plan.changes:
        for writes in _WRITES[type(change)](change, snapshot, now):
            if writes:
                yield Group(writes, change.cause, _absent(change))


def _absent(change: Change) -> tuple[tuple[str, str], ...]:
    """A node is declared down by its silence: a session opened meanwhile refutes the verdict."""
    if isinstance(change, PutNodeStatus) and change.status.state == "down":
        return (("session", change.status.id),)
    return ()


def _changed(task: Task, now: float, cause: str, **fields: Any) -> tuple[Write, ...]:
    for name, wanted in fields.items():
        if getattr(task, name) != wanted:
            break
    else:
        return ()
    if not task.version and task.cause:
        # Made in this same pass, and written once: why it was made is not to be lost for why it goes where it goes.
        cause = f"{task.cause}; {cause}"
    value = msgspec.structs.replace(task, updated_at=now, cause=cause, version=0, **fields)
    return (Write("task", task.id, task.version, value),)


def _create(change: CreateTasks, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    for row, task in enumerate(change.tasks()):
        writes = [Write("task", task.id, 0, task)]
        for old_id in (task.replaces, *(change.retires[row] if change.retires else ())):
            old = snapshot.tasks.get(old_id)
            if old is not None and old.desired < TaskState.SHUTDOWN:
                writes += _changed(old, now, change.cause, desired=TaskState.SHUTDOWN)
        yield tuple(writes)


def _allocate(change: AllocateTasks, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    for task_id, networks in zip(change.ids, change.networks, strict=True):
        if (task := snapshot.tasks.get(task_id)) is not None:
            yield _changed(task, now, change.cause, networks=networks, state=TaskState.PENDING, message="")


def _assign(change: AssignTasks, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    fields: dict[str, Any] = {"state": TaskState.ASSIGNED, "message": change.message}
    joined: list[Write] = []
    for row, (task_id, node_id) in enumerate(zip(change.ids, change.node_ids, strict=True)):
        if change.generic_named:
            fields["generic_named"] = dict(change.generic_named[row])
        if (task := snapshot.tasks.get(task_id)) is not None:
            writes = _changed(task, now, change.cause, node_id=node_id, **fields)
            if change.together:
                joined += writes
            else:
                yield writes
    yield tuple(joined)


def _move(change: MoveTasks, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    wanted = {"state": change.state, "desired": change.desired, "message": change.message}
    fields = {name: value for name, value in wanted.items() if value is not None}
    for task_id in change.ids:
        if (task := snapshot.tasks.get(task_id)) is not None:
            yield _changed(task, now, change.cause, **fields)


def _delete(change: DeleteTasks, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    for task_id in change.ids:
        found = (("task", snapshot.tasks.get(task_id)), ("task_status", snapshot.statuses.get(task_id)))
        yield tuple(Write(kind, task_id, value.version, None) for kind, value in found if value is not None)


def _put(held: Stored | None, value: Stored, key: str) -> Iterator[tuple[Write, ...]]:
    version = held.version if held is not None else 0
    value = msgspec.structs.replace(value, version=0)
    if held is None or msgspec.structs.replace(held, version=0) != value:
        yield (Write(value.kind, key, version, value),)


def _put_node_status(change: PutNodeStatus, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    return _put(snapshot.node_statuses.get(change.status.id), change.status, change.status.id)


def _put_service_status(change: PutServiceStatus, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    return _put(snapshot.service_statuses.get(change.status.id), change.status, change.status.id)


def _roll_back(change: RollBack, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    """The service with its previous spec, the spec that failed as history, ports by name, and the status: together."""
    service = snapshot.services.get(change.status.id)
    if service is None or service.generation != change.generation or service.previous_spec is None:
        return
    old, new = versions.port_names(service.spec), versions.port_names(service.previous_spec)
    names = [Write("name", name_of_port(port), 0, Name(id=service.id)) for port in sorted(new - old)]
    for port in sorted(old - new):
        if (held := snapshot.names.get(name_of_port(port))) is not None and held.id == service.id:
            names.append(Write("name", name_of_port(port), held.version, None))
    back = versions.rolled_back(service, now)
    past = versions.current(service)
    assert change.status.update is not None
    update = msgspec.structs.replace(change.status.update, generation=back.generation)
    status = msgspec.structs.replace(change.status, update=update)
    yield (
        Write("service", service.id, service.version, back),
        Write("past_spec", past.id, 0, past),
        *_only(_put(snapshot.service_statuses.get(service.id), status, service.id)),
        *names,
    )


def _only(parts: Iterator[tuple[Write, ...]]) -> tuple[Write, ...]:
    return next(parts, ())


def _put_allocation(change: PutAllocation, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    given = change.allocation
    held: Stored | None
    if given.kind == "network_allocation":
        held = snapshot.network_allocations.get(given.id)
    else:
        held = snapshot.service_allocations.get(given.id)
    return _put(held, given, given.id)


def _drop_allocation(change: DropAllocation, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    held: Stored | None
    if change.kind == "network_allocation":
        held = snapshot.network_allocations.get(change.id)
    else:
        held = snapshot.service_allocations.get(change.id)
    if held is not None:
        yield (Write(change.kind, change.id, held.version, None),)


def _drop_status(change: DropStatus, snapshot: Snapshot, now: float) -> Iterator[tuple[Write, ...]]:
    """With a node's status goes what the dispatcher wrote of the node: nobody else is left to remove it."""
    found: tuple[tuple[str, Stored | None], ...]
    if change.kind == "node_status":
        found = (("node_status", snapshot.node_statuses.get(change.id)), ("node_info", snapshot.node_infos.get(change.id)))
    else:
        found = (("service_status", snapshot.service_statuses.get(change.id)),)
    yield tuple(Write(kind, change.id, value.version, None) for kind, value in found if value is not None)


_WRITES: dict[type[Any], Callable[[Any, Snapshot, float], Iterator[tuple[Write, ...]]]] = {
    CreateTasks: _create,
    AllocateTasks: _allocate,
    AssignTasks: _assign,
    MoveTasks: _move,
    DeleteTasks: _delete,
    PutNodeStatus: _put_node_status,
    PutServiceStatus: _put_service_status,
    RollBack: _roll_back,
    PutAllocation: _put_allocation,
    DropAllocation: _drop_allocation,
    DropStatus: _drop_status,
}
