"""Replicated services: which slots there are, which are surplus, which are missing. Slots count from 1.

Scaling down gives up slots that do not run before those that do, and among those the ones on the nodes that hold most
replicas of the service, as SwarmKit does (manager/orchestrator/replicated/slot.go: by state, then by index on the node).
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import count, islice

from covey.model.task_states import TaskState
from scheduler import rollout
from scheduler.reconcile.slots import Slot, Work, tend


def decide(work: Work) -> Generator[None]:
    """Collect in ``work.draft`` what the service's slots need, stopping now and then."""
    yield from work.gather()
    slots = [slot for slot in work.slots.values() if not slot.dropped]
    wanted = work.spec.replicas
    if len(slots) > wanted:
        slots = yield from _scale_down(work, slots, wanted)
    if work.spec.stopped:
        return rollout.stop(work, slots)
    if len(slots) < wanted:
        yield from _scale_up(work, slots, wanted)
    chosen = yield from rollout.decide(work, slots)
    for slot in slots:
        if slot.key not in chosen:
            tend(work, slot)
        if work.effort.due():
            yield


def _scale_down(work: Work, slots: list[Slot], wanted: int) -> Generator[None, None, list[Slot]]:
    """Which of ``slots``, which come by their keys, are left."""
    alive: list[Slot] = []
    idle: list[Slot] = []
    for slot in slots:
        (alive if slot.running else idle).append(slot)
        if work.effort.due():
            yield
    seen: dict[str, int] = {}
    ranked: list[Slot] = []
    for part in (alive, idle):
        levels: dict[int, list[Slot]] = {}
        for slot in part:
            index = seen[slot.node_id] = seen.get(slot.node_id, 0) + 1
            levels.setdefault(index, []).append(slot)
            if work.effort.due():
                yield
        ranked += (slot for index in sorted(levels) for slot in levels[index])
    cause = f"service {work.service.id} was scaled to {wanted}"
    for slot in ranked[wanted:]:
        work.shut_down(slot.tasks(), cause, TaskState.REMOVE)
        if work.effort.due():
            yield
    surplus = {slot.key for slot in ranked[wanted:]}
    return [slot for slot in slots if slot.key not in surplus]


def _scale_up(work: Work, slots: list[Slot], wanted: int) -> Generator[None]:
    taken = {slot.key[0] for slot in slots}
    free = (number for number in count(1) if number not in taken)
    cause = f"service {work.service.id} wants {wanted} replicas"
    for number in islice(free, wanted - len(slots)):
        full = work.draft.full
        work.create((number, ""), replaces="", cause=cause)
        if full:
            # It noted that there are more; how many does not matter.
            return
        if work.effort.due():
            yield
