"""How an update or rollback of a service goes as a whole: the life of Docker's UpdateStatus, and when it is taken back.

It decides from how the rollout stands (scheduler/rollout.py), the policy and the time. What it decides is about one
generation of the service: a newer spec supersedes it, whatever state it was in, as in SwarmKit any update does. The states
and their messages are those of SwarmKit's updater.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from covey.model.objects import Service, ServiceStatus, UpdateStatus
from covey.model.versions import port_names
from scheduler.plan import PutServiceStatus, RollBack

if TYPE_CHECKING:
    from scheduler.reconcile.slots import Work
    from scheduler.rollout import Standing

GOING_ON = ("updating", "rollback_started")
HELD = ("paused", "rollback_paused")


def present(service: Service, account: ServiceStatus | None) -> UpdateStatus | None:
    """What there is to say of the service's present spec: what the leader wrote, or what a rollback asked for will be."""
    if account is not None and account.update is not None and account.update.generation == service.generation:
        return account.update
    if service.rolling_back:
        return UpdateStatus(
            state="rollback_started",
            started_at=service.updated_at,
            message="manually requested rollback",
            generation=service.generation,
        )
    return None


def follow(work: Work, standing: Standing) -> bool:
    """Keep the service's update status; whether outdated slots are to be replaced now."""
    held = work.snapshot.service_statuses.get(work.service.id)
    before = present(work.service, held)
    status = _begun(work, standing, before)
    if status is None or status.state in HELD:
        return False
    if status.state not in GOING_ON:
        return bool(standing.retried)
    if failure := _failure(work, standing):
        return _act(work, status, failure, held)
    if not standing.waiting and not standing.flying and _monitored(work, standing):
        status = _completed(work, status)
    if held is None or held.update != status:
        _put(work, status, held)
    return status.state in GOING_ON


def _begun(work: Work, standing: Standing, status: UpdateStatus | None) -> UpdateStatus | None:
    """``status``, or that of an update that begins: nothing was said of this spec yet, or a node came back with old tasks."""
    if not standing.waiting or (status is not None and status.state in (*GOING_ON, *HELD)):
        return status
    state, message = "updating", "update in progress"
    if work.service.rolling_back:
        state, message = "rollback_started", "rollback in progress"
    return UpdateStatus(state=state, started_at=work.now, message=message, generation=work.service.generation)


def _failure(work: Work, standing: Standing) -> str:
    """The task whose end was one too many for the policy, "" if there is none."""
    policy = work.policy
    count = len(standing.failed)
    if not count or policy.failure_action == "continue" or count / standing.total <= policy.max_failure_ratio:
        return ""
    statuses = work.snapshot.statuses
    return max(standing.failed, key=lambda task: (statuses[task.id].stored_at, task.id)).id


def _act(work: Work, status: UpdateStatus, task_id: str, held: ServiceStatus | None) -> bool:
    """Pause, or take the update back; nothing more is replaced in this pass."""
    service = work.service
    because = f"due to failure or early termination of task {task_id}"
    if service.rolling_back:
        _put(work, msgspec.structs.replace(status, state="rollback_paused", message=f"rollback paused {because}"), held)
        return False
    if work.policy.failure_action == "rollback":
        why_not = _impossible(work)
        if not why_not:
            message = f"update rolled back {because}"
            new = msgspec.structs.replace(status, state="rollback_started", message=message)
            work.draft.add(RollBack(_account(work, new, held), service.generation, message))
            return False
        because += f", and cannot be rolled back: {why_not}"
    _put(work, msgspec.structs.replace(status, state="paused", message=f"update paused {because}"), held)
    return False


def _impossible(work: Work) -> str:
    """Why the service's previous spec cannot come back, "" if it can."""
    service = work.service
    if service.previous_spec is None:
        return "it has no previous spec"
    for port in sorted(port_names(service.previous_spec)):
        owner = work.snapshot.port_owner(port)
        if owner not in ("", service.id):
            return f"port {port} is in use by service {owner} now"
    return ""


def _monitored(work: Work, standing: Standing) -> bool:
    """Whether the time to watch the last new task is over. Wakes the pass when it will be."""
    until = max(standing.settled.values(), default=0.0) + work.policy.monitor
    if not standing.settled or work.now >= until:
        return True
    work.draft.wake(until)
    return False


def _completed(work: Work, status: UpdateStatus) -> UpdateStatus:
    state, message = "completed", "update completed"
    if work.service.rolling_back:
        state, message = "rollback_completed", "rollback completed"
    return msgspec.structs.replace(status, state=state, message=message, completed_at=work.now)


def _account(work: Work, status: UpdateStatus, held: ServiceStatus | None) -> ServiceStatus:
    return msgspec.structs.replace(held or ServiceStatus(id=work.service.id), update=status)


def _put(work: Work, status: UpdateStatus, held: ServiceStatus | None) -> None:
    cause = f"update of service {work.service.id} is {status.state}"
    work.draft.add(PutServiceStatus(_account(work, status, held), cause))
