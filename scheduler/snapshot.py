"""Everything decisions may know, at one store revision, read-only.

A Snapshot is lent by the index the mirror keeps (scheduler/index.py): nothing changes it while a decision, which is
synchronous, holds it. Node columns are NumPy arrays with one row a node, updated by row as nodes and tasks change; a
decision that places tasks copies what it spends from them. It must not know where the objects come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covey.model.objects import (
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
    Task,
    TaskStatus,
)
from covey.model.spec import ServiceSpec, TaskSpec
from covey.model.task_states import TaskState, shown
from scheduler.tally import Failure
from scheduler.waiting import Waiting


def name_of_port(port: str) -> str:
    """The id of the name that holds an ingress port: as manager/store/keys.py quotes it."""
    return "port/" + port.replace("/", "%2F")


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node, joined from its keys. A part that was never written is None."""

    node: Node
    info: NodeInfo | None
    status: NodeStatus | None
    session: Session | None
    row: int

    @property
    def id(self) -> str:
        return self.node.id

    @property
    def hostname(self) -> str:
        return self.info.description.hostname if self.info else self.node.name

    @property
    def ready(self) -> bool:
        """Whether new tasks may go there: the leader says ready and people say active."""
        return self.status is not None and self.status.state == "ready" and self.node.availability == "active"


@dataclass(frozen=True, slots=True)
class NodeColumns:
    """One row a node (``NodeView.row``); rows of removed nodes are unused (``ids`` is "" there) and not ready.

    ``total_*``: capacity; ``used_*``: reservations of tasks that hold their place there (assigned and not over). CPU in
    nano-CPUs, memory in bytes, both int64. ``tasks``: such tasks, counted. ``nominal_*``: used with NOMINAL in place of
    empty reservations, for ranking only. ``tie``: a hash of the node's id, by which equals are ordered.
    """

    ids: list[str]
    ready: npt.NDArray[np.bool_]
    total_cpus: npt.NDArray[np.int64]
    total_memory: npt.NDArray[np.int64]
    used_cpus: npt.NDArray[np.int64]
    used_memory: npt.NDArray[np.int64]
    nominal_cpus: npt.NDArray[np.int64]
    nominal_memory: npt.NDArray[np.int64]
    tasks: npt.NDArray[np.int64]
    tie: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at ``revision``. Mappings are by id and must not be changed.

    ``waiting`` (not grouped, see scheduler/waiting.py), ``replicas`` and ``failures`` (scheduler/tally.py) are kept as tasks
    change. ``bonded`` are the specs, by service and version, of tasks that have affinities.
    ``node_infos`` and ``node_statuses`` may still hold what was written of nodes that are gone; ``nodes`` does not.
    """

    revision: int
    cluster: Cluster | None
    leader: Leader | None
    services: Mapping[str, Service]
    service_specs: Mapping[str, ServiceSpec]
    service_statuses: Mapping[str, ServiceStatus]
    service_allocations: Mapping[str, ServiceAllocation]
    nodes: Mapping[str, NodeView]
    node_infos: Mapping[str, NodeInfo]
    node_statuses: Mapping[str, NodeStatus]
    columns: NodeColumns
    networks: Mapping[str, Network]
    network_allocations: Mapping[str, NetworkAllocation]
    tasks: Mapping[str, Task]
    task_specs: Mapping[str, TaskSpec]
    statuses: Mapping[str, TaskStatus]
    by_service: Mapping[str, Collection[str]]
    by_node: Mapping[str, Collection[str]]
    waiting: Waiting
    bonded: Mapping[tuple[str, int], TaskSpec]
    replicas: Mapping[str, Mapping[str, int]]
    failures: Mapping[tuple[str, int], Mapping[str, Failure]]
    names: Mapping[str, Name]

    def port_owner(self, port: str) -> str:
        """The id of the service that holds an ingress port (``8080/tcp``) by its number, "" for none."""
        held = self.names.get(name_of_port(port))
        return held.id if held is not None else ""

    def state(self, task: Task) -> TaskState:
        """The shown state of ``task``."""
        status = self.statuses.get(task.id)
        return shown(task.state, status.state if status is not None else None)

    def tasks_of(self, service_id: str) -> Iterator[Task]:
        """The tasks of a service, in no order that means anything."""
        return (self.tasks[task_id] for task_id in self.by_service.get(service_id, ()))

    def tasks_on(self, node_id: str) -> Iterator[Task]:
        """The tasks a node was given, and those of global services that are bound to it."""
        return (self.tasks[task_id] for task_id in self.by_node.get(node_id, ()))
