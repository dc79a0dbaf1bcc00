"""Affinities between services, and between a service and nodes: as a filter by row, and as a score by row.

A bond of one service is asked about while another's tasks are placed, and holds both ways when it is a required distance:
neither goes where the other is. An affinity of a service to itself says nothing (the door refuses it). Decides from replicas
as they are placed; it must not know strategies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from covey.model.affinity import Affinity
from covey.model.spec import PlacementPolicy
from scheduler.placement.capacity import Capacity, Mask, Rows
from scheduler.placement.constraints import node_attributes


class _Distance(NamedTuple):
    """A service that required another not to be near, and in what."""

    service_id: str
    topology: str


class Bonds:
    """The affinities of everything that runs or waits. Made before anything is spent."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._snapshot = capacity.snapshot
        self._ids: dict[str, str] = {}
        self._bound = False
        self._by_topology: dict[str, Rows] = {}
        self._kept_off: dict[str, list[_Distance]] = {}
        policies = [(service_id, spec.placement) for (service_id, _), spec in capacity.snapshot.bonded.items()]
        if any(affinity.service for _, policy in policies for affinity in policy.affinities):
            self._ids = {spec.name: service_id for service_id, spec in capacity.snapshot.service_specs.items()}
        for service_id, policy in policies:
            for affinity in policy.affinities:
                if affinity.service and self._other(affinity) != service_id:
                    self._note(service_id, affinity)

    def _note(self, service_id: str, affinity: Affinity) -> None:
        """From now on the replicas of both are counted as they are placed."""
        self._bound = True
        other = self._other(affinity)
        for each in (service_id, other):
            self._replicas(each)
        if affinity.required and affinity.weight < 0:
            distance = _Distance(service_id, affinity.topology)
            if distance not in (held := self._kept_off.setdefault(other, [])):
                held.append(distance)

    def __bool__(self) -> bool:
        """Whether there are affinities between services at all."""
        return bool(self._bound)

    def allowed(self, service_id: str, policy: PlacementPolicy) -> Mask | None:
        """The rows that required affinities, its own and those against it, leave to a service; None: all."""
        mask: Mask | None = None
        for affinity in policy.affinities:
            if affinity.required and self._other(affinity) != service_id:
                near = self._near(self._other(affinity), affinity.topology)
                passed = near if affinity.weight > 0 else ~near
                mask = passed if mask is None else mask & passed
        for distance in self._kept_off.get(service_id, ()):
            passed = ~self._near(distance.service_id, distance.topology)
            mask = passed if mask is None else mask & passed
        return mask

    def _other(self, affinity: Affinity) -> str:
        return self._ids.get(affinity.service, affinity.service)

    def score(self, service_id: str, policy: PlacementPolicy) -> Rows | None:
        """By row, the sum of the weights of the wishes that hold there; None: there are no wishes."""
        wishes = [each for each in policy.affinities if not each.required and self._other(each) != service_id]
        if not wishes:
            return None
        total: Rows = np.zeros(len(self._capacity.ids), dtype=np.int64)
        for affinity in wishes:
            total += affinity.weight * self._holds(affinity)
        return total

    def _holds(self, affinity: Affinity) -> Mask:
        if affinity.constraint is None:
            return self._near(self._other(affinity), affinity.topology)
        key = ("affinity", affinity.constraint)
        mask = self._capacity.masks.get(key)
        if mask is None:
            attributes = (node_attributes(self._capacity.view(row)) for row in range(len(self._capacity.ids)))
            mask = np.fromiter(
                (affinity.constraint.matches(each) for each in attributes), dtype=np.bool_, count=len(self._capacity.ids)
            )
            self._capacity.masks[key] = mask
        return mask

    def _near(self, service_id: str, topology: str) -> Mask:
        """The rows that share what ``topology`` names with a replica of the service. Who lacks it is near to nobody."""
        replicas = self._replicas(service_id)
        if topology == "node.id":
            return np.asarray(replicas > 0, dtype=np.bool_)
        domains = self._domains(topology)
        counts = np.bincount(domains, weights=replicas, minlength=1)
        counts[0] = 0
        return np.asarray(counts[domains] > 0, dtype=np.bool_)

    def _replicas(self, service_id: str) -> Rows:
        held = self._capacity.standing.get(service_id)
        if held is None:
            held = self._capacity.stand(service_id, self._snapshot.replicas.get(service_id, {}))
        return held

    def _domains(self, topology: str) -> Rows:
        """By row, a number for what the node has under an attribute; 0 for nothing."""
        held = self._by_topology.get(topology)
        if held is None:
            rows = len(self._capacity.ids)
            numbers: dict[str, int] = {"": 0}
            values = [node_attributes(self._capacity.view(row)).get(topology, "") for row in range(rows)]
            held = np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
            self._by_topology[topology] = held
        return held
