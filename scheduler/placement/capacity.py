"""A working copy of what the nodes have and have given away: a decision spends from it, the snapshot stays as it is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from covey.model.objects import PortConfig
from covey.model.resources import Resources
from covey.model.spec import TaskSpec
from covey.model.task_states import TaskState, is_terminal
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

Port = tuple[str, int]


def host_ports(ports: Iterable[PortConfig]) -> frozenset[Port]:
    """The ports that a task takes from its node itself: host mode with a number asked for."""
    return frozenset((port.protocol, port.published) for port in ports if port.mode == "host" and port.published)


class Capacity:
    """Columns with one row a node, as in NodeColumns, and the rarely asked for things: host ports, generic resources."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        columns = snapshot.columns
        self.snapshot = snapshot
        self.settings = settings
        self.ids = columns.ids
        self.present: npt.NDArray[np.bool_] = np.array([bool(node_id) for node_id in columns.ids], dtype=np.bool_)
        self.ready = columns.ready
        self.total_cpus = columns.total_cpus
        self.total_memory = columns.total_memory
        self.used_cpus = columns.used_cpus.copy()
        self.used_memory = columns.used_memory.copy()
        self.nominal_cpus = columns.nominal_cpus.copy()
        self.nominal_memory = columns.nominal_memory.copy()
        self.tasks = columns.tasks.copy()
        self._ports: dict[str, set[Port]] = {}
        self._generic: dict[str, dict[str, int]] = {}

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
                    _add(found, generic_counts(self.snapshot.task_specs[task.id].reservations))
        return found

    def spend(self, row: int, spec: TaskSpec, ports: frozenset[Port]) -> None:
        """One more task on the node of ``row``."""
        asked = spec.reservations
        counted = asked if asked else self.settings.nominal
        self.used_cpus[row] += asked.nano_cpus
        self.used_memory[row] += asked.memory_bytes
        self.nominal_cpus[row] += counted.nano_cpus
        self.nominal_memory[row] += counted.memory_bytes
        self.tasks[row] += 1
        if ports:
            self.ports(self.ids[row]).update(ports)
        if asked.generic or asked.generic_named:
            _add(self.generic(self.ids[row]), generic_counts(asked))


def generic_counts(amount: Resources) -> dict[str, int]:
    """Generic resources by kind, names counted."""
    counts = dict(amount.generic)
    for kind, names in amount.generic_named.items():
        counts[kind] = counts.get(kind, 0) + len(names)
    return counts


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for kind, number in more.items():
        counts[kind] = counts.get(kind, 0) + number
