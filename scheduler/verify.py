"""Is a plan still right? Checked against the newest snapshot just before it is written; what still holds is accepted.

It decides row by row and never adds anything. The store's compares guard each object; this guards what spans several:
capacity, one wanted task a slot, owners that are still there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from covey.model.objects import Task
from covey.model.task_states import Actor, TaskState, is_terminal, may_desire, may_move
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity, pairs
from scheduler.placement.feasible import fits_one, refusals
from scheduler.placement.request import Request, request_of
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
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole

SlotKey = tuple[int, int, str]

#: So many rows are looked at without a stop, and what one Change has beyond.
PART = 5_000


class Refusal(NamedTuple):
    """One row or change that no longer holds: of what kind, whose id, and why."""

    change: str
    id: str
    why: str


class _Check:
    """One verification: the newest snapshot, the capacity left as accepted rows spend it, and what was refused."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.refusals: list[Refusal] = []
        self._capacity: Capacity | None = None
        self._requests: dict[tuple[str, int], Request] = {}
        self._latest: dict[str, dict[SlotKey, Task]] = {}

    def request(self, task: Task) -> Request:
        """What ``task`` asks of a node; tasks of one service version ask the same."""
        name = (task.service_id, task.spec_version)
        found = self._requests.get(name)
        if found is None:
            found = request_of(
                task, self.capacity, 0.0, self._bonds, shared=self.snapshot.waiting.queues.get(task.service_id, 0) > 1
            )
            if found.allowed is None:  # else it depends on what has been accepted meanwhile
                self._requests[name] = found
        return found

    def look_up(self, service_id: str, effort: Effort) -> Generator[None]:
        """Find the latest task of each slot of a service, stopping now and then."""
        if service_id in self._latest:
            return
        latest = self._latest[service_id] = {}
        for task in self.snapshot.tasks_of(service_id):
            key = task.slot_key
            if key not in latest or latest[key].attempt < task.attempt:
                latest[key] = task
            if effort.due():
                yield

    def latest(self, service_id: str) -> Mapping[SlotKey, Task]:
        """What was looked up."""
        return self._latest[service_id]

    @cached_property
    def _bonds(self) -> Bonds:
        return Bonds(self.capacity)

    @property
    def capacity(self) -> Capacity:
        if self._capacity is None:
            self._capacity = Capacity(self.snapshot, self.settings)
        return self._capacity

    def rows(self, change: Change, ids: Sequence[str], refuse: Callable[[int], str]) -> list[int]:
        """The rows that hold; ``refuse`` gives the reason against one, or ""."""
        held: list[int] = []
        for row, task_id in enumerate(ids):
            if why := refuse(row):
                self.refusals.append(Refusal(type(change).__name__, task_id, why))
            else:
                held.append(row)
        return held


def verify(plan: Plan, snapshot: Snapshot, settings: Settings | None = None) -> tuple[Plan, tuple[Refusal, ...]]:
    """The part of ``plan`` that still holds in ``snapshot``, and what does not."""
    return whole(parts(plan, snapshot, settings or Settings.default()))


def parts(plan: Plan, snapshot: Snapshot, settings: Settings) -> Generator[None, None, tuple[Plan, tuple[Refusal, ...]]]:
    """The same, stopping now and then; the snapshot must not change meanwhile."""
    check = _Check(snapshot, settings)
    effort = Effort(PART)
    accepted: list[Change] = []
    for change in plan.changes:
        if isinstance(change, CreateTasks):
            yield from check.look_up(change.prototype.service_id, effort)
        kept = _CHECKS[type(change)](check, change)
        if kept is not None:
            accepted.append(kept)
        if effort.due(_rows(change)):
            yield
    if not check.refusals and len(accepted) == len(plan.changes):
        return plan, ()
    return replace(plan, changes=tuple(accepted)), tuple(check.refusals)


def _rows(change: Change) -> int:
    return len(change.ids) if isinstance(change, (CreateTasks, AllocateTasks, AssignTasks, MoveTasks, DeleteTasks)) else 1


def _pick(values: Sequence[Any], rows: list[int]) -> tuple[Any, ...]:
    return tuple(values[row] for row in rows)


def _create(check: _Check, change: CreateTasks) -> Change | None:
    snapshot = check.snapshot
    service_id = change.prototype.service_id
    latest = check.latest(service_id)

    def refuse(row: int) -> str:
        if service_id not in snapshot.services:
            return f"service {service_id} is gone"
        if change.ids[row] in snapshot.tasks:
            return "the task exists"
        if change.replaces[row] and change.replaces[row] not in snapshot.tasks:
            return f"task {change.replaces[row]}, which it replaces, is gone"
        slot = change.slots[row]
        last = latest.get((change.prototype.job_iteration, slot, "" if slot else change.node_ids[row]))
        if last is not None and last.attempt >= change.attempts[row]:
            return f"its slot has the later task {last.id}"
        return ""

    rows = check.rows(change, change.ids, refuse)
    if len(rows) == len(change.ids):
        return change
    if not rows:
        return None
    return replace(
        change,
        ids=_pick(change.ids, rows),
        slots=_pick(change.slots, rows),
        node_ids=_pick(change.node_ids, rows),
        attempts=_pick(change.attempts, rows),
        replaces=_pick(change.replaces, rows),
        networks=_pick(change.networks, rows) if change.networks else (),
        retires=_pick(change.retires, rows) if change.retires else (),
    )


def _allocate(check: _Check, change: AllocateTasks) -> Change | None:
    snapshot = check.snapshot

    def refuse(row: int) -> str:
        task = snapshot.tasks.get(change.ids[row])
        if task is None:
            return "the task is gone"
        if not may_move(Actor.LEADER, task.state, TaskState.PENDING):
            return f"the task is {task.state.label}"
        gone = [given.network_id for given in change.networks[row] if given.network_id not in snapshot.network_allocations]
        return f"network {gone[0]} is gone" if gone else ""

    rows = check.rows(change, change.ids, refuse)
    if not rows:
        return None
    return replace(change, ids=_pick(change.ids, rows), networks=_pick(change.networks, rows))


def _assign(check: _Check, change: AssignTasks) -> Change | None:
    snapshot = check.snapshot

    def refuse(row: int) -> str:
        task = snapshot.tasks.get(change.ids[row])
        if task is None:
            return "the task is gone"
        if task.state != TaskState.PENDING or task.desired >= TaskState.SHUTDOWN:
            return f"the task is {task.state.label} and desired {task.desired.label}"
        view = snapshot.nodes.get(change.node_ids[row])
        if view is None:
            return f"node {change.node_ids[row]} is gone"
        capacity = check.capacity
        request = check.request(task)
        at = capacity.rows[view.id]
        if not fits_one(capacity, request, at):
            return str(refusals(capacity, request, only=view.id))
        if change.generic_named:
            given, taken = pairs(change.generic_named[row]), capacity.names(view.id)
            if twice := sorted(given & taken):
                return f"{' '.join(twice[0])} of node {view.id} is given to another task"
            taken |= given
        capacity.spend_one(at, request)
        return ""

    restore = check.capacity.saved() if change.together else None
    rows = check.rows(change, change.ids, refuse)
    if restore is not None and len(rows) < len(change.ids):
        restore()
        return None
    if not rows:
        return None
    return replace(
        change,
        ids=_pick(change.ids, rows),
        node_ids=_pick(change.node_ids, rows),
        generic_named=_pick(change.generic_named, rows) if change.generic_named else (),
    )


def _move(check: _Check, change: MoveTasks) -> Change | None:
    snapshot = check.snapshot

    def refuse(row: int) -> str:
        task = snapshot.tasks.get(change.ids[row])
        if task is None:
            return "the task is gone"
        if change.state is not None and not may_move(Actor.LEADER, task.state, change.state):
            return f"the task is {task.state.label} and may not become {change.state.label}"
        if change.desired is not None and not may_desire(task.desired, change.desired):
            return f"the task is desired {task.desired.label} and may not be desired {change.desired.label}"
        view = snapshot.nodes.get(task.node_id)
        if change.state == TaskState.ORPHANED and view is not None and (view.status is None or view.status.state != "down"):
            return f"node {view.id} is not down"
        return ""

    rows = check.rows(change, change.ids, refuse)
    return replace(change, ids=_pick(change.ids, rows)) if rows else None


def _delete(check: _Check, change: DeleteTasks) -> Change | None:
    snapshot = check.snapshot

    def refuse(row: int) -> str:
        task = snapshot.tasks.get(change.ids[row])
        if task is None:
            return "" if change.ids[row] in snapshot.statuses else "the task is gone"
        if task.desired < TaskState.SHUTDOWN:
            return "the task is wanted"
        over = task.state < TaskState.ASSIGNED or is_terminal(snapshot.state(task))
        return "" if over or task.node_id not in snapshot.nodes else "the task is not over"

    rows = check.rows(change, change.ids, refuse)
    return replace(change, ids=_pick(change.ids, rows)) if rows else None


def _single(check: _Check, change: Change, key: str, why: str) -> Change | None:
    if why:
        check.refusals.append(Refusal(type(change).__name__, key, why))
        return None
    return change


def _put_node_status(check: _Check, change: PutNodeStatus) -> Change | None:
    view = check.snapshot.nodes.get(change.status.id)
    why = ""
    if view is None:
        why = "the node is gone"
    elif change.status.state != "ready" and view.session is not None:
        why = f"the node has session {view.session.session_id}"
    return _single(check, change, change.status.id, why)


def _put_service_status(check: _Check, change: PutServiceStatus) -> Change | None:
    gone = change.status.id not in check.snapshot.services
    return _single(check, change, change.status.id, "the service is gone" if gone else "")


def _roll_back(check: _Check, change: RollBack) -> Change | None:
    service = check.snapshot.services.get(change.status.id)
    why = ""
    if service is None:
        why = "the service is gone"
    elif service.generation != change.generation:
        why = f"its spec is of generation {service.generation}, not {change.generation}, meanwhile"
    elif service.previous_spec is None:
        why = "it has no previous spec"
    return _single(check, change, change.status.id, why)


def _put_allocation(check: _Check, change: PutAllocation) -> Change | None:
    given = change.allocation
    owners: Any = check.snapshot.networks if given.kind == "network_allocation" else check.snapshot.services
    return _single(check, change, given.id, "" if given.id in owners else "its owner is gone")


def _drop(check: _Check, change: DropAllocation | DropStatus) -> Change | None:
    snapshot = check.snapshot
    owners: Any = {
        "network_allocation": snapshot.networks,
        "service_allocation": snapshot.services,
        "node_status": snapshot.nodes,
        "service_status": snapshot.services,
    }[change.kind]
    return _single(check, change, change.id, "its owner is there" if change.id in owners else "")


_CHECKS: dict[type[Any], Callable[[_Check, Any], Change | None]] = {
    CreateTasks: _create,
    AllocateTasks: _allocate,
    AssignTasks: _assign,
    MoveTasks: _move,
    DeleteTasks: _delete,
    PutNodeStatus: _put_node_status,
    PutServiceStatus: _put_service_status,
    RollBack: _roll_back,
    PutAllocation: _put_allocation,
    DropAllocation: _drop,
    DropStatus: _drop,
}
