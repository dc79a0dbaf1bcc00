"""Which nodes a task may go to: a pipeline of filters, each of which says in words and numbers whom it refused.

The order and the words are SwarmKit's (manager/scheduler/pipeline.go, filter.go), which users know from ``docker service
ps``. A node is counted against the first filter that refuses it. What does not change while tasks are placed (readiness,
plugins, constraints, platform, volumes) is asked once for all requests that agree in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from scheduler.placement.capacity import Capacity, Mask, Rows
from scheduler.placement.constraints import allows, fits_platform, has_plugins
from scheduler.placement.request import Request
from scheduler.snapshot import NodeView

#: Filter → its words for one node and for several, in the order in which filters are asked; the last is ours.
WORDS: Mapping[str, tuple[str, str]] = {
    "ready": ("{n} node not available for new tasks", "{n} nodes not available for new tasks"),
    "resources": ("insufficient resources on {n} node", "insufficient resources on {n} nodes"),
    "plugins": ("missing plugin on {n} node", "missing plugin on {n} nodes"),
    "constraints": ("scheduling constraints not satisfied on {n} node", "scheduling constraints not satisfied on {n} nodes"),
    "platform": ("unsupported platform on {n} node", "unsupported platform on {n} nodes"),
    "ports": ("host-mode port already in use on {n} node", "host-mode port already in use on {n} nodes"),
    "replicas": ("max replicas per node limit exceed", "max replicas per node limit exceed"),
    "volumes": (
        "cannot fulfill requested CSI volume mounts on {n} node",
        "cannot fulfill requested CSI volume mounts on {n} nodes",
    ),
    "affinity": ("service affinity not satisfied on {n} node", "service affinity not satisfied on {n} nodes"),
}


def words(name: str, count: int) -> str:
    """What a filter that refused ``count`` nodes says."""
    return WORDS[name][count > 1].format(n=count)


class Refusals(NamedTuple):
    """Filter → number of nodes it refused, in the order of the pipeline."""

    counts: Mapping[str, int]

    def __str__(self) -> str:
        """The message a pending task shows: who refused most comes first."""
        if not self.counts:
            return "no suitable node"
        said = [words(name, count) for name, count in sorted(self.counts.items(), key=lambda item: -item[1])]
        return f"no suitable node ({'; '.join(said)})"


Static = Callable[[Request, NodeView], bool]


def _plugins(request: Request, view: NodeView) -> bool:
    return has_plugins(request.spec, request.network_drivers, view)


def _constraints(request: Request, view: NodeView) -> bool:
    return allows(request.spec.placement.constraints, view)


def _platform(request: Request, view: NodeView) -> bool:
    return fits_platform(request.spec.placement.platforms, view)


def _volumes(request: Request, view: NodeView) -> bool:
    """Cluster volumes are CSI's, of which no node here has any."""
    return not request.spec.cluster_volumes


#: Static filter → what it asks of a request (nothing: everybody passes), and whether a node passes.
_STATIC: Mapping[str, tuple[Callable[[Request], object], Static]] = {
    "plugins": (lambda request: (request.spec.plugins, request.network_drivers), _plugins),
    "constraints": (lambda request: request.spec.placement.constraints, _constraints),
    "platform": (lambda request: request.spec.placement.platforms, _platform),
    "volumes": (lambda request: request.spec.cluster_volumes, _volumes),
}


def _static(capacity: Capacity, request: Request, name: str) -> Mask | None:
    """The rows a static filter lets pass; None is all of them."""
    asked, passes = _STATIC[name]
    question = asked(request)
    if not question or question == ((), ()):
        return None
    key = (name, question)
    mask = capacity.masks.get(key)
    if mask is None:
        nodes = capacity.snapshot.nodes
        mask = np.array([passes(request, nodes[node_id]) for node_id in capacity.ids], dtype=np.bool_)
        capacity.masks[key] = mask
    return mask


def suitable(capacity: Capacity, request: Request) -> Mask:
    """The rows that every filter lets pass which placing tasks does not change. Shared: not to be written to."""
    spec, policy = request.spec, request.spec.placement
    if not (policy.constraints or policy.platforms or spec.cluster_volumes or spec.plugins or request.network_drivers):
        return capacity.ready
    asked = tuple(question(request) for question, _ in _STATIC.values())
    mask = capacity.masks.get(asked)
    if mask is None:
        mask = capacity.ready.copy()
        for name in _STATIC:
            passed = _static(capacity, request, name)
            if passed is not None:
                mask &= passed
        capacity.masks[asked] = mask
    return mask


def has_room(capacity: Capacity, request: Request, rows: Rows | slice) -> Mask:
    """Which of ``rows`` have room for one more such task now: resources, host ports, replicas."""
    room = capacity.free_cpus[rows] >= request.cpus
    if not request.cpus:
        room[:] = True  # who asks for nothing is not refused by a node that has given away more than it has
    if request.memory:
        room &= capacity.free_memory[rows] >= request.memory
    limit = request.spec.placement.max_replicas
    if limit and request.replicas is not None:
        room &= request.replicas[rows] < limit
    if request.allowed is not None:
        room &= request.allowed[rows]
    if request.ports or request.generic:
        numbers = np.arange(len(capacity.ids))[rows]
        for at in np.flatnonzero(room).tolist():
            row = int(numbers[at])
            room[at] = _ports_free(capacity, request, row) and _generic_free(capacity, request, row)
    return np.asarray(room, dtype=np.bool_)


def fits_one(capacity: Capacity, request: Request, row: int) -> bool:
    """Whether the node of ``row`` can have one more such task now."""
    limit = request.spec.placement.max_replicas
    return bool(
        suitable(capacity, request)[row]
        and (not request.cpus or capacity.free_cpus[row] >= request.cpus)
        and (not request.memory or capacity.free_memory[row] >= request.memory)
        and not (limit and request.replicas is not None and request.replicas[row] >= limit)
        and (request.allowed is None or request.allowed[row])
        and (not request.ports or _ports_free(capacity, request, row))
        and (not request.generic or _generic_free(capacity, request, row))
    )


def room_for(capacity: Capacity, request: Request, rows: Rows, most: int) -> Rows:
    """How many such tasks each of ``rows``, which have room for one, has room for, at most ``most``.

    Quotients of int64 taken as float64 are exact here: amounts are below 2^53 (9 million cores, 9 PB).
    """
    room = np.full(rows.shape, most, dtype=np.int64)
    if request.cpus:
        np.minimum(room, (capacity.free_cpus[rows] / request.cpus).astype(np.int64), out=room)
    if request.memory:
        np.minimum(room, (capacity.free_memory[rows] / request.memory).astype(np.int64), out=room)
    if limit := request.spec.placement.max_replicas:
        held = request.replicas[rows] if request.replicas is not None else 0
        np.minimum(room, limit - held, out=room)
    if request.ports:
        np.minimum(room, 1, out=room)
    for kind, number in request.generic.items():
        for at, row in enumerate(rows.tolist()):
            left = _generic_left(capacity, row, kind)
            room[at] = min(int(room[at]), left // number)
    return room


def refusals(capacity: Capacity, request: Request, only: str = "") -> Refusals:
    """Who refuses such a task now. ``only`` names the one node that comes into question."""
    left: Mask = np.ones(len(capacity.ids), dtype=np.bool_)
    if only:
        left[:] = False
        if (row := capacity.rows.get(only)) is not None:
            left[row] = True
    counts: dict[str, int] = {}
    before = int(left.sum())
    for name in WORDS:
        if not before:
            break
        passed = _FILTERS[name](capacity, request, left)
        if passed is not None:
            left &= passed
            now = int(left.sum())
            if before > now:
                counts[name] = before - now
            before = now
    return Refusals(counts)


def _resources(capacity: Capacity, request: Request, left: Mask) -> Mask:
    passed = capacity.free_cpus >= request.cpus
    passed |= not request.cpus
    if request.memory:
        passed &= capacity.free_memory >= request.memory
    if request.generic:
        for row in np.flatnonzero(left & passed).tolist():
            passed[row] = _generic_free(capacity, request, row)
    return passed


def _ports(capacity: Capacity, request: Request, left: Mask) -> Mask | None:
    if not request.ports:
        return None
    passed = left.copy()
    for row in np.flatnonzero(left).tolist():
        passed[row] = _ports_free(capacity, request, row)
    return passed


def _replicas(capacity: Capacity, request: Request, left: Mask) -> Mask | None:
    limit = request.spec.placement.max_replicas
    return request.replicas < limit if limit and request.replicas is not None else None


def _static_filter(name: str) -> Callable[[Capacity, Request, Mask], Mask | None]:
    return lambda capacity, request, left: _static(capacity, request, name)


_FILTERS: Mapping[str, Callable[[Capacity, Request, Mask], Mask | None]] = {
    **{name: _static_filter(name) for name in _STATIC},
    "ready": lambda capacity, request, left: capacity.ready,
    "resources": _resources,
    "ports": _ports,
    "replicas": _replicas,
    "affinity": lambda capacity, request, left: request.allowed,
}


def _ports_free(capacity: Capacity, request: Request, row: int) -> bool:
    return not request.ports or not (request.ports & capacity.ports(capacity.ids[row]))


def _generic_left(capacity: Capacity, row: int, kind: str) -> int:
    return capacity.offered(row).get(kind, 0) - capacity.generic(capacity.ids[row]).get(kind, 0)


def _generic_free(capacity: Capacity, request: Request, row: int) -> bool:
    return all(_generic_left(capacity, row, kind) >= number for kind, number in request.generic.items())
