"""What may be forgotten: history beyond what is kept a slot, tasks that are to be removed, statuses of what is gone.

It decides deletions only of tasks that are over or never reached a node. The last attempt of a slot that is still wanted
is never forgotten: the next attempt's id counts on from it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from covey.model.objects import Task
from covey.model.spec import RestartPolicy
from covey.model.task_states import TaskState, is_terminal
from scheduler.draft import Draft
from scheduler.plan import DropStatus, Plan
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole

#: So many tasks, and so many slots, are looked at without a stop.
PART = 10_000


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Deletions, and the end of tasks that were told to stop before they had a node."""
    return whole(parts(snapshot, now, settings))


def parts(snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
    """The same decision, stopping now and then; the snapshot must not change meanwhile."""
    draft = Draft()
    effort = Effort(PART)
    limit = history_limit(snapshot, settings)
    for service_id in snapshot.by_service:
        yield from _reap_service(snapshot, service_id, limit, now, draft, effort)
    strays: list[str] = []
    for task_id in snapshot.statuses:
        if task_id not in snapshot.tasks:
            strays.append(task_id)
        if effort.due():
            yield
    draft.delete(strays, "a status whose task is gone")
    for kind, held, owners in (
        ("node_status", snapshot.node_statuses, snapshot.nodes),
        ("service_status", snapshot.service_statuses, snapshot.services),
    ):
        for key in held:
            if key not in owners:
                draft.add(DropStatus(kind, key, f"{kind.split('_')[0]} {key} was removed"))
    return draft.plan(snapshot.revision, "reap")


def history_limit(snapshot: Snapshot, settings: Settings) -> int:
    """How many tasks that are over are kept a slot: the cluster's TaskHistoryRetentionLimit, or the settings'."""
    spec: dict[str, Any] = snapshot.cluster.spec if snapshot.cluster is not None else {}
    said = (spec.get("Orchestration") or {}).get("TaskHistoryRetentionLimit")
    return settings.history if said is None else int(said)


def _reap_service(snapshot: Snapshot, service_id: str, limit: int, now: float, draft: Draft, effort: Effort) -> Generator[None]:
    slots: dict[tuple[int, int, str], list[Task]] = {}
    removed: list[str] = []
    for task in snapshot.tasks_of(service_id):
        if task.desired < TaskState.REMOVE:
            slots.setdefault(task.slot_key, []).append(task)
        elif _finished(snapshot, task):
            removed.append(task.id)
        if effort.due():
            yield
    draft.delete(removed, "removed and over")
    for tasks in slots.values():
        if len(tasks) > 1 or tasks[0].state < TaskState.ASSIGNED:
            tasks.sort(key=lambda task: task.attempt)
            _reap_slot(snapshot, tasks, limit, now, draft)
        if effort.due():
            yield


def _finished(snapshot: Snapshot, task: Task) -> bool:
    return task.state < TaskState.ASSIGNED or task.node_id not in snapshot.nodes or is_terminal(snapshot.state(task))


def _reap_slot(snapshot: Snapshot, tasks: list[Task], limit: int, now: float, draft: Draft) -> None:
    """``tasks`` of one wanted slot by attempt."""
    last = tasks[-1]
    if last.desired >= TaskState.SHUTDOWN and last.state < TaskState.ASSIGNED:
        draft.move((last.id,), "stopped before it had a node", state=TaskState.REMOVE)
    over: list[Task] = []
    generation = _generation(snapshot, last.service_id)
    for task in tasks[:-1]:
        if task.desired < TaskState.SHUTDOWN:
            continue
        if task.rollout == generation and is_terminal(snapshot.state(task)):
            continue  # the rollout counts what became of the tasks it made
        if task.state < TaskState.ASSIGNED or task.state == TaskState.REMOVE:
            draft.delete((task.id,), "stopped before it had a node")
        elif task.state == TaskState.ORPHANED and task.node_id not in snapshot.nodes:
            draft.delete((task.id,), "orphaned and its node is gone")
        elif task.state == TaskState.ORPHANED:
            over += [task] if _worker_ended(snapshot, task) else []
        elif is_terminal(snapshot.state(task)):
            over.append(task)
    kept = max(limit, _counted(snapshot.task_specs[last.id].restart, over, now))
    surplus = over[: max(len(over) - kept, 0)]
    draft.delete((task.id for task in surplus), f"more than {kept} tasks of a slot that are over")


def _generation(snapshot: Snapshot, service_id: str) -> int:
    service = snapshot.services.get(service_id)
    return service.generation if service is not None else -1


def _worker_ended(snapshot: Snapshot, task: Task) -> bool:
    """Whether the worker itself said that the task is over. Until then an orphan may run, and keeps its addresses."""
    status = snapshot.statuses.get(task.id)
    return status is not None and is_terminal(status.state)


def _counted(policy: RestartPolicy, over: list[Task], now: float) -> int:
    """How many tasks the restart policy still has to count: it allows so many restarts within its window."""
    if not policy.max_attempts:
        return 0
    since = now - policy.window if policy.window else 0.0
    return min(policy.max_attempts, sum(1 for task in over if task.created_at >= since)) + 1
