"""Whether a slot whose task is over is filled again, and when. Decides from the slot's history, the policy and now only.

Rules (Swarm's, documented under ``docker service create --restart-*``): ``none`` never, ``on-failure`` unless the task
completed, ``any`` always; at most ``max_attempts`` restarts, counted within ``window`` if there is one. The delay is for
tasks that ended by themselves; a slot that lost its node is refilled at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from covey.model.objects import Task
from covey.model.spec import RestartPolicy
from covey.model.task_states import TaskState

#: How a task is over when nobody stopped it.
ENDED_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})


class Attempt(NamedTuple):
    """One task of a slot and its shown state."""

    task: Task
    state: TaskState


class Verdict(NamedTuple):
    """``again``: fill the slot, its task not to run before ``not_before`` (0: at once). ``why`` is for the story."""

    again: bool
    not_before: float
    why: str


def restarts(history: Sequence[Attempt], since: float) -> int:
    """How many tasks of ``history`` were created at or after ``since`` because the one before ended by itself."""
    return sum(1 for before, after in pairwise(history) if before.state in ENDED_BY_ITSELF and after.task.created_at >= since)


def decide(history: Sequence[Attempt], policy: RestartPolicy, now: float, delay: float) -> Verdict:
    """What becomes of the slot whose last task is over; ``history`` is not empty and ordered by attempt.

    A task that was told to stop was judged when it was told: its ``updated_at`` stands for now, so that a refusal
    stays one however the window moves.
    """
    task, state = history[-1]
    if state not in ENDED_BY_ITSELF and state != TaskState.ORPHANED:
        return Verdict(True, 0.0, f"task {task.id} was stopped and its slot is still wanted")
    if policy.condition == "none":
        return Verdict(False, 0.0, f"task {task.id} is {state.label} and its restart condition is none")
    if policy.condition == "on-failure" and state == TaskState.COMPLETE:
        return Verdict(False, 0.0, f"task {task.id} completed and its restart condition is on-failure")
    if state == TaskState.ORPHANED:
        return Verdict(True, 0.0, f"the node {task.node_id} of task {task.id} is lost")
    judged_at = now if task.desired < TaskState.SHUTDOWN else task.updated_at
    since = judged_at - policy.window if policy.window else 0.0
    if policy.max_attempts and restarts(history, since) >= policy.max_attempts:
        return Verdict(False, 0.0, f"task {task.id} is {state.label} after {policy.max_attempts} restarts, the most allowed")
    not_before = now + delay if delay > 0 else 0.0
    return Verdict(True, not_before, f"task {task.id} is {state.label}: restarted after {delay:g} s")
