"""Replicated services: which slots there are, which are surplus, which are missing. Slots count from 1.

Scaling down gives up slots that do not run before those that do, and among those the ones on the nodes that hold most
replicas of the service, as SwarmKit does (manager/orchestrator/replicated/slot.go: by state, then by index on the node).
"""

from __future__ import annotations

from itertools import count, islice

from covey.model.task_states import TaskState
from scheduler import rollout
from scheduler.reconcile.slots import Slot, Work, tend


def decide(work: Work) -> None:
    """Collect in ``work.draft`` what the service's slots need."""
    slots = [slot for slot in work.slots.values() if not slot.dropped]
    wanted = work.spec.replicas
    if len(slots) > wanted:
        slots = _scale_down(work, slots, wanted)
    if work.spec.stopped:
        return rollout.stop(work, slots)
    if len(slots) < wanted:
        _scale_up(work, slots, wanted)
    chosen = rollout.decide(work, slots)
    for slot in slots:
        if slot.key not in chosen:
            tend(work, slot)


def _scale_down(work: Work, slots: list[Slot], wanted: int) -> list[Slot]:
    seen: dict[str, int] = {}
    order: list[tuple[bool, int, int, Slot]] = []
    for slot in sorted(slots, key=lambda s: (not s.running, s.key)):
        index = seen[slot.node_id] = seen.get(slot.node_id, 0) + 1
        order.append((not slot.running, index, slot.key[0], slot))
    order.sort(key=lambda entry: entry[:3])
    cause = f"service {work.service.id} was scaled to {wanted}"
    for _, _, _, slot in order[wanted:]:
        work.shut_down(slot.tasks(), cause, TaskState.REMOVE)
    return sorted((entry[3] for entry in order[:wanted]), key=lambda s: s.key)


def _scale_up(work: Work, slots: list[Slot], wanted: int) -> None:
    taken = {slot.key[0] for slot in slots}
    free = (number for number in count(1) if number not in taken)
    cause = f"service {work.service.id} wants {wanted} replicas"
    for number in islice(free, wanted - len(slots)):
        work.create((number, ""), replaces="", cause=cause)
