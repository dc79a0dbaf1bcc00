"""Which nodes a task may go to: a pipeline of filters, each of which says in words and numbers whom it refused.

The order and the words are SwarmKit's (manager/scheduler/pipeline.go, filter.go), which users know from ``docker service
ps``. A node is counted against the first filter that refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from covey.model.spec import TaskSpec
from scheduler.placement.capacity import Capacity, Port, generic_counts
from scheduler.placement.constraints import allows, fits_platform
from scheduler.snapshot import NodeView

Mask = npt.NDArray[np.bool_]


class Request(NamedTuple):
    """What tasks that are alike ask of a node. ``replicas``: tasks of their service by row, for max replicas."""

    spec: TaskSpec
    ports: frozenset[Port]
    replicas: npt.NDArray[np.int64]


class Refusals(NamedTuple):
    """Filter → number of nodes it refused, in the order of the pipeline."""

    counts: dict[str, int]

    def __str__(self) -> str:
        """The message a pending task shows."""
        if not self.counts:
            return "no suitable node"
        said = [_words(name, count) for name, count in sorted(self.counts.items(), key=lambda item: -item[1])]
        return f"no suitable node ({'; '.join(said)})"


#: Filter → its words for one node and for several.
WORDS: Mapping[str, tuple[str, str]] = {
    "ready": ("{n} node not available for new tasks", "{n} nodes not available for new tasks"),
    "resources": ("insufficient resources on {n} node", "insufficient resources on {n} nodes"),
    "constraints": ("scheduling constraints not satisfied on {n} node", "scheduling constraints not satisfied on {n} nodes"),
    "platform": ("unsupported platform on {n} node", "unsupported platform on {n} nodes"),
    "ports": ("host-mode port already in use on {n} node", "host-mode port already in use on {n} nodes"),
    "replicas": ("max replicas per node limit exceed on {n} node", "max replicas per node limit exceed on {n} nodes"),
}


def _words(name: str, count: int) -> str:
    return WORDS[name][count > 1].format(n=count)


def feasible(capacity: Capacity, request: Request, only: str = "") -> tuple[Mask, Refusals]:
    """The rows a task may go to, and who refused the others. ``only`` names the one node that comes into question."""
    left = capacity.present.copy()
    if only:
        left &= np.array([node_id == only for node_id in capacity.ids], dtype=np.bool_)
    counts: dict[str, int] = {}
    for name, refuse in _FILTERS:
        before = int(left.sum())
        if not before:
            break
        refuse(capacity, request, left)
        if refused := before - int(left.sum()):
            counts[name] = refused
    return left, Refusals(counts)


def _ready(capacity: Capacity, request: Request, left: Mask) -> None:
    left &= capacity.ready


def _resources(capacity: Capacity, request: Request, left: Mask) -> None:
    asked = request.spec.reservations
    if asked.nano_cpus:
        left &= capacity.used_cpus + asked.nano_cpus <= capacity.total_cpus
    if asked.memory_bytes:
        left &= capacity.used_memory + asked.memory_bytes <= capacity.total_memory
    if wanted := generic_counts(asked):
        for row in np.flatnonzero(left):
            view = _view(capacity, int(row))
            offered = generic_counts(view.info.description.resources) if view.info else {}
            taken = capacity.generic(view.id)
            left[row] = all(taken.get(kind, 0) + number <= offered.get(kind, 0) for kind, number in wanted.items())


def _constraints(capacity: Capacity, request: Request, left: Mask) -> None:
    constraints = request.spec.placement.constraints
    if constraints:
        for row in np.flatnonzero(left):
            left[row] = allows(constraints, _view(capacity, int(row)))


def _platform(capacity: Capacity, request: Request, left: Mask) -> None:
    platforms = request.spec.placement.platforms
    if platforms:
        for row in np.flatnonzero(left):
            left[row] = fits_platform(platforms, _view(capacity, int(row)))


def _ports(capacity: Capacity, request: Request, left: Mask) -> None:
    if request.ports:
        for row in np.flatnonzero(left):
            left[row] = not (request.ports & capacity.ports(capacity.ids[row]))


def _replicas(capacity: Capacity, request: Request, left: Mask) -> None:
    limit = request.spec.placement.max_replicas
    if limit:
        left &= request.replicas < limit


_FILTERS = (
    ("ready", _ready),
    ("resources", _resources),
    ("constraints", _constraints),
    ("platform", _platform),
    ("ports", _ports),
    ("replicas", _replicas),
)


def _view(capacity: Capacity, row: int) -> NodeView:
    return capacity.snapshot.nodes[capacity.ids[row]]


def explain(capacity: Capacity, request: Request) -> Sequence[tuple[str, str]]:
    """(node id, reason with numbers) for every node that refuses such a task now."""
    said: list[tuple[str, str]] = []
    asked = request.spec.reservations
    for node_id, view in capacity.snapshot.nodes.items():
        _, refusals = feasible(capacity, request, only=node_id)
        for name in refusals.counts:
            reason = _words(name, 1)
            if name == "resources":
                row = view.row
                cpus = (capacity.total_cpus[row] - capacity.used_cpus[row]) / 1e9
                memory = int(capacity.total_memory[row] - capacity.used_memory[row])
                reason += (
                    f": {asked.nano_cpus / 1e9:g} CPUs and {asked.memory_bytes} bytes asked for,"
                    f" {cpus:g} CPUs and {memory} bytes free"
                )
            said.append((node_id, reason))
    return said
