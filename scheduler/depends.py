"""Whether the services that a service waits for are as far as it wants them: the gate of ``depends_on``.

It decides for new tasks only, and by what is so now: one that starts later, for whatever reason, waits again if what it needs
is gone by then. The gate stands before allocation, where a task has neither address nor node: what waits takes no room from
what is waited for, and cannot be lost, as it is a stored task whose message says what it waits for. It must not know what
happens to a task that may go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from covey.model.dependencies import Dependency
from covey.model.objects import Service, Task
from covey.model.task_states import TaskState
from scheduler.reconcile.cron import last_run
from scheduler.snapshot import Snapshot


def waiting_for(snapshot: Snapshot, service_id: str) -> str:
    """What new tasks of a service wait for, as their message says it; "" when they may start."""
    spec = snapshot.service_specs.get(service_id)
    if spec is None:
        return ""
    for dependency in spec.depends_on:
        if why := _unmet(snapshot, dependency):
            return why
    return ""


def _unmet(snapshot: Snapshot, dependency: Dependency) -> str:
    service = next((each for each in snapshot.services.values() if each.name == dependency.service), None)
    if service is None:
        return f"waiting for service {dependency.service}, which does not exist: create it or update this service"
    met, words = _CONDITIONS[dependency.condition]
    return "" if met(snapshot, service) else f"waiting for service {service.name} to {words}"


def _tasks(snapshot: Snapshot, service: Service) -> Iterable[Task]:
    iteration = last_run(snapshot, service)
    return (task for task in snapshot.tasks_of(service.id) if task.job_iteration == iteration)


def _started(snapshot: Snapshot, service: Service) -> bool:
    """Whether a process of it runs, however healthy, or has done its work."""
    return _healthy(snapshot, service) or any(
        snapshot.state(task) == TaskState.COMPLETE or (task.desired <= TaskState.COMPLETE and _process_runs(snapshot, task))
        for task in _tasks(snapshot, service)
    )


def _process_runs(snapshot: Snapshot, task: Task) -> bool:
    """A task stays STARTING until its health check has passed; its process has an id long before."""
    status = snapshot.statuses.get(task.id)
    return status is not None and status.pid > 0 and snapshot.state(task) == TaskState.STARTING


def _healthy(snapshot: Snapshot, service: Service) -> bool:
    """Whether a task of it runs: with a health check, it does only once that has passed."""
    return any(
        task.desired <= TaskState.COMPLETE and snapshot.state(task) == TaskState.RUNNING for task in _tasks(snapshot, service)
    )


def _completed(snapshot: Snapshot, service: Service) -> bool:
    """Whether every slot it is to have has a task that ended with exit code 0: a job's last execution, or what ran once."""
    spec = snapshot.service_specs[service.id]
    slots: dict[tuple[int, int, str], bool] = {}
    for task in _tasks(snapshot, service):
        slots[task.slot_key] = slots.get(task.slot_key, False) or snapshot.state(task) == TaskState.COMPLETE
    if spec.mode.startswith("replicated"):
        return sum(slots.values()) >= spec.replicas
    return bool(slots) and all(slots.values())


_CONDITIONS: Mapping[str, tuple[Callable[[Snapshot, Service], bool], str]] = {
    "started": (_started, "start"),
    "healthy": (_healthy, "be healthy"),
    "completed": (_completed, "complete"),
}


def circle(names: Mapping[str, Iterable[str]], start: str) -> tuple[str, ...]:
    """The way from ``start`` over what each name depends on back to it, both ends included; empty when there is none."""
    came: dict[str, str] = {}
    edge = [start]
    while edge:
        name = edge.pop()
        for other in names.get(name, ()):
            if other == start:
                way = [start, name]
                while way[-1] != start:
                    way.append(came[way[-1]])
                return tuple(reversed(way))
            if other not in came:
                came[other] = name
                edge.append(other)
    return ()
