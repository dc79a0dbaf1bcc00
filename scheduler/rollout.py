"""How a change of a service's template reaches its slots, as SwarmKit's updater has it (manager/orchestrator/update).

It decides which outdated slots are replaced in this pass. Nothing is remembered but in what is stored: a task says which
rollout made it (``Task.rollout``), its status since when it runs. How the whole goes, and when it stops, is decided in
scheduler/update_status.py.

A slot takes one of ``parallelism`` places from the moment its task is replaced until the new one runs or is over, and
``delay`` longer. A slot that a former rollout took down, or whose task waits for a node, still has its place. Stop-first
replaces a task at once, the new one waiting for the old to be over; start-first leaves the old one until the new one runs,
unless it is itself waiting for a node: then the two would wait for the same room.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from covey.model.objects import Task
from covey.model.task_states import TaskState
from scheduler import restart, update_status

if TYPE_CHECKING:
    from scheduler.reconcile.slots import Slot, SlotKey, Work


@dataclass(slots=True)
class Standing:
    """How far the rollout of the service's present generation is.

    ``waiting``: outdated slots it has not tried yet; ``retried``: those it has, whose new task is over while the old one
    goes on. ``flying``: slots whose newest task a rollout made and that does not run yet. ``settled``: since when (manager's
    time) the task made in each slot tried runs or is over. ``failed``: tasks it made that ended too soon, one a slot.
    """

    waiting: list[Slot] = field(default_factory=list)
    retried: list[Slot] = field(default_factory=list)
    flying: set[SlotKey] = field(default_factory=set)
    settled: dict[SlotKey, float] = field(default_factory=dict)
    failed: list[Task] = field(default_factory=list)
    total: int = 0


def decide(work: Work, slots: Sequence[Slot], left_alone: Collection[SlotKey] = ()) -> Generator[None, None, set[SlotKey]]:
    """Replace outdated tasks of ``slots``, stopping now and then; the keys of the slots dealt with here, which need no tending.

    Slots ``left_alone`` keep what they have (their node takes nothing new), and yet those that do not run are down.
    """
    standing = yield from survey(work, slots, left_alone)
    if not update_status.follow(work, standing):
        return set()
    chosen = {slot.key for slot in standing.retried if _retry(work, slot)}
    cause = f"service {work.service.id} is updated to version {work.service.spec_version}"
    if work.service.rolling_back:
        cause = f"service {work.service.id} is rolled back to version {work.service.spec_version}"
    standing.flying |= {slot.key for slot in standing.waiting if _has_no_node(slot)}
    # Beside what was to start first the old task may still run: then nothing is down yet, and stopping first would take it.
    kept = {slot.key for slot in standing.waiting if slot.running and work.policy.order == "stop-first"}
    flying = standing.flying - kept
    taken = [slot for slot in standing.waiting if slot.key in flying]
    others = [slot for slot in standing.waiting if slot.key not in flying]
    # They come by their keys.
    others.sort(key=lambda slot: slot.running)
    for slot in taken + others[: _room(work, standing, len(others))]:
        _replace(work, slot, cause)
        chosen.add(slot.key)
        if work.effort.due():
            yield
    return chosen


def _has_no_node(slot: Slot) -> bool:
    """Whether nothing of the slot is anywhere yet: it is replaced whatever the parallelism, as nothing is taken down."""
    return bool(slot.active) and all(attempt.state < TaskState.ASSIGNED for attempt in slot.active)


def stop(work: Work, slots: Iterable[Slot]) -> None:
    """The service is stopped: its slots stay, nothing runs in them, and so nothing is left to be rolled out."""
    work.shut_down((a.task for slot in slots for a in slot.active), f"service {work.service.id} is stopped")
    update_status.follow(work, Standing())


def survey(work: Work, slots: Sequence[Slot], left_alone: Collection[SlotKey] = ()) -> Generator[None, None, Standing]:
    """How the rollout stands in ``slots``. Stops now and then."""
    from scheduler.reconcile.slots import spent

    standing = Standing()
    generation = work.service.generation
    monitor = work.policy.monitor
    for slot in slots:
        newest = slot.active[-1] if slot.active else None
        if newest is not None and newest.task.rollout and newest.state < TaskState.RUNNING and not _surplus(work, slot, newest):
            standing.flying.add(slot.key)
        if slot.key in left_alone:
            outdated = False
        elif newest is not None:
            outdated = all(work.outdated(a.task) for a in slot.active)
        else:
            outdated = work.outdated(slot.history[-1].task) and spent(work, slot)
        tried = [a for a in slot.history if a.task.rollout == generation]
        if tried and slot.key not in standing.flying:
            standing.settled[slot.key] = _settled_at(work, tried[-1])
        if failed := next((a.task for a in tried if _ended_too_soon(work, a, monitor)), None):
            standing.failed.append(failed)
        if outdated:
            (standing.retried if tried else standing.waiting).append(slot)
        standing.total += outdated or bool(tried)
        if work.effort.due():
            yield
    return standing


def _surplus(work: Work, slot: Slot, newest: restart.Attempt) -> bool:
    """Whether a former rollout made it, and what it was to follow is as the service asks for again: it is given up now."""
    return work.outdated(newest.task) and any(not work.outdated(a.task) for a in slot.active)


def _settled_at(work: Work, attempt: restart.Attempt) -> float:
    """Since when the task runs, or when it was over without: in the managers' time, however the worker's clock goes."""
    status = work.snapshot.statuses.get(attempt.task.id)
    if status is None:
        return attempt.task.updated_at
    return (status.stored_at or status.at) - work.ran(attempt.task)


def _ended_too_soon(work: Work, attempt: restart.Attempt, monitor: float) -> bool:
    """Whether it ended by itself, before it ran or within ``monitor`` of that: SwarmKit's failure or early termination."""
    if attempt.state not in restart.ENDED_BY_ITSELF:
        return False
    return work.ran(attempt.task) <= monitor


def _room(work: Work, standing: Standing, waiting: int) -> int:
    """How many more slots may be taken. Wakes the pass when the delay of one is over and there are others to take."""
    policy = work.policy
    if policy.parallelism == 0:
        return waiting
    resting = [over for at in standing.settled.values() if (over := at + policy.delay) > work.now]
    room = max(policy.parallelism - len(standing.flying) - len(resting), 0)
    if waiting > room and resting:
        work.draft.wake(min(resting))
    return room


def _replace(work: Work, slot: Slot, cause: str) -> None:
    from scheduler.reconcile.slots import Marks

    marks = Marks(rollout=work.service.generation)
    if not slot.active:
        work.create(slot.key, replaces=slot.history[-1].task.id, cause=cause, marks=marks)
        return
    kept = max(slot.active, key=lambda a: (a.state >= TaskState.RUNNING, a.task.attempt))
    surplus = [a.task for a in slot.active if a is not kept]
    if work.policy.order == "start-first" and kept.state >= TaskState.ASSIGNED:
        first, more = (surplus[0].id, surplus[1:]) if surplus else ("", [])
        work.create(slot.key, replaces=first, cause=cause, marks=marks, retires=more)
    else:
        at_once = all(work.gone(a.task.id) for a in slot.active) and work.vacated(slot)
        desired = TaskState.RUNNING if at_once else TaskState.READY
        work.create(slot.key, replaces=kept.task.id, cause=cause, desired=desired, marks=marks, retires=surplus)


def _retry(work: Work, slot: Slot) -> bool:
    """Start-first: the old task goes on, and what was to follow it has ended: again, if the restart policy says so."""
    if work.policy.order != "start-first" or any(not work.outdated(a.task) for a in slot.active):
        return False
    fresh = [a for a in slot.history if a.task.spec_version == work.service.spec_version and a not in slot.active]
    if not fresh:
        return False
    verdict, marks = work.judge(fresh)
    last = fresh[-1].task
    if not verdict.again:
        work.shut_down([last], verdict.why)
        return False
    held_back = verdict.not_before > work.now
    desired = TaskState.READY if held_back else TaskState.RUNNING
    work.create(slot.key, replaces=last.id, cause=verdict.why, desired=desired, not_before=verdict.not_before, marks=marks)
    return True
