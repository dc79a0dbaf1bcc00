"""Which replicas would stand better elsewhere: a snapshot → moves, at most so many. Pure; nothing is moved by asking.

It evens out how a service's replicas stand on the nodes it may use, as placement would have done had all nodes been there
(design: replicas go on distinct nodes while there are any): a replica moves from where most are to where fewest are, if that
makes the two more alike. Services placed with ``pack`` want to stand together and are left alone, as are global ones, jobs,
and services in the middle of an update. Where a moved task then goes, placement decides; ``to`` is the node it has room on.
"""

from __future__ import annotations

from typing import NamedTuple

from covey.model.objects import Task
from covey.model.spec import ServiceSpec
from covey.model.task_states import TaskState
from scheduler.placement.constraints import allows, fits_platform
from scheduler.snapshot import NodeView, Snapshot


class Move(NamedTuple):
    """A task that is better moved: from node id to node id, and why in words and numbers."""

    task: str
    service: str
    origin: str
    to: str
    why: str


class _Room:
    """What is left on nodes as planned moves spend it."""

    def __init__(self, snapshot: Snapshot) -> None:
        columns = snapshot.columns
        self._cpus = (columns.total_cpus - columns.used_cpus).tolist()
        self._memory = (columns.total_memory - columns.used_memory).tolist()

    def fits(self, view: NodeView, task: Task, snapshot: Snapshot) -> bool:
        asked = snapshot.task_specs[task.id].reservations
        return bool(asked.nano_cpus <= self._cpus[view.row] and asked.memory_bytes <= self._memory[view.row])

    def spend(self, view: NodeView, task: Task, snapshot: Snapshot, sign: int = 1) -> None:
        asked = snapshot.task_specs[task.id].reservations
        self._cpus[view.row] -= sign * asked.nano_cpus
        self._memory[view.row] -= sign * asked.memory_bytes


def moves(snapshot: Snapshot, most: int) -> tuple[Move, ...]:
    """The ``most`` moves that help most, the largest differences first."""
    room = _Room(snapshot)
    standing = {
        service_id: _standing(snapshot, service_id, spec)
        for service_id, spec in sorted(snapshot.service_specs.items())
        if spec.mode == "replicated" and spec.task.placement.strategy != "pack" and not _updating(snapshot, service_id)
    }
    found: list[Move] = []
    while len(found) < most and (move := _best(snapshot, standing, room)) is not None:
        found.append(move)
    return tuple(found)


def _updating(snapshot: Snapshot, service_id: str) -> bool:
    status = snapshot.service_statuses.get(service_id)
    return status is not None and status.update is not None and status.update.state in ("updating", "rollback_started")


def _standing(snapshot: Snapshot, service_id: str, spec: ServiceSpec) -> dict[str, list[Task]]:
    """Node → wanted running replicas there, for every node the service may use."""
    policy = spec.task.placement
    standing: dict[str, list[Task]] = {
        view.id: []
        for view in snapshot.nodes.values()
        if view.ready and allows(policy.constraints, view) and fits_platform(policy.platforms, view)
    }
    for task in snapshot.tasks_of(service_id):
        running = task.desired == TaskState.RUNNING and snapshot.state(task) == TaskState.RUNNING
        if running and task.node_id in standing:
            standing[task.node_id].append(task)
    for tasks in standing.values():
        tasks.sort(key=lambda task: (task.created_at, task.slot))
    return standing


def _best(snapshot: Snapshot, standing: dict[str, dict[str, list[Task]]], room: _Room) -> Move | None:
    """The move that evens out most, taken into account already; None when there is none."""
    best: tuple[int, str, str, str] | None = None
    for service_id, nodes in standing.items():
        fullest = max(sorted(nodes), key=lambda node_id: len(nodes[node_id]), default="")
        if not fullest or not nodes[fullest]:
            continue
        task = nodes[fullest][-1]
        for node_id in sorted(nodes, key=lambda node_id: (len(nodes[node_id]), node_id)):
            difference = len(nodes[fullest]) - len(nodes[node_id])
            if difference < 2:
                break
            if room.fits(snapshot.nodes[node_id], task, snapshot):
                if best is None or difference > best[0]:
                    best = (difference, service_id, fullest, node_id)
                break
    if best is None:
        return None
    _, service_id, origin, to = best
    nodes = standing[service_id]
    why = f"{len(nodes[origin])} replicas are on node {_name(snapshot, origin)}, {len(nodes[to])} on {_name(snapshot, to)}"
    task = nodes[origin].pop()
    nodes[to].append(task)
    room.spend(snapshot.nodes[to], task, snapshot)
    room.spend(snapshot.nodes[origin], task, snapshot, -1)
    return Move(task.id, service_id, origin, to, why)


def _name(snapshot: Snapshot, node_id: str) -> str:
    return snapshot.nodes[node_id].hostname or node_id
