"""Which tasks are to leave their nodes now: of nodes that are drained, and those a rebalance named.

It decides who may be moved in this pass and in which order, so that no more are under way at once than was asked for; how a
slot is moved, ``reconcile.moves`` knows. A plain drain is Docker's: everything at once, stop-first. A drain with a policy goes
step by step until its deadline, after which it is plain. A move is under way until the successor runs, or is given up; a
node that is made active again keeps what is left, and gets nothing back: that is what a rebalance is for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple

from covey.model.objects import DrainPolicy, Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.snapshot import NodeView, Snapshot
from scheduler.steps import Effort

STOP_FIRST = "stop-first"
START_FIRST = "start-first"


class Leaving(NamedTuple):
    """``orders``: task → stop-first, start-first or "" for its service's own. ``wake_at``: when a deadline passes."""

    orders: Mapping[str, str] = {}
    wake_at: float | None = None


def leaving(snapshot: Snapshot, now: float, effort: Effort) -> Generator[None, None, Leaving]:
    """The tasks that are to leave their nodes now. Stops now and then."""
    orders: dict[str, str] = {}
    deadlines: list[float] = []
    for node_id, view in snapshot.nodes.items():
        if view.node.availability != "drain" or node_id not in snapshot.by_node:
            continue
        if effort.due(len(snapshot.by_node[node_id])):
            yield
        policy = view.node.drain
        tasks = [task for task in snapshot.tasks_on(node_id) if _wanted(snapshot, task)]
        end = policy.since + policy.deadline if policy is not None and policy.deadline else None
        if policy is None or (end is not None and now >= end):
            orders |= dict.fromkeys((task.id for task in tasks), STOP_FIRST)
            continue
        if tasks and end is not None:
            deadlines.append(end)
        orders |= yield from _step(snapshot, tasks, policy, effort)
    orders |= yield from _rebalanced(snapshot, effort)
    return Leaving(orders, min(deadlines, default=None))


def _step(
    snapshot: Snapshot, tasks: Iterable[Task], policy: DrainPolicy, effort: Effort
) -> Generator[None, None, dict[str, str]]:
    """What may leave a node by its policy: global tasks at once, of the others so many that no more are under way.

    Until there is a deadline that ends them, the tasks of jobs are let complete.
    """
    chosen = [task for task in tasks if not task.slot and not (task.job_iteration and policy.deadline)]
    movable = [task for task in tasks if task.slot and not (task.job_iteration and policy.deadline)]
    chosen += yield from _within(snapshot, movable, policy.parallelism, None, effort)
    return dict.fromkeys((task.id for task in chosen), policy.order)


def _rebalanced(snapshot: Snapshot, effort: Effort) -> Generator[None, None, dict[str, str]]:
    """Of the tasks a rebalance named those that are still wanted, so many at a time."""
    asked = snapshot.cluster.rebalance if snapshot.cluster is not None else None
    if asked is None:
        return {}
    tasks = [snapshot.tasks[task_id] for task_id in asked.tasks if task_id in snapshot.tasks]
    movable = [task for task in tasks if _wanted(snapshot, task) and task.desired == TaskState.RUNNING]
    chosen = yield from _within(snapshot, movable, asked.parallelism, asked.tasks, effort)
    return dict.fromkeys((task.id for task in chosen), "")


def _within(
    snapshot: Snapshot, tasks: list[Task], parallelism: int, origins: Iterable[str] | None, effort: Effort
) -> Generator[None, None, list[Task]]:
    """Of ``tasks`` those under way and so many more that ``parallelism`` (0: all) are; ``origins``: what left before.

    What does not run yet goes first: nobody misses it.
    """
    if not parallelism:
        return tasks
    started: set[str] = set()
    under_way = 0
    for task_id, begun in (yield from _successors(snapshot, tasks, origins, effort)):
        started.add(task_id)
        under_way += begun
    rest = [task for task in tasks if task.id not in started]
    rest.sort(key=lambda task: (snapshot.state(task) == TaskState.RUNNING, task.service_id, task.slot_key))
    return [task for task in tasks if task.id in started] + rest[: max(parallelism - under_way, 0)]


def _successors(
    snapshot: Snapshot, tasks: list[Task], origins: Iterable[str] | None, effort: Effort
) -> Generator[None, None, list[tuple[str, bool]]]:
    """(task that is left, whether its move is under way) for every move that has begun and is not known to be over."""
    if origins is None:
        nodes = {task.node_id for task in tasks}
        origins = [task_id for node_id in nodes for task_id in snapshot.by_node[node_id]]
    left = set(origins)
    services = {snapshot.tasks[task_id].service_id for task_id in left if task_id in snapshot.tasks}
    by_slot = {(task.service_id, *task.slot_key): task for task in tasks}
    found: list[tuple[str, bool]] = []
    for service_id in services:
        attempts: dict[tuple[int, int, str, int], str] = {}
        for task in snapshot.tasks_of(service_id):
            attempts[*task.slot_key, task.attempt] = task.id
            if effort.due():
                yield
        for task in snapshot.tasks_of(service_id):
            if effort.due():
                yield
            if not _wanted(snapshot, task):
                continue
            begun = snapshot.state(task) < TaskState.RUNNING
            old = by_slot.get((task.service_id, *task.slot_key))
            # What was started beside a task replaces nobody, and goes on being its successor when that one ends by itself.
            before = task.replaces or attempts.get((*task.slot_key, task.attempt - 1), "")
            if old is not None and old.attempt < task.attempt:
                found.append((old.id, begun))
            elif before in left and begun:
                found.append((before, True))
    return found


def _wanted(snapshot: Snapshot, task: Task) -> bool:
    return task.desired < TaskState.SHUTDOWN and not is_terminal(snapshot.state(task))


def drained(view: NodeView | None) -> bool:
    """Whether people want a node empty."""
    return view is not None and view.node.availability == "drain"
