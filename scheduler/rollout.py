"""How a change of a service's template reaches its slots: at most ``parallelism`` of them are being replaced at once.

It decides which outdated slots are replaced in this pass, and the service's update status. A slot is being replaced
until its new task runs. (Monitor, failure action and delay between batches come with the issue "The brain".)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from covey.model.objects import ServiceStatus, Task, UpdateStatus
from covey.model.task_states import TaskState
from scheduler import restart
from scheduler.plan import PutServiceStatus

if TYPE_CHECKING:
    from scheduler.reconcile.slots import Slot, SlotKey, Work


def decide(work: Work, slots: Sequence[Slot]) -> set[SlotKey]:
    """Replace outdated tasks of ``slots``; the keys of the slots dealt with here, which need no tending."""
    outdated = [slot for slot in slots if slot.active and all(work.outdated(a.task) for a in slot.active)]
    in_flight = sum(1 for slot in slots if _in_flight(work, slot))
    _account(work, outdated, in_flight)
    if not outdated:
        return set()
    parallelism = work.spec.update.parallelism
    room = len(outdated) if parallelism == 0 else max(parallelism - in_flight, 0)
    order = sorted(outdated, key=lambda slot: (slot.running, slot.key))
    return {slot.key for slot in order[:room] if _replace(work, slot)}


def _in_flight(work: Work, slot: Slot) -> bool:
    if not slot.active:
        return False
    newest = slot.active[-1]
    return (
        newest.state < TaskState.RUNNING and not work.outdated(newest.task) and any(work.outdated(a.task) for a in slot.history)
    )


def _replace(work: Work, slot: Slot) -> bool:
    cause = f"service {work.service.id} was updated to version {work.service.spec_version}"
    if work.spec.update.order == "start-first":
        return _start_first(work, slot, cause)
    if len(slot.active) > 1:
        # One at a time: the surplus and the successor are not written together.
        work.shut_down((a.task for a in slot.active[:-1]), cause)
        return True
    newest = slot.active[-1].task
    desired = TaskState.RUNNING if work.gone(newest.id) else TaskState.READY
    work.create(slot.key, replaces=newest.id, cause=cause, desired=desired)
    return True


def _start_first(work: Work, slot: Slot, cause: str) -> bool:
    """The old task goes on until the new one runs; new ones that end by themselves are retried by the restart policy."""
    kept = max(slot.active, key=lambda a: (a.state >= TaskState.RUNNING, a.task.attempt))
    surplus = [a.task for a in slot.active if a is not kept]
    if len(surplus) > 1:
        work.shut_down(surplus, cause)
        return True
    history = [a for a in slot.history if not work.outdated(a.task)]
    if surplus or not history:
        work.create(slot.key, replaces=surplus[0].id if surplus else "", cause=cause)
        return True
    verdict = restart.decide(history, work.spec.task.restart, work.now, work.restart_delay())
    last: Task = history[-1].task
    if not verdict.again:
        work.shut_down([last], verdict.why)
        return False
    held_back = verdict.not_before > work.now
    desired = TaskState.READY if held_back else TaskState.RUNNING
    work.create(slot.key, replaces=last.id, cause=verdict.why, desired=desired, not_before=verdict.not_before)
    return True


def _account(work: Work, outdated: Sequence[Slot], in_flight: int) -> None:
    """Keep ``ServiceStatus.update``: updating while slots are outdated or being replaced, then completed."""
    held = work.snapshot.service_statuses.get(work.service.id)
    update = held.update if held is not None else None
    going_on = update is not None and update.state == "updating"
    if outdated and not going_on:
        update = UpdateStatus(state="updating", started_at=work.now, message="update in progress")
    elif going_on and update is not None and not outdated and not in_flight:
        update = msgspec.structs.replace(update, state="completed", completed_at=work.now, message="update completed")
    else:
        return
    version = held.version if held is not None else 0
    status = ServiceStatus(id=work.service.id, update=update, version=version)
    work.draft.add(PutServiceStatus(status, f"update of service {work.service.id} is {update.state}"))
