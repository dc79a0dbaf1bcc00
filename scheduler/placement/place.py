"""Gives pending tasks their nodes. Decides in the order in which tasks were made, spending capacity as it goes.

Tasks that are alike (one service, one spec version, one place bound or free) are decided together. A task that fits
nowhere gets the reason as its message; the message is written when it changes and not otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from covey.model.objects import Task
from covey.model.spec import TaskSpec
from covey.model.task_states import TaskState, is_terminal
from scheduler.draft import Draft
from scheduler.placement.capacity import Capacity, host_ports
from scheduler.placement.constraints import node_attributes
from scheduler.placement.feasible import Mask, Request, feasible
from scheduler.placement.rank import Standing, best, keys
from scheduler.plan import Plan
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

ASSIGNED_MESSAGE = "scheduler assigned task to node"


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Nodes for pending tasks that have a suitable one, at most ``settings.pass_tasks`` of them: the rest at once after."""
    draft = Draft()
    waiting = _waiting(snapshot)
    if waiting:
        capacity = Capacity(snapshot, settings)
        room = settings.pass_tasks
        left: list[tuple[list[Task], Request]] = []
        for tasks in waiting:
            if not room:
                break
            refused, request = _place_alike(tasks[:room], capacity, now, draft)
            room -= min(len(tasks), room) - len(refused)
            left.append((refused, request))
        if not room:
            draft.wake(now)
        for tasks, request in left:
            if tasks:
                _, refusals = feasible(capacity, request, only=tasks[0].node_id)
                message = str(refusals)
                draft.move((task.id for task in tasks if task.message != message), message, message=message)
    return draft.plan(snapshot.revision, "placement")


def _waiting(snapshot: Snapshot) -> list[list[Task]]:
    """Pending tasks, alike ones together, the longest waiting first."""
    alike: dict[tuple[str, int, str, tuple[str, ...]], list[Task]] = {}
    for task in snapshot.tasks.values():
        if task.state == TaskState.PENDING and task.desired <= TaskState.COMPLETE:
            alike.setdefault((task.service_id, task.spec_version, task.node_id, task.avoid), []).append(task)
    for tasks in alike.values():
        tasks.sort(key=lambda task: (task.created_at, task.slot, task.id))
    return sorted(alike.values(), key=lambda tasks: (tasks[0].created_at, tasks[0].service_id, tasks[0].node_id))


def _place_alike(tasks: list[Task], capacity: Capacity, now: float, draft: Draft) -> tuple[list[Task], Request]:
    """Assign what fits; the tasks that do not. Why is asked when everything is placed, or it would change with it."""
    first = tasks[0]
    spec = capacity.snapshot.task_specs[first.id]
    standing = _standing(first, spec, capacity, now)
    request = Request(spec, host_ports(first.ports), standing.replicas)
    strategy = spec.placement.strategy or capacity.settings.strategy
    for at, task in enumerate(tasks):
        left, _ = feasible(capacity, request, only=task.node_id)
        if not left.any():
            return tasks[at:], request
        row = best(task.id, left, keys(strategy, capacity, standing), capacity.ids)
        capacity.spend(row, spec, request.ports)
        standing.replicas[row] += 1
        draft.assign(task.id, capacity.ids[row], _reason(strategy, left), ASSIGNED_MESSAGE)
    return [], request


def _reason(strategy: str, left: Mask) -> str:
    count = int(left.sum())
    return f"placement: {strategy} among {count} suitable node{'s' if count > 1 else ''}"


def _standing(task: Task, spec: TaskSpec, capacity: Capacity, now: float) -> Standing:
    """What the task's service has where. A replica counts while its task is wanted and not over."""
    snapshot, settings = capacity.snapshot, capacity.settings
    replicas = np.zeros(len(capacity.ids), dtype=np.int64)
    failures = np.zeros(len(capacity.ids), dtype=np.int64)
    for other in snapshot.tasks_of(task.service_id):
        view = snapshot.nodes.get(other.node_id)
        if view is None or other.state < TaskState.ASSIGNED:
            continue
        state = snapshot.state(other)
        if not is_terminal(state):
            replicas[view.row] += other.desired < TaskState.SHUTDOWN
        elif state in (TaskState.FAILED, TaskState.REJECTED) and other.spec_version == task.spec_version:
            status = snapshot.statuses.get(other.id)
            failures[view.row] += status is not None and status.at > now - settings.failure_window
    failing = np.where(failures >= settings.failure_limit, failures, 0).astype(np.int64)
    for node_id in task.avoid:
        if (view := snapshot.nodes.get(node_id)) is not None:
            failing[view.row] += 1
    branches = tuple(_branches(spec.placement.spread, capacity))
    return Standing(replicas, failing, branches)


def _branches(descriptors: tuple[str, ...], capacity: Capacity) -> Iterable[npt.NDArray[np.int64]]:
    """For each level of the spread preferences, the number of the branch each row belongs to."""
    paths: list[tuple[str, ...]] = [()] * len(capacity.ids)
    for descriptor in descriptors:
        for node_id, view in capacity.snapshot.nodes.items():
            if node_id:
                paths[view.row] = (*paths[view.row], node_attributes(view).get(descriptor, ""))
        numbers: dict[tuple[str, ...], int] = {}
        yield np.array([numbers.setdefault(path, len(numbers)) for path in paths], dtype=np.int64)
