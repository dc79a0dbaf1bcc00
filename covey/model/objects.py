"""The objects of the store, as they are stored and as decisions read them. Pure data, frozen, one struct a key.

Each key has one writer (manager/store/keys.py), so what Docker shows as one object is several here: a node is its Node
(what people set), NodeInfo (what it says of itself), NodeStatus (what the leader made of its silence) and Session (leased).
``version`` is the key's mod_revision: filled in when a value is read, never stored. Times are seconds since the epoch.
What there are very many of is hidden from Python's collector (``gc=False``): it could be part of no cycle.
Specs are the JSON objects as received (design, nouns); covey.model.spec reads them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from covey.model.login import RegistryLogin
from covey.model.resources import Resources
from covey.model.task_states import TaskState, shown


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every stored object has: a ``kind`` (its key's first segment) and the version it was read at."""

    kind: ClassVar[str] = ""

    version: int = 0


class Rebalance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tasks that were asked to move away from where they are, at most ``parallelism`` (0: all) at once."""

    tasks: tuple[str, ...] = ()
    parallelism: int = 1
    asked_at: float = 0.0


class Cluster(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """The one object of the cluster: who signs, which tokens admit, which address pools are ours.

    ``tokens`` holds the secret halves by role ("worker", "manager"); ``ca_key`` is PEM and leaves the store only for managers.
    """

    kind: ClassVar[str] = "cluster"

    id: str
    spec: dict[str, Any] = {}
    created_at: float = 0.0
    updated_at: float = 0.0
    ca_certificate: str = ""
    ca_key: str = ""
    tokens: dict[str, str] = {}
    address_pools: tuple[str, ...] = ("10.0.0.0/8",)
    subnet_size: int = 24
    data_path_port: int = 4789
    rebalance: Rebalance | None = None


class Service(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A Spec with identity. How it changes is decided in covey.model.versions.

    ``generation`` counts the changes of the spec. ``spec_version`` is the generation in which what tasks are made from was
    asked for (a rollback goes back to a former one, never to another content); tasks say which of them they were made from.
    ``rolling_back``: the last change took a former spec back, and the rollback policy governs how it reaches the tasks.
    ``job_iteration`` counts the executions of a job from 1 (0: not a job): every update is one. ``executed_at`` is the last.
    ``offsets`` are the rules of the time zone its schedule is in, as the API found them (covey.model.schedule): all managers
    decide by the same, whatever files they have.
    """

    kind: ClassVar[str] = "service"

    id: str
    spec: dict[str, Any]
    previous_spec: dict[str, Any] | None = None
    spec_version: int = 1
    generation: int = 1
    previous_spec_version: int = 0
    rolling_back: bool = False
    job_iteration: int = 0
    executed_at: float = 0.0
    offsets: tuple[tuple[int, int], ...] = ()
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def name(self) -> str:
        return str(self.spec.get("Name", ""))


class PastSpec(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A spec that a service had: ``id`` is ``<service id>.<generation>``. ``created_at``: when it was asked for."""

    kind: ClassVar[str] = "past_spec"

    id: str
    service_id: str
    generation: int
    spec_version: int
    spec: dict[str, Any]
    created_at: float = 0.0


class UpdateStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the last update goes: updating, paused, completed, and rollback_started, rollback_paused, rollback_completed.

    It is about the service's spec of ``generation`` and says nothing of a later one.
    """

    state: str = ""
    started_at: float = 0.0
    completed_at: float = 0.0
    message: str = ""
    generation: int = 0


class ServiceStatus(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """What the leader made of a service so far."""

    kind: ClassVar[str] = "service_status"

    id: str
    update: UpdateStatus | None = None


class DrainPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node is drained step by step: at most ``parallelism`` (0: all) moves at once, in ``order``, until ``deadline``
    seconds after ``since``. ``order`` is stop-first, start-first, or "" for each service's own; ``deadline`` 0 is none."""

    parallelism: int = 1
    order: str = ""
    deadline: float = 0.0
    since: float = 0.0


class Node(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """What people decide about a node, written by the API (joining through the CA counts).

    ``drain`` is how a drained node is to be emptied, None for at once.
    """

    kind: ClassVar[str] = "node"

    id: str
    name: str = ""
    role: str = "worker"
    availability: str = "active"
    labels: dict[str, str] = {}
    drain: DrainPolicy | None = None
    created_at: float = 0.0
    updated_at: float = 0.0


class NodeDescription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node says of itself when it opens a session."""

    hostname: str = ""
    os: str = "linux"
    architecture: str = ""
    resources: Resources = Resources()
    engine_version: str = ""
    engine_labels: dict[str, str] = {}
    plugins: tuple[tuple[str, str], ...] = ()


class NodeInfo(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """The description and address of the node's last session, written by the dispatcher that holds it."""

    kind: ClassVar[str] = "node_info"

    id: str
    description: NodeDescription = NodeDescription()
    address: str = ""
    manager_address: str = ""


class NodeStatus(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """What the leader made of the node: unknown, down, ready, disconnected; ``since`` when.

    ``session`` is the session the verdict is about. ``missing_since`` > 0 while the session is gone and the grace runs;
    ``down_at`` is the time at which the node is declared down if nothing is heard until then.
    """

    kind: ClassVar[str] = "node_status"

    id: str
    state: str = "unknown"
    since: float = 0.0
    message: str = ""
    session: str = ""
    missing_since: float = 0.0
    down_at: float = 0.0


class Session(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A worker's live link: leased, so it vanishes with the manager that holds it. ``id`` is the node's id."""

    kind: ClassVar[str] = "session"

    id: str
    session_id: str
    manager_id: str
    opened_at: float = 0.0


class Network(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A cluster-scope network as asked for (the Engine API's NetworkCreateRequest)."""

    kind: ClassVar[str] = "network"

    id: str
    spec: dict[str, Any]
    created_at: float = 0.0

    @property
    def name(self) -> str:
        return str(self.spec.get("Name", ""))


class Secret(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A secret: its spec (Name, Labels, Templating) and the bytes."""

    kind: ClassVar[str] = "secret"

    id: str
    spec: dict[str, Any]
    data: bytes = b""
    created_at: float = 0.0
    updated_at: float = 0.0


class Config(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """A config: its spec (Name, Labels, Templating) and the bytes."""

    kind: ClassVar[str] = "config"

    id: str
    spec: dict[str, Any]
    data: bytes = b""
    created_at: float = 0.0
    updated_at: float = 0.0


class ClusterLogin(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """The login that the whole cluster has at one registry; ``id`` is the registry's host."""

    kind: ClassVar[str] = "login"

    id: str
    login: RegistryLogin


class ServiceLogin(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """The login a service came with (X-Registry-Auth), and the one it had before; ``id`` is the service's."""

    kind: ClassVar[str] = "service_login"

    id: str
    current: RegistryLogin | None = None
    previous: RegistryLogin | None = None


class Name(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """Holds a name of one kind: created in the transaction that creates its owner, so names are unique."""

    kind: ClassVar[str] = "name"

    id: str


class NetworkAllocation(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """What the leader gave a cluster-scope network: subnets in CIDR form, their gateways, a VXLAN id (0: none yet)."""

    kind: ClassVar[str] = "network_allocation"

    id: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    vxlan_id: int = 0


class PortConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A published port. ``published`` 0 means: choose one. ``mode`` is ingress or host."""

    target: int
    published: int = 0
    protocol: str = "tcp"
    mode: str = "ingress"
    name: str = ""
    host_ip: str = ""


class ServiceAllocation(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """What the leader gave a service: its ports with every ``published`` chosen, and virtual addresses by network id."""

    kind: ClassVar[str] = "service_allocation"

    id: str
    ports: tuple[PortConfig, ...] = ()
    addresses: dict[str, str] = {}


class TaskNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task's attachment to a cluster-scope network: addresses in CIDR form, unique within the network."""

    network_id: str
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class Task(Stored, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One attempt to fill a slot, as the leader decided it.

    ``slot`` is 0 for global services, whose slot is ``node_id`` from the start. ``spec`` is the service's TaskTemplate as
    it was at ``spec_version``. ``state`` is the leader's part (NEW … ASSIGNED, REMOVE, ORPHANED). ``attempt`` counts from 1
    within the slot. ``not_before`` holds back RUNNING, not the preparation. ``replaces`` is the task this one follows.
    ``generic_named`` are the names of its node's generic resources that it was given, by kind.
    ``rollout`` is the service's generation whose rollout made the task, 0 when it was made to fill its slot. ``crashes``:
    how many tasks of the slot before it ended soon after their start, one after the other; ``avoid``: the nodes on which
    they did, which are ranked after others.
    ``job_iteration`` is the execution of a job it belongs to, each of which has slots of its own; 0 for services that are none.
    """

    kind: ClassVar[str] = "task"

    id: str
    service_id: str
    slot: int = 0
    node_id: str = ""
    attempt: int = 1
    spec: dict[str, Any] = {}
    spec_version: int = 1
    service_name: str = ""
    service_labels: dict[str, str] = {}
    networks: tuple[TaskNetwork, ...] = ()
    ports: tuple[PortConfig, ...] = ()
    state: TaskState = TaskState.NEW
    desired: TaskState = TaskState.RUNNING
    message: str = ""
    cause: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    not_before: float = 0.0
    replaces: str = ""
    generic_named: dict[str, tuple[str, ...]] = {}
    rollout: int = 0
    crashes: int = 0
    avoid: tuple[str, ...] = ()
    job_iteration: int = 0

    @property
    def slot_key(self) -> tuple[int, int, str]:
        """What tells the slots of one service apart: execution of a job, number, node (of global ones)."""
        return self.job_iteration, self.slot, "" if self.slot else self.node_id

    @property
    def place(self) -> str:
        """The slot as users see it: its number, which counts from 0 for jobs as in Docker, or its node."""
        return str(self.slot - bool(self.job_iteration)) if self.slot else self.node_id


class TaskStatus(Stored, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the worker observed of a task. ``id`` is the task's. Its state's rank only rises.

    ``exit_code`` is None until the container has exited; ``failed_at`` is the time of the exit or refusal. ``ports`` are
    those bound on the node (host ports chosen). ``health`` is "", starting, healthy or unhealthy. ``started_at`` is when it
    was RUNNING first, 0 if never; ``at`` and ``started_at`` are the worker's time, ``stored_at``, when a manager first wrote
    the state down, is the manager's.
    """

    kind: ClassVar[str] = "task_status"

    id: str
    node_id: str
    state: TaskState
    at: float = 0.0
    message: str = ""
    error: str = ""
    container_id: str = ""
    pid: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    ports: tuple[PortConfig, ...] = ()
    addresses: tuple[str, ...] = ()
    health: str = ""
    started_at: float = 0.0
    stored_at: float = 0.0


class Leader(Stored, frozen=True, kw_only=True, omit_defaults=True):
    """Who leads: the value of the election's key, which is leased. The key's create_revision fences the leader's writes."""

    kind: ClassVar[str] = "leader"

    node_id: str
    address: str = ""
    elected_at: float = 0.0


#: kind → struct: everything the store may hold.
KINDS: dict[str, type[Stored]] = {
    struct.kind: struct
    for struct in (
        Cluster,
        Service,
        PastSpec,
        ServiceStatus,
        Node,
        NodeInfo,
        NodeStatus,
        Session,
        Network,
        Secret,
        Config,
        ClusterLogin,
        ServiceLogin,
        Name,
        NetworkAllocation,
        ServiceAllocation,
        Task,
        TaskStatus,
        Leader,
    )
}


def shown_state(task: Task, status: TaskStatus | None) -> TaskState:
    """The state a person sees of ``task``."""
    return shown(task.state, status.state if status is not None else None)
