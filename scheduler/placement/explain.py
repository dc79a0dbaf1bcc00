"""Why a task is where it is, or why it waits: per node the filter that refuses it, with numbers, and what would help.

Pure data for routes and commands; it decides nothing and writes nothing. A task that has its node is explained as if it
were to be placed now, without itself being counted anywhere else than where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from covey.model.resources import MIB, NANO
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity, Mask
from scheduler.placement.constraints import node_attributes
from scheduler.placement.feasible import has_room, refusals, suitable, words
from scheduler.placement.rank import DISTINCT, preference, strategy_of
from scheduler.placement.request import Request, request_of
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Verdict:
    """One node. ``filter`` is "" where the task would fit; ``rank`` counts from 1 among those nodes, 0 elsewhere.

    ``score`` is the strategy's number (the least is the best; shares of a node), ``replicas`` those of the task's service
    there. ``remedy`` says what would make it fit.
    """

    node_id: str
    hostname: str
    filter: str = ""
    reason: str = ""
    remedy: str = ""
    rank: int = 0
    score: float = 0.0
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """``node_id`` is where the task is, or would go now ("" : nowhere); ``message`` what it shows if it waits."""

    task_id: str
    strategy: str
    node_id: str
    message: str
    verdicts: tuple[Verdict, ...]


def explain(snapshot: Snapshot, task_id: str, now: float, settings: Settings) -> Explanation:
    """The explanation of one task. KeyError: the snapshot has no such task."""
    task = snapshot.tasks[task_id]
    capacity = Capacity(snapshot, settings)
    request = request_of(task, capacity, now, Bonds(capacity), shared=True)
    strategy = strategy_of(request, capacity)
    bound = task.node_id if task.node_id and not task.slot else ""
    fits = suitable(capacity, request) & has_room(capacity, request, slice(None))
    if bound:
        fits &= np.array([node_id == bound for node_id in capacity.ids], dtype=np.bool_)
    ranks = _ranks(capacity, request, strategy, fits)
    verdicts = tuple(_verdict(capacity, request, strategy, row, ranks) for row in range(len(capacity.ids)))
    best = next((verdict.node_id for verdict in verdicts if verdict.rank == 1), "")
    message = "" if best else str(refusals(capacity, request, only=bound))
    return Explanation(task_id, strategy, task.node_id or best, message, verdicts)


def _ranks(capacity: Capacity, request: Request, strategy: str, fits: Mask) -> Mapping[int, int]:
    """Row → rank by failures, replicas and the strategy's number. Spread preferences choose before these do."""
    rows = np.flatnonzero(fits)
    numbers = preference(strategy, capacity, request, rows)
    keys = [rows, numbers]
    if request.score is not None:
        keys.append(-request.score[rows])
    if request.replicas is not None and strategy in DISTINCT:
        keys.append(request.replicas[rows])
    if request.failing is not None:
        keys.append(request.failing[rows])
    return {int(rows[at]): rank for rank, at in enumerate(np.lexsort(keys).tolist(), start=1)}


def _verdict(capacity: Capacity, request: Request, strategy: str, row: int, ranks: Mapping[int, int]) -> Verdict:
    view = capacity.view(row)
    replicas = int(request.replicas[row]) if request.replicas is not None else 0
    score = float(preference(strategy, capacity, request, np.array([row]))[0])
    refused = next(iter(refusals(capacity, request, only=view.id).counts), "")
    if not refused:
        return Verdict(view.id, view.hostname, rank=ranks.get(row, 0), score=score, replicas=replicas)
    reason, remedy = _DETAILS[refused](capacity, request, row)
    told = f"{words(refused, 1)}: {reason}"
    return Verdict(view.id, view.hostname, refused, told, remedy, score=score, replicas=replicas)


Detail = Callable[[Capacity, Request, int], tuple[str, str]]


def _ready(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    view = capacity.view(row)
    state = view.status.state if view.status is not None else "unknown"
    if view.node.availability != "active":
        return f"its availability is {view.node.availability}", f"set its availability to active: node update {view.id}"
    return f"its state is {state}", "wait until it reports, or look at its daemon"


def _resources(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    """What is asked for beside what is free; the remedy names what lacks."""
    cpus, memory = int(capacity.free_cpus[row]), int(capacity.free_memory[row])
    asked = [f"{request.cpus / NANO:g} CPUs and {request.memory / MIB:g} MiB"]
    free = [f"{cpus / NANO:g} CPUs and {memory / MIB:g} MiB"]
    lacks = []
    if request.cpus > cpus:
        lacks.append(f"{(request.cpus - cpus) / NANO:g} CPUs")
    if request.memory and request.memory > memory:
        lacks.append(f"{(request.memory - memory) / MIB:g} MiB")
    taken = capacity.generic(capacity.ids[row]) if request.generic else {}
    for kind, number in request.generic.items():
        left = capacity.offered(row).get(kind, 0) - taken.get(kind, 0)
        asked.append(f"{number} {kind}")
        free.append(f"{left} {kind}")
        if number > left:
            lacks.append(f"{number - left} {kind}")
    return f"{', '.join(asked)} asked for, {', '.join(free)} free", f"free {', '.join(lacks)} there, or reserve less"


def _plugins(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    wanted = ", ".join(f"{kind} {name}" for kind, name in request.spec.plugins)
    names = ", ".join(filter(None, (wanted, *request.network_drivers)))
    return f"the task needs {names}", "install the plugin there, or use another driver"


def _constraints(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    attributes = node_attributes(capacity.view(row))
    broken = [each for each in request.spec.placement.constraints if not each.matches(attributes)]
    said = ", ".join(f"{each} (it is {attributes.get(each.key, '')!r})" for each in broken)
    return said, "label the node accordingly, or take the constraint back"


def _platform(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    info = capacity.view(row).info
    has = f"{info.description.os}/{info.description.architecture}" if info is not None else "unknown"
    wanted = ", ".join(f"{os or '*'}/{architecture or '*'}" for os, architecture in request.spec.placement.platforms)
    return f"it is {has}, the image is for {wanted}", "use an image for this platform"


def _ports(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    taken = sorted(request.ports & capacity.ports(capacity.ids[row]))
    return ", ".join(f"{number}/{protocol}" for protocol, number in taken), "publish another port, or in ingress mode"


def _replicas(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    limit = request.spec.placement.max_replicas
    return f"at most {limit} of the service on a node", "raise the limit, add nodes, or ask for fewer replicas"


def _volumes(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    return "cluster volumes are not available", "use a volume or a bind mount"


def _affinity(capacity: Capacity, request: Request, row: int) -> tuple[str, str]:
    bound = [each for each in request.spec.placement.affinities if each.required]
    said = ", ".join(f"{'near' if each.weight > 0 else 'far from'} {each.service} by {each.topology}" for each in bound)
    return said or "another service is to be far from this one", "move the other service, or do not require it"


_DETAILS: Mapping[str, Detail] = {
    "ready": _ready,
    "resources": _resources,
    "plugins": _plugins,
    "constraints": _constraints,
    "platform": _platform,
    "ports": _ports,
    "replicas": _replicas,
    "volumes": _volumes,
    "affinity": _affinity,
}
