"""The world as the leader knows it, kept up to date by changes and lent to decisions as a Snapshot.

It decides how objects are found (by service, by node, by row); it must not know where changes come from nor decide
anything about tasks. Views of specs are parsed once for a (service, spec version) and shared. Node columns are updated
by row. ``snapshot`` copies nothing: nothing may be applied while a decision holds what it was lent.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import msgspec
import numpy as np

from covey.ids import tie_break
from covey.model.objects import (
    KINDS,
    Cluster,
    Leader,
    Name,
    Network,
    NetworkAllocation,
    Node,
    NodeInfo,
    NodeStatus,
    Service,
    ServiceAllocation,
    ServiceStatus,
    Session,
    Stored,
    Task,
    TaskStatus,
)
from covey.model.resources import NOMINAL, Resources
from covey.model.spec import ServiceSpec, TaskSpec, read_service_spec, read_task_spec
from covey.model.task_states import TaskState, is_terminal, shown
from scheduler.snapshot import NodeColumns, NodeView, Snapshot
from scheduler.tally import Tally

_NODE_KINDS = frozenset({"node", "node_info", "node_status", "session"})
_FIRST_ROWS = 8

Change = tuple[str, str, Stored | None]


class _Hold(NamedTuple):
    """What one task takes from its node's row."""

    node_id: str
    cpus: int
    memory: int
    nominal_cpus: int
    nominal_memory: int


class _SharedSpec:
    """A parsed TaskTemplate and how many tasks use it."""

    __slots__ = ("uses", "view")

    def __init__(self, view: TaskSpec) -> None:
        self.view = view
        self.uses = 0


def _columns(rows: int) -> NodeColumns:
    def numbers() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.zeros(rows, dtype=np.int64)

    return NodeColumns(
        ids=[""] * rows,
        ready=np.zeros(rows, dtype=np.bool_),
        total_cpus=numbers(),
        total_memory=numbers(),
        used_cpus=numbers(),
        used_memory=numbers(),
        nominal_cpus=numbers(),
        nominal_memory=numbers(),
        tasks=numbers(),
        tie=numbers(),
    )


def holds_place(task: Task, status: TaskStatus | None) -> bool:
    """Whether ``task`` takes its reservations from the node it names: it was assigned and is not over."""
    return task.state >= TaskState.ASSIGNED and not is_terminal(shown(task.state, status.state if status else None))


class Index:
    """Everything at one revision. ``apply`` brings it forward, ``snapshot`` lends it."""

    def __init__(self, nominal: Resources = NOMINAL) -> None:
        self.revision = 0
        self._nominal = nominal
        self._objects: dict[str, dict[str, Stored]] = {kind: {} for kind in KINDS}
        self._service_specs: dict[str, ServiceSpec] = {}
        self._task_specs: dict[str, TaskSpec] = {}
        self._shared: dict[tuple[str, int], _SharedSpec] = {}
        self._bonded: dict[tuple[str, int], TaskSpec] = {}
        self._views: dict[str, NodeView] = {}
        self._by_service: dict[str, dict[str, None]] = {}
        self._by_node: dict[str, dict[str, None]] = {}
        self._holds: dict[str, _Hold] = {}
        self._tally = Tally()
        self._free_rows: list[int] = list(range(_FIRST_ROWS))[::-1]
        self._columns = _columns(_FIRST_ROWS)
        self._lent: Snapshot | None = None

    def objects(self, kind: str) -> Mapping[str, Stored]:
        """Every object of ``kind`` by id; a kind of which there is one has the kind as id. KeyError: no such kind."""
        return self._objects[kind]

    def apply(self, changes: Iterable[Change], revision: int) -> None:
        """Take in changes (kind, id, object or None for removed), in order, after which the world is at ``revision``."""
        for kind, key, value in changes:
            self._apply(kind, key, value)
        self.revision = revision
        self._lent = None

    def _apply(self, kind: str, key: str, value: Stored | None) -> None:
        held = self._objects[kind]
        old = held.get(key)
        if value is None:
            if old is None:
                return
            del held[key]
        else:
            held[key] = value
        if kind == "task":
            self._change_task(key, cast("Task | None", old), cast("Task | None", value))
        elif kind == "task_status":
            self._recount(key)
        elif kind == "service":
            self._change_service(key, cast("Service | None", old), cast("Service | None", value))
        elif kind in _NODE_KINDS:
            self._change_node(key)

    def _change_service(self, key: str, old: Service | None, new: Service | None) -> None:
        if new is None:
            self._service_specs.pop(key, None)
        elif old is None or old.spec != new.spec:
            self._service_specs[key] = read_service_spec(new.spec)

    def _change_task(self, key: str, old: Task | None, new: Task | None) -> None:
        if old is not None and (new is None or (old.service_id, old.spec_version) != (new.service_id, new.spec_version)):
            self._release_spec(key, old)
        if new is not None and key not in self._task_specs:
            self._task_specs[key] = self._use_spec(new)
        self._move_key(self._by_service, old.service_id if old else "", new.service_id if new else "", key)
        self._move_key(self._by_node, old.node_id if old else "", new.node_id if new else "", key)
        self._recount(key)

    def _use_spec(self, task: Task) -> TaskSpec:
        name = (task.service_id, task.spec_version)
        shared = self._shared.get(name)
        if shared is None:
            shared = self._shared[name] = _SharedSpec(read_task_spec(task.spec, task.service_labels))
            if shared.view.placement.affinities:
                self._bonded[name] = shared.view
        shared.uses += 1
        return shared.view

    def _release_spec(self, key: str, task: Task) -> None:
        del self._task_specs[key]
        name = (task.service_id, task.spec_version)
        shared = self._shared[name]
        shared.uses -= 1
        if not shared.uses:
            del self._shared[name]
            self._bonded.pop(name, None)

    @staticmethod
    def _move_key(groups: dict[str, dict[str, None]], old: str, new: str, key: str) -> None:
        if old == new:
            return
        if old:
            group = groups[old]
            del group[key]
            if not group:
                del groups[old]
        if new:
            groups.setdefault(new, {})[key] = None

    def _recount(self, task_id: str) -> None:
        """Bring the row of the task's node up to date with what the task holds there now."""
        task = cast("Task | None", self._objects["task"].get(task_id))
        status = cast("TaskStatus | None", self._objects["task_status"].get(task_id))
        self._tally.count(task_id, task, status)
        new = None
        if task is not None and task.node_id and holds_place(task, status):
            new = self._hold(task)
        old = self._holds.get(task_id)
        if old == new:
            return
        if old is not None:
            self._count(old, -1)
            del self._holds[task_id]
        if new is not None:
            self._count(new, 1)
            self._holds[task_id] = new

    def _hold(self, task: Task) -> _Hold:
        asked = self._task_specs[task.id].reservations
        counted = asked if asked else self._nominal
        return _Hold(task.node_id, asked.nano_cpus, asked.memory_bytes, counted.nano_cpus, counted.memory_bytes)

    def _count(self, hold: _Hold, sign: int) -> None:
        view = self._views.get(hold.node_id)
        if view is None:
            return
        columns, row = self._columns, view.row
        columns.used_cpus[row] += sign * hold.cpus
        columns.used_memory[row] += sign * hold.memory
        columns.nominal_cpus[row] += sign * hold.nominal_cpus
        columns.nominal_memory[row] += sign * hold.nominal_memory
        columns.tasks[row] += sign

    def _change_node(self, key: str) -> None:
        node = cast("Node | None", self._objects["node"].get(key))
        view = self._views.get(key)
        if node is None:
            if view is not None:
                self._drop_row(key, view.row)
            return
        fresh = view is None
        row = view.row if view is not None else self._take_row(key)
        info = cast("NodeInfo | None", self._objects["node_info"].get(key))
        view = NodeView(
            node=node,
            info=info,
            status=cast("NodeStatus | None", self._objects["node_status"].get(key)),
            session=cast("Session | None", self._objects["session"].get(key)),
            row=row,
        )
        self._views[key] = view
        total = info.description.resources if info is not None else Resources()
        self._columns.ready[row] = view.ready
        self._columns.total_cpus[row] = total.nano_cpus
        self._columns.total_memory[row] = total.memory_bytes
        if fresh:
            for task_id in self._by_node.get(key, ()):
                if (hold := self._holds.get(task_id)) is not None:
                    self._count(hold, 1)

    def _take_row(self, key: str) -> int:
        if not self._free_rows:
            self._grow()
        row = self._free_rows.pop()
        self._columns.ids[row] = key
        self._columns.tie[row] = tie_break(key) >> 1
        return row

    def _drop_row(self, key: str, row: int) -> None:
        del self._views[key]
        columns = self._columns
        columns.ids[row] = ""
        columns.ready[row] = False
        for numbers in _numbers(columns):
            numbers[row] = 0
        self._free_rows.append(row)

    def _grow(self) -> None:
        old = self._columns
        rows = len(old.ids)
        self._columns = _columns(2 * rows)
        self._columns.ids[:rows] = old.ids
        self._columns.ready[:rows] = old.ready
        for new_numbers, numbers in zip(_numbers(self._columns), _numbers(old), strict=True):
            new_numbers[:rows] = numbers
        self._free_rows = list(range(rows, 2 * rows))[::-1]

    def snapshot(self) -> Snapshot:
        """The world as it is now, lent until the next ``apply``."""
        if self._lent is None:
            self._lent = self._lend()
        return self._lent

    def _lend(self) -> Snapshot:
        held = self._objects
        return Snapshot(
            revision=self.revision,
            cluster=cast("Cluster | None", held["cluster"].get("cluster")),
            leader=cast("Leader | None", held["leader"].get("leader")),
            services=cast("dict[str, Service]", held["service"]),
            service_specs=self._service_specs,
            service_statuses=cast("dict[str, ServiceStatus]", held["service_status"]),
            service_allocations=cast("dict[str, ServiceAllocation]", held["service_allocation"]),
            nodes=self._views,
            node_infos=cast("dict[str, NodeInfo]", held["node_info"]),
            node_statuses=cast("dict[str, NodeStatus]", held["node_status"]),
            columns=self._columns,
            networks=cast("dict[str, Network]", held["network"]),
            network_allocations=cast("dict[str, NetworkAllocation]", held["network_allocation"]),
            tasks=cast("dict[str, Task]", held["task"]),
            task_specs=self._task_specs,
            statuses=cast("dict[str, TaskStatus]", held["task_status"]),
            by_service=self._by_service,
            by_node=self._by_node,
            waiting=self._tally.waiting,
            bonded=self._bonded,
            replicas=self._tally.replicas,
            failures=self._tally.failures,
            names=cast("dict[str, Name]", held["name"]),
        )

    def checksum(self) -> int:
        """A number that changes when anything a Snapshot shows changes; costs a walk over the world."""
        encode = msgspec.msgpack.Encoder(order="deterministic").encode
        parts = [encode((kind, key, value)) for kind, held in self._objects.items() for key, value in held.items()]
        parts.append(encode((sorted(self._views), self._by_service, self._by_node, self._columns.ids, list(self._tally))))
        parts += [self._columns.ready.tobytes(), *(numbers.tobytes() for numbers in _numbers(self._columns))]
        return zlib.crc32(b"".join(parts))

    @contextlib.contextmanager
    def freeze_check(self) -> Iterator[Snapshot]:
        """For tests: lends a snapshot and raises AssertionError if the world changed while it was lent."""
        before = self.checksum()
        yield self.snapshot()
        if self.checksum() != before:
            raise AssertionError(f"the snapshot at revision {self.revision} was changed by what borrowed it")


def _numbers(columns: NodeColumns) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
    return (
        columns.total_cpus,
        columns.total_memory,
        columns.used_cpus,
        columns.used_memory,
        columns.nominal_cpus,
        columns.nominal_memory,
        columns.tasks,
        columns.tie,
    )
