"""Which tasks should exist: for every service what its mode asks for, and nothing for services that are gone.

Services are decided one by one, slot by slot, and whoever has others to serve can stop now and then (``parts``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from covey.model.task_states import TaskState
from scheduler import drain
from scheduler.draft import Draft
from scheduler.plan import Plan
from scheduler.reconcile import cron, global_, jobs, replicated
from scheduler.reconcile.slots import Work
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole

#: Modes without an entry are refused at the door; of one that got in nothing is decided.
MODES: dict[str, Callable[[Work], Generator[None]]] = {
    "replicated": replicated.decide,
    "global": global_.decide,
    "replicated-job": jobs.decide,
    "global-job": jobs.decide,
}


#: So many tasks, and so many slots, are looked at without a stop.
PART = 2000


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Tasks to create, to stop and to release; wakes when the next delay is over."""
    return whole(parts(snapshot, now, settings))


def parts(snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
    """The same decision, stopping now and then; the snapshot must not change meanwhile."""
    draft = Draft(settings.pass_creates)
    effort = Effort(PART)
    leaving = yield from drain.leaving(snapshot, now, effort)
    if leaving.wake_at is not None:
        draft.wake(leaving.wake_at)
    for service_id, service in snapshot.services.items():
        spec = snapshot.service_specs[service_id]
        mode = cron.decide if spec.cron is not None else MODES.get(spec.mode)
        if mode is not None:
            yield from mode(Work(snapshot, service, now, settings, draft, leaving=leaving, effort=effort))
        if effort.due():
            yield
    for service_id, ids in snapshot.by_service.items():
        if service_id not in snapshot.services:
            wanted = [task_id for task_id in ids if snapshot.tasks[task_id].desired < TaskState.REMOVE]
            draft.move(wanted, f"service {service_id} was removed", desired=TaskState.REMOVE)
            if effort.due(len(ids)):
                yield
    yield
    return draft.plan(snapshot.revision, "reconcile")
