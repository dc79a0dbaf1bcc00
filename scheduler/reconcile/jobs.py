"""Jobs: which tasks an execution still needs until it has completed, and what becomes of the executions before it.

Swarm's rules (manager/orchestrator/jobs): every execution ("iteration") has slots of its own, each of which is to hold one
task that completes; at most ``MaxConcurrent`` of a replicated job's slots are open at a time. A task that fails is followed
by the restart policy, whose ``any`` means ``on-failure`` here: what completed is done. A slot the policy gives up stays
empty, and the job never completes. A new execution ends the one before it. When executions begin, cron knows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import islice

from covey.model.objects import Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.drain import drained
from scheduler.reap import history_limit
from scheduler.reconcile.global_ import eligible
from scheduler.reconcile.slots import Slot, Work, tend
from scheduler.restart import ENDED_BY_ITSELF


def completed(slot: Slot) -> bool:
    """Whether a task of the slot has done its work."""
    return any(attempt.state == TaskState.COMPLETE for attempt in slot.history)


def given_up(work: Work, slot: Slot) -> bool:
    """Whether the restart policy leaves the slot empty: its last task ended or was lost, and nobody is to follow it.

    That a task which failed had been told to stop is not enough: it may have been told to leave its node.
    """
    last = slot.history[-1]
    over = last.task.desired >= TaskState.SHUTDOWN and (last.state in ENDED_BY_ITSELF or last.state == TaskState.ORPHANED)
    return over and not work.judge(slot.history)[0].again


def _end_successor(work: Work, slot: Slot) -> None:
    """A task that was told to stop, and replaced, may complete all the same: what it was to do is done."""
    work.shut_down((attempt.task for attempt in slot.active), f"a slot of job {work.service.id} has completed")


def replicated(work: Work) -> Generator[None]:
    """The slots of the execution ``work.iteration`` of a replicated job."""
    yield from work.gather()
    total, most = work.spec.replicas, work.spec.max_concurrent
    in_progress = 0
    for slot in work.slots.values():
        if completed(slot):
            _end_successor(work, slot)
            in_progress += bool(slot.active)
        else:
            tend(work, slot)
            in_progress += not given_up(work, slot)
        if work.effort.due():
            yield
    free = (number for number in range(1, total + 1) if (number, "") not in work.slots)
    cause = f"job {work.service.id} wants {total} completions, {most} at a time"
    for number in islice(free, max(most - in_progress, 0)):
        work.create((number, ""), replaces="", cause=cause)
        if work.effort.due():
            yield


def everywhere(work: Work) -> Generator[None]:
    """The slots of the execution ``work.iteration`` of a global job: nodes. A node that joins gets its task."""
    yield from work.gather()
    nodes = work.snapshot.nodes
    for (_, node_id), slot in work.slots.items():
        if work.effort.due():
            yield
        if completed(slot):
            _end_successor(work, slot)
            continue
        view = nodes.get(node_id)
        if view is None:
            work.shut_down(slot.tasks(), f"node {node_id} is removed", TaskState.REMOVE)
        elif not eligible(work, view):
            stays = drained(view) and not any(a.task.id in work.leaving.orders for a in slot.active)
            if not stays:
                work.shut_down((a.task for a in slot.active), f"job {work.service.id} is not to run on node {node_id} now")
        elif slot.active or view.ready:
            tend(work, slot)
    for node_id, view in nodes.items():
        if (0, node_id) not in work.slots and view.ready and eligible(work, view):
            work.create((0, node_id), replaces="", cause=f"job {work.service.id} runs on every node")
        if work.effort.due():
            yield


#: Mode → what its execution needs.
MODES: dict[str, Callable[[Work], Generator[None]]] = {"replicated-job": replicated, "global-job": everywhere}


def decide(work: Work) -> Generator[None]:
    """The last execution of a job goes on, those before it end. Stops now and then."""
    yield from _end_former(work)
    yield from MODES[work.spec.mode](work)


def _end_former(work: Work) -> Generator[None]:
    """What has not ended is removed; what has is history, of as many executions as the cluster keeps tasks of a slot."""
    former: dict[int, list[Task]] = {}
    for task in work.snapshot.tasks_of(work.service.id):
        if task.job_iteration != work.iteration:
            former.setdefault(task.job_iteration, []).append(task)
        if work.effort.due():
            yield
    kept = history_limit(work.snapshot, work.settings)
    cause = f"job {work.service.id} was started again"
    for age, iteration in enumerate(sorted(former, reverse=True), start=1):
        tasks = former[iteration]
        if age > kept:
            work.shut_down(tasks, f"more than {kept} executions of job {work.service.id}", TaskState.REMOVE)
        else:
            work.shut_down(unfinished(work, tasks), cause, TaskState.REMOVE)


def unfinished(work: Work, tasks: Iterable[Task]) -> list[Task]:
    """Those of ``tasks`` that are not over."""
    return [task for task in tasks if not is_terminal(work.snapshot.state(task))]
