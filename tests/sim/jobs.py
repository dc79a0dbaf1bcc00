"""Jobs in the simulation: what a user does with them, how their containers end, and what must hold of them.

The oracles count tasks themselves; of the brain they use nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from covey.model.objects import Service, Task
from covey.model.resources import NANO
from covey.model.task_states import TaskState, is_terminal

if TYPE_CHECKING:
    from tests.sim.client import Client
    from tests.sim.controller import Controller
    from tests.sim.oracles import Oracles
    from tests.sim.simulation import Simulation

S = TaskState

MOST = 3
"""Services that are jobs, at the most."""

UNDER_WAY = 10.0
"""So long before a decision something may have been reported and yet not be in the store, by the clocks of two managers."""


async def act(client: Client) -> None:
    """A user makes a job, or has one run again, with other numbers or the same."""
    rng = client.sim.rng
    held = [service for service in client.services.values() if service.job_iteration]
    if len(held) < MOST and (not held or rng.random() < 0.5):
        return await client.make(_mode(client.sim), _policy(client.sim))
    service = rng.choice(held)
    mode = service.spec["Mode"] if "GlobalJob" in service.spec["Mode"] or rng.random() < 0.5 else _numbers(client.sim)
    await client.change(service, {**service.spec, "Mode": mode})


def _mode(sim: Simulation) -> dict[str, Any]:
    return {"GlobalJob": {}} if sim.rng.random() < 0.3 else _numbers(sim)


def _numbers(sim: Simulation) -> dict[str, Any]:
    return {"ReplicatedJob": {"MaxConcurrent": sim.rng.randint(1, 3), "TotalCompletions": sim.rng.randint(1, 6)}}


def _policy(sim: Simulation) -> dict[str, Any]:
    condition = sim.rng.choice(("any", "on-failure", "on-failure", "none"))
    return {"Condition": condition, "Delay": sim.rng.choice((0, 1, 3)) * NANO, "MaxAttempts": sim.rng.choice((0, 0, 2))}


def end_of(sim: Simulation, task_id: str) -> tuple[float, int] | None:
    """After how many seconds, and with which code, the process of a job's task ends; None: it is no job's."""
    task = sim.oracles.truth.snapshot().tasks.get(task_id)
    if task is None or not task.job_iteration:
        return None
    failing = 0.25 if sim.trouble.exits else 0.0
    return sim.rng.expovariate(1 / 5), sim.rng.choice((1, 137)) if sim.rng.random() < failing else 0


def judge(oracles: Oracles, task: Task, writer: Controller | None) -> None:
    """A task of a job was created."""
    oracles.sim.cover("tasks of jobs")
    snapshot = oracles.truth.snapshot()
    service = snapshot.services.get(task.service_id)
    if service is None or task.job_iteration != service.job_iteration:
        return
    mode = service.spec["Mode"].get("ReplicatedJob")
    alike = [other for other in snapshot.tasks_of(service.id) if other.job_iteration == task.job_iteration]
    active = [other.id for other in alike if other.desired <= S.COMPLETE and not is_terminal(snapshot.state(other))]
    if mode is not None and len(active) > mode["MaxConcurrent"]:
        oracles.broken("more of a job at a time than allowed", f"{service.id} has {active}, may have {mode['MaxConcurrent']}")
    done = {other.slot_key for other in alike if _known_complete(other, task.created_at, writer)}
    if task.slot_key in done:
        oracles.broken("a slot of a job that had completed was filled again", f"{service.id} {task.slot_key}: {task.id}")
    if mode is not None and len(done | {other.slot_key for other in alike}) > mode["TotalCompletions"]:
        oracles.broken("a job has more slots than completions wanted", f"{service.id}: {sorted(t.slot_key for t in alike)}")


def _known_complete(task: Task, at: float, writer: Controller | None) -> bool:
    """Whether who writes what was decided ``at`` had seen that ``task`` is complete: views lag, decisions are under way."""
    view = writer.mirror.snapshot() if writer is not None and writer.mirror is not None else None
    held, status = (view.tasks.get(task.id), view.statuses.get(task.id)) if view is not None else (None, None)
    if view is None or held is None or status is None:
        return False
    return view.state(held) == S.COMPLETE and status.stored_at < at - UNDER_WAY


def problem(oracles: Oracles, service: Service, waiting: list[Task]) -> str:
    """What a job lacks at the end, "" when each of its slots is complete or was given up by its policy, or has to wait."""
    snapshot = oracles.truth.snapshot()
    slots: dict[tuple[int, int, str], list[Task]] = {}
    for task in snapshot.tasks_of(service.id):
        if task.desired <= S.COMPLETE and not is_terminal(snapshot.state(task)) and task not in waiting:
            return f"job {service.id} is not over: {task.id} is {snapshot.state(task).label}"
        if task.job_iteration == service.job_iteration:
            slots.setdefault(task.slot_key, []).append(task)
    if waiting:
        return ""
    mode = service.spec["Mode"]
    if "ReplicatedJob" in mode:
        wanted = {(service.job_iteration, n, "") for n in range(1, mode["ReplicatedJob"]["TotalCompletions"] + 1)}
    else:
        active = {view.id for view in snapshot.nodes.values() if view.node.availability == "active"}
        wanted = {(service.job_iteration, 0, node_id) for node_id in active if node_id in oracles.sim.machines}
    for key in sorted(wanted):
        states = [snapshot.state(task) for task in slots.get(key, ())]
        if S.COMPLETE not in states and not _given_up(service, states):
            return f"job {service.id}: slot {key} has {[state.label for state in states]}"
    return ""


def _given_up(service: Service, states: list[TaskState]) -> bool:
    policy = service.spec["TaskTemplate"]["RestartPolicy"]
    failures = sum(state in (S.FAILED, S.REJECTED) for state in states)
    if policy["Condition"] == "none":
        return failures > 0 or S.ORPHANED in states
    return 0 < policy["MaxAttempts"] < failures
