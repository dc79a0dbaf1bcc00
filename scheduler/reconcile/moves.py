"""How a slot leaves a node: its task there is replaced by one elsewhere, stop-first or start-first.

Which tasks are to leave now, ``scheduler.drain`` decides. Start-first keeps the old task until the new one runs; one that
ends by itself before is tried again by the restart policy, and if that gives up, the old one stays until it must go. A task
that was itself started beside an older one is simply replaced: the older one holds the slot, and three would be too many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covey.model.task_states import TaskState
from scheduler.drain import START_FIRST
from scheduler.restart import Attempt

if TYPE_CHECKING:
    from scheduler.reconcile.slots import Slot, Work


def move(work: Work, slot: Slot) -> bool:
    """Whether the slot is dealt with, because a task of it is to leave its node."""
    going = [attempt for attempt in slot.active if attempt.task.id in work.leaving.orders]
    if not going:
        return False
    kept = max(going, key=lambda a: (a.state >= TaskState.RUNNING, a.task.attempt))
    if len(going) > 1:
        work.shut_down((a.task for a in going if a is not kept), f"slot is filled by task {kept.task.id}")
        return True
    new = [attempt for attempt in slot.active if attempt.task.attempt > kept.task.attempt]
    alone = all(attempt is kept or attempt in new for attempt in slot.active)
    if alone and _order(work, kept) == START_FIRST:
        _start_first(work, slot, kept, new)
    elif new:
        work.shut_down([kept.task], _cause(work, kept))
    else:
        work.create(slot.key, replaces=kept.task.id, cause=_cause(work, kept), marks=work.inherited(kept.task))
    return True


def _order(work: Work, going: Attempt) -> str:
    """Two tasks of a slot of a job would be one completion too many."""
    if work.iteration:
        return ""
    return work.leaving.orders[going.task.id] or work.policy.order


def _cause(work: Work, going: Attempt) -> str:
    view = work.snapshot.nodes.get(going.task.node_id)
    if view is not None and view.node.availability == "drain":
        return f"node {going.task.node_id} is drained"
    return f"task {going.task.id} is moved from node {going.task.node_id}: rebalance"


def _start_first(work: Work, slot: Slot, old: Attempt, new: list[Attempt]) -> None:
    if new:
        newest = new[-1]
        if newest.state >= TaskState.RUNNING:
            work.shut_down([old.task], f"{_cause(work, old)}; task {newest.task.id} runs in its place")
        else:
            work.promote(slot, newest.task)
        return
    tried = [attempt for attempt in slot.history if attempt.task.attempt > old.task.attempt]
    if not tried:
        work.create(slot.key, replaces="", cause=_cause(work, old), marks=work.inherited(old.task))
        return
    verdict, marks = work.judge(tried)
    last = tried[-1].task
    if not verdict.again:
        work.shut_down([last], verdict.why)
        return
    desired = TaskState.READY if verdict.not_before > work.now else work.goal
    work.create(slot.key, replaces=last.id, cause=verdict.why, desired=desired, not_before=verdict.not_before, marks=marks)
