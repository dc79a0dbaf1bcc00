"""What tasks that are alike ask of a node, and what their service has where: the question that placement answers.

Made once a group from the snapshot's counts. It knows rows of Capacity, and nothing of which node is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from covey.model.objects import Task
from covey.model.resources import generic_counts
from covey.model.spec import TaskSpec
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity, Mask, Port, host_ports

Numbers = npt.NDArray[np.int64]


class Request(NamedTuple):
    """``cpus`` and ``memory`` as in Resources, ``nominal_*`` what they count as when nodes are ranked.

    ``generic`` are amounts by kind, ``network_drivers`` the drivers of the networks the tasks join. ``replicas`` and
    ``failing`` are by row, None where all would be 0: tasks of the service, and how often its version failed where that
    is often enough to count. ``allowed`` are the rows that affinities between services leave, ``score`` what wishes add up to
    (the more the better); both None without affinities.
    """

    spec: TaskSpec
    cpus: int
    memory: int
    nominal_cpus: int
    nominal_memory: int
    ports: frozenset[Port]
    generic: Mapping[str, int]
    network_drivers: tuple[str, ...]
    replicas: Numbers | None
    failing: Numbers | None
    allowed: Mask | None = None
    score: Numbers | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing but CPU, memory and static properties of a node matters."""
        unbound = self.allowed is None and self.score is None
        return self.replicas is None and self.failing is None and not self.ports and not self.generic and unbound

    @property
    def honest(self) -> bool:
        """Whether what is asked for is what it counts as."""
        return self.nominal_cpus == self.cpus and self.nominal_memory == self.memory


def request_of(task: Task, capacity: Capacity, now: float, bonds: Bonds, *, shared: bool = False) -> Request:
    """The request of ``task`` and of those alike, as things stand. ``shared``: others of its service are placed meanwhile.

    ``bonds`` are the capacity's, made before anything was spent from it.
    """
    snapshot, settings = capacity.snapshot, capacity.settings
    spec = snapshot.task_specs[task.id]
    asked = spec.reservations
    counted = asked if asked else settings.nominal
    replicas = capacity.standing.get(task.service_id)
    if replicas is None and (shared or spec.placement.max_replicas or task.service_id in snapshot.replicas):
        replicas = capacity.stand(task.service_id, snapshot.replicas.get(task.service_id, {}))
    drivers: tuple[str, ...] = ()
    if task.networks:
        drivers = tuple(
            str(network.spec.get("Driver") or "")
            for given in task.networks
            if (network := snapshot.networks.get(given.network_id)) is not None
        )
    return Request(
        spec,
        asked.nano_cpus,
        asked.memory_bytes,
        counted.nano_cpus,
        counted.memory_bytes,
        host_ports(task.ports) if task.ports else frozenset(),
        generic_counts(asked) if asked.generic or asked.generic_named else {},
        drivers,
        replicas,
        _failing(task, capacity, now) if snapshot.failures or task.avoid else None,
        bonds.allowed(task.service_id, spec.placement) if bonds else None,
        bonds.score(task.service_id, spec.placement) if spec.placement.affinities else None,
    )


def _failing(task: Task, capacity: Capacity, now: float) -> Numbers | None:
    """By row, how often the task's version failed there of late, where that is often enough to count.

    One more on the nodes that the task is to avoid, as those of its slot before it crashed there.
    """
    settings = capacity.settings
    failures = capacity.snapshot.failures.get((task.service_id, task.spec_version), {})
    counts = np.zeros(len(capacity.ids), dtype=np.int64)
    if len(failures) >= settings.failure_limit:
        for failure in failures.values():
            row = capacity.rows.get(failure.node_id)
            if row is not None and failure.at > now - settings.failure_window:
                counts[row] += 1
        counts[counts < settings.failure_limit] = 0
    for node_id in task.avoid:
        if (row := capacity.rows.get(node_id)) is not None:
            counts[row] += 1
    return counts if counts.any() else None
