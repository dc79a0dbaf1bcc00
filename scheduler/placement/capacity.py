"""A working copy of what the nodes have and have given away: a decision spends from it, the snapshot stays as it is.

Its rows are the nodes in the order in which ties are broken (a hash of the node's id), so that among equals the first row
wins. It must not know which node is good for what.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from covey.model.objects import PortConfig
from covey.model.resources import generic_counts
from covey.model.spec import STRATEGY_LABEL
from covey.model.task_states import TaskState, is_terminal
from scheduler.settings import Settings
from scheduler.snapshot import NodeView, Snapshot

if TYPE_CHECKING:
    from scheduler.placement.request import Request

Port = tuple[str, int]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def host_ports(ports: Iterable[PortConfig]) -> frozenset[Port]:
    """The ports that a task takes from its node itself: host mode with a number asked for."""
    return frozenset((port.protocol, port.published) for port in ports if port.mode == "host" and port.published)


class Capacity:
    """Columns with one row a node, and the rarely asked for things by node: host ports, generic resources.

    ``free_*`` is what is left of reservations (nano-CPUs, bytes), ``full`` the dominant share of the node that is in use,
    tasks without reservations counted with the nominal request. ``standing``: replicas by row of services that have any.
    ``log``: the rows that were spent on, in order. ``honest``: on no node does the nominal request stand in for another.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        columns = snapshot.columns
        self.snapshot = snapshot
        self.settings = settings
        present = np.fromiter((view.row for view in snapshot.nodes.values()), dtype=np.int64, count=len(snapshot.nodes))
        self.column_rows: Rows = present[np.argsort(columns.tie[present], kind="stable")]
        order = self.column_rows
        self.ids: list[str] = [columns.ids[row] for row in order.tolist()]
        self.ready: Mask = columns.ready[order]
        self.total_cpus = columns.total_cpus[order]
        self.total_memory = columns.total_memory[order]
        self.free_cpus = self.total_cpus - columns.used_cpus[order]
        self.free_memory = self.total_memory - columns.used_memory[order]
        self.nominal_cpus = columns.nominal_cpus[order]
        self.nominal_memory = columns.nominal_memory[order]
        self._share_cpus = np.maximum(self.total_cpus, 1).astype(np.float64)
        self._share_memory = np.maximum(self.total_memory, 1).astype(np.float64)
        self.full = self._fullness(slice(None))
        self.standing: dict[str, Rows] = {}
        self.masks: dict[object, Mask] = {}
        self.log: list[list[int]] = []
        self.honest = bool(
            (columns.nominal_cpus == columns.used_cpus).all() and (columns.nominal_memory == columns.used_memory).all()
        )
        self._ports: dict[str, set[Port]] = {}
        self._generic: dict[str, dict[str, int]] = {}
        self._names: dict[str, set[tuple[str, str]]] = {}

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Node id → row."""
        return {node_id: row for row, node_id in enumerate(self.ids)}

    def saved(self) -> Callable[[], None]:
        """What brings everything back to what it is now, however much is spent meanwhile."""
        columns = (self.free_cpus, self.free_memory, self.nominal_cpus, self.nominal_memory, self.full)
        copies = [column.copy() for column in columns]
        standing = {service_id: column.copy() for service_id, column in self.standing.items()}
        by_node = copy.deepcopy((self._ports, self._generic, self._names))
        honest = self.honest

        def restore() -> None:
            for column, held in zip(columns, copies, strict=True):
                column[:] = held
            for service_id in list(self.standing):
                if service_id in standing:
                    self.standing[service_id][:] = standing[service_id]
                else:
                    del self.standing[service_id]
            self._ports, self._generic, self._names = by_node
            self.honest = honest

        return restore

    @cached_property
    def strategy(self) -> str:
        """The cluster's strategy, for services that name none: a label of the cluster's spec, or the settings'."""
        labels = (self.snapshot.cluster.spec.get("Labels") or {}) if self.snapshot.cluster is not None else {}
        return str(labels.get(STRATEGY_LABEL) or self.settings.strategy)

    @cached_property
    def largest(self) -> tuple[float, float]:
        """CPU and memory of the largest node in each, at least 1."""
        return (float(self.total_cpus.max(initial=1)), float(self.total_memory.max(initial=1)))

    @cached_property
    def median(self) -> tuple[float, float]:
        """CPU and memory of the median node in each, at least 1."""
        if not len(self.ids):
            return (1.0, 1.0)
        return (max(float(np.median(self.total_cpus)), 1.0), max(float(np.median(self.total_memory)), 1.0))

    def view(self, row: int) -> NodeView:
        """The node of a row."""
        return self.snapshot.nodes[self.ids[row]]

    def stand(self, service_id: str, counts: Mapping[str, int]) -> Rows:
        """Note a service's replicas by node; its column from now on."""
        column = self.standing[service_id] = np.zeros(len(self.ids), dtype=np.int64)
        for node_id, count in counts.items():
            row = self.rows.get(node_id)
            if row is not None:
                column[row] = count
        return column

    def ports(self, node_id: str) -> set[Port]:
        """Host ports taken on a node."""
        found = self._ports.get(node_id)
        if found is None:
            found = self._ports[node_id] = set()
            for task in self.snapshot.tasks_on(node_id):
                if task.ports and task.state >= TaskState.ASSIGNED and not is_terminal(self.snapshot.state(task)):
                    found |= host_ports(task.ports)
        return found

    def generic(self, node_id: str) -> dict[str, int]:
        """Generic resources taken on a node, counted by kind; a named one counts one."""
        found = self._generic.get(node_id)
        if found is None:
            found = self._generic[node_id] = {}
            for task in self.snapshot.tasks_on(node_id):
                if task.state >= TaskState.ASSIGNED and not is_terminal(self.snapshot.state(task)):
                    _add(found, generic_counts(self.snapshot.task_specs[task.id].reservations), 1)
        return found

    def offered(self, row: int) -> dict[str, int]:
        """Generic resources that a node has, counted by kind."""
        info = self.view(row).info
        return generic_counts(info.description.resources) if info is not None else {}

    def names(self, node_id: str) -> set[tuple[str, str]]:
        """Named generic resources taken on a node: (kind, name)."""
        found = self._names.get(node_id)
        if found is None:
            found = self._names[node_id] = set()
            for task in self.snapshot.tasks_on(node_id):
                if task.generic_named and not is_terminal(self.snapshot.state(task)):
                    found |= pairs(task.generic_named)
        return found

    def give(self, row: int, request: Request) -> dict[str, tuple[str, ...]]:
        """Take names for one task on the node of ``row``, by kind, in the node's order; a kind it only counts has none."""
        info = self.view(row).info
        taken = self.names(self.ids[row])
        given: dict[str, tuple[str, ...]] = {}
        for kind, number in request.generic.items():
            held = info.description.resources.generic_named.get(kind, ()) if info is not None else ()
            free = tuple(name for name in held if (kind, name) not in taken)[:number]
            if free:
                given[kind] = free
        taken |= pairs(given)
        return given

    def spend(self, rows: Rows, counts: Rows | int, request: Request) -> None:
        """``counts`` more such tasks on the nodes of ``rows``, of which none is named twice."""
        if request.cpus:
            self.free_cpus[rows] -= request.cpus * counts
        if request.memory:
            self.free_memory[rows] -= request.memory * counts
        self.nominal_cpus[rows] += request.nominal_cpus * counts
        self.nominal_memory[rows] += request.nominal_memory * counts
        self.full[rows] = self._fullness(rows)
        self.log.append(rows.tolist())
        self.honest = self.honest and request.honest
        if request.replicas is not None:
            request.replicas[rows] += counts
        if request.ports or request.generic:
            numbers = np.broadcast_to(np.asarray(counts), rows.shape)
            for row, count in zip(rows.tolist(), numbers.tolist(), strict=True):
                self.ports(self.ids[row]).update(request.ports)
                _add(self.generic(self.ids[row]), request.generic, count)

    def spend_one(self, row: int, request: Request) -> float:
        """One more such task on the node of ``row``; how full it is then."""
        self.free_cpus[row] -= request.cpus
        self.free_memory[row] -= request.memory
        cpus = self.nominal_cpus[row] = self.nominal_cpus[row] + request.nominal_cpus
        memory = self.nominal_memory[row] = self.nominal_memory[row] + request.nominal_memory
        full = max(float(cpus) / float(self._share_cpus[row]), float(memory) / float(self._share_memory[row]))
        self.full[row] = full
        self.log.append([row])
        self.honest = self.honest and request.honest
        if request.replicas is not None:
            request.replicas[row] += 1
        if request.ports:
            self.ports(self.ids[row]).update(request.ports)
        if request.generic:
            _add(self.generic(self.ids[row]), request.generic, 1)
        return full

    def _fullness(self, rows: Rows | slice) -> npt.NDArray[np.float64]:
        cpus = self.nominal_cpus[rows] / self._share_cpus[rows]
        return np.asarray(np.maximum(cpus, self.nominal_memory[rows] / self._share_memory[rows]), dtype=np.float64)


def pairs(named: Mapping[str, tuple[str, ...]]) -> set[tuple[str, str]]:
    """(kind, name) of named generic resources."""
    return {(kind, name) for kind, names in named.items() for name in names}


def _add(counts: dict[str, int], more: Mapping[str, int], times: int) -> None:
    for kind, number in more.items():
        counts[kind] = counts.get(kind, 0) + number * times
