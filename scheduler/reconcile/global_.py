"""Global services: one task on every node that may have one. The slot of such a task is its node.

A node that is paused, silent or down keeps what it has and gets nothing; one that is drained, or that the constraints
no longer allow, is cleared; one that is gone is forgotten.
"""

from __future__ import annotations

from collections.abc import Generator

from covey.model.task_states import TaskState
from scheduler import rollout
from scheduler.placement.constraints import allows, fits_platform
from scheduler.reconcile.slots import Slot, Work, tend
from scheduler.snapshot import NodeView


def decide(work: Work) -> Generator[None]:
    """Collect in ``work.draft`` what the service's slots need, stopping now and then."""
    yield from work.gather()
    kept: list[Slot] = []
    for (_, node_id), slot in work.slots.items():
        view = work.snapshot.nodes.get(node_id)
        if view is None:
            work.shut_down(slot.tasks(), f"node {node_id} is removed", TaskState.REMOVE)
        elif not eligible(work, view):
            work.shut_down((a.task for a in slot.active), f"service {work.service.id} is not to run on node {node_id} now")
        elif slot.active or view.ready:
            kept.append(slot)
        if work.effort.due():
            yield
    if work.spec.stopped:
        return rollout.stop(work, kept)
    silent = {slot.key for slot in kept if not work.snapshot.nodes[slot.key[1]].ready}
    chosen = yield from rollout.decide(work, kept, left_alone=silent)
    for slot in kept:
        if slot.key not in chosen:
            tend(work, slot)
        if work.effort.due():
            yield
    for node_id, view in work.snapshot.nodes.items():
        if (0, node_id) not in work.slots and view.ready and eligible(work, view):
            work.create((0, node_id), replaces="", cause=f"service {work.service.id} runs on every node")
        if work.effort.due():
            yield


def eligible(work: Work, view: NodeView) -> bool:
    """Whether the service may have a task on a node, were it ready."""
    policy = work.spec.task.placement
    drained = view.node.availability == "drain"
    return not drained and allows(policy.constraints, view) and fits_platform(policy.platforms, view)
