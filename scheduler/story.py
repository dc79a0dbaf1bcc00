"""The life of a task in lines, cradle to grave, from what is stored of it. Decides wording only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from covey.model.objects import Task, TaskStatus, shown_state
from covey.model.task_states import TaskState, is_terminal


class Line(NamedTuple):
    """``at`` seconds since the epoch (0: not recorded), ``who`` leader or worker, ``what`` in words."""

    at: float
    who: str
    what: str


def story(
    task: Task,
    status: TaskStatus | None,
    history: Sequence[Task] = (),
    statuses: Mapping[str, TaskStatus] | None = None,
    node_name: str = "",
) -> list[Line]:
    """What is known of ``task``, told in order of time, with the tasks before and after it in its slot (``history``)."""
    statuses = statuses or {}
    lines = [_before(old, statuses.get(old.id)) for old in history if old.id == task.replaces]
    lines.append(Line(task.created_at, "leader", f"created as attempt {task.attempt} of {_place(task)}"))
    if task.not_before:
        lines.append(Line(task.created_at, "leader", f"not to run before {task.not_before:.3f}"))
    lines += [
        Line(0.0, "leader", f"given {', '.join(given.addresses)} in network {given.network_id}") for given in task.networks
    ]
    if task.state >= TaskState.ASSIGNED and task.node_id:
        lines.append(Line(0.0, "leader", f"assigned to node {node_name or task.node_id}"))
    else:
        lines.append(Line(task.updated_at, "leader", f"is {task.state.label}" + (f": {task.message}" if task.message else "")))
    if status is not None:
        lines.append(Line(status.at, "worker", _observed(status)))
    if task.state > TaskState.ASSIGNED:
        lines.append(Line(task.updated_at, "leader", f"became {task.state.label}: {task.message or task.cause}"))
    lines.append(Line(task.updated_at, "leader", f"last decision: {task.cause or 'none'}; desired {task.desired.label}"))
    lines += [
        Line(new.created_at, "leader", f"followed by task {new.id}: {new.cause}") for new in history if new.replaces == task.id
    ]
    return lines


def _place(task: Task) -> str:
    name = task.service_name or task.service_id
    return f"slot {task.place} of service {name}" if task.slot else f"service {name} on node {task.node_id}"


def _before(old: Task, status: TaskStatus | None) -> Line:
    state = shown_state(old, status)
    ended = status.at if status is not None and is_terminal(state) else old.updated_at
    return Line(ended, "worker" if status is not None else "leader", f"its predecessor {old.id} is {state.label}")


def _observed(status: TaskStatus) -> str:
    said = f"is {status.state.label}"
    if status.pid and not is_terminal(status.state):
        said += f" as process {status.pid}"
    if status.exit_code is not None:
        said += f", exit code {status.exit_code}"
    if status.oom_killed:
        said += ", killed for lack of memory"
    if status.health:
        said += f", {status.health}"
    reason = status.error or status.message
    return f"{said}: {reason}" if reason else said
