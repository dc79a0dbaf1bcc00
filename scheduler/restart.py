"""Whether a slot whose task is over is filled again, and when. Decides from the slot's history, the policy and now only.

Rules (Swarm's, documented under ``docker service create --restart-*``): ``none`` never, ``on-failure`` unless the task
completed, ``any`` always; at most ``max_attempts`` restarts, counted within ``window`` if there is one. The delay is for
tasks that ended by themselves; a slot that lost its node is refilled at once.

Ours: a slot whose tasks keep crashing is restarted less and less often, and not where they crashed. What is counted stands in
the tasks (``crashes``, ``avoid``), for history is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from covey.ids import tie_break
from covey.model.objects import Task, TaskStatus
from covey.model.spec import RestartPolicy
from covey.model.task_states import TaskState

#: How a task is over when nobody stopped it.
ENDED_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})
FAILURES = frozenset({TaskState.FAILED, TaskState.REJECTED})

#: The share of a backed-off delay that chance (a hash of the task) adds, so that what crashed together is not restarted so.
JITTER = 0.25
#: Nodes that a slot avoids at the most: the latest on which its tasks crashed.
AVOIDED = 3


class Attempt(NamedTuple):
    """One task of a slot and its shown state."""

    task: Task
    state: TaskState


class Record(NamedTuple):
    """What a slot's successor carries on: ``crashes`` in a row, and the nodes they were on too often."""

    crashes: int = 0
    avoid: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """``again``: fill the slot, its task not to run before ``not_before`` (0: at once). ``why`` is for the story."""

    again: bool
    not_before: float
    why: str


def lifetime(status: TaskStatus | None) -> float:
    """For how many seconds a task that is over ran, by its worker's clock; 0 if it never did."""
    return max(status.at - status.started_at, 0.0) if status is not None and status.started_at else 0.0


def record(history: Sequence[Attempt], ran: float, reset: float, avoid_after: int) -> Record:
    """What the successor of the last of ``history`` carries on, if that one ran for ``ran`` seconds.

    Who ran for ``reset`` did not crash. A node is avoided from the ``avoid_after``-th crash in a row on it.
    """
    last, state = history[-1]
    if state not in ENDED_BY_ITSELF:
        return Record(last.crashes, last.avoid)
    if ran >= reset:
        return Record()
    crashes, here = last.crashes + 1, 0
    for task, ended in reversed(history[-crashes:]):
        if task.node_id != last.node_id or ended not in FAILURES:
            break
        here += 1
    if here < avoid_after or not last.node_id:
        return Record(crashes, last.avoid)
    avoid = (*(node for node in last.avoid if node != last.node_id), last.node_id)
    return Record(crashes, avoid[-AVOIDED:])


def backed_off(delay: float, crashes: int, after: int, limit: float, seed: str) -> float:
    """The delay before the restart that follows ``crashes`` in a row: ``after`` times ``delay``, then twice the last one.

    It never exceeds ``limit`` (nor ``delay``, if that is longer); up to a quarter is added by chance, which is a hash of
    ``seed``.
    """
    if crashes <= after or limit <= delay:
        return delay
    doubled = delay * 2.0 ** min(crashes - after, 32)
    return min(doubled * (1 + JITTER * (tie_break("backoff", seed) / 2**64)), limit)


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
