"""Placement as plainly as it can be said: one task after another, every node looked at each time, dictionaries only.

What ``scheduler/placement`` is held against, and written apart from it: it shares only the objects, the parsed specs and
the hash that breaks ties. Not a test itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from covey.ids import tie_break
from covey.model.objects import Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.settings import Settings
from scheduler.snapshot import NodeView, Snapshot

WORDS = [
    ("ready", "{n} node not available for new tasks", "{n} nodes not available for new tasks"),
    ("resources", "insufficient resources on {n} node", "insufficient resources on {n} nodes"),
    ("plugin", "missing plugin on {n} node", "missing plugin on {n} nodes"),
    ("constraint", "scheduling constraints not satisfied on {n} node", "scheduling constraints not satisfied on {n} nodes"),
    ("platform", "unsupported platform on {n} node", "unsupported platform on {n} nodes"),
    ("port", "host-mode port already in use on {n} node", "host-mode port already in use on {n} nodes"),
    ("replicas", "max replicas per node limit exceed", "max replicas per node limit exceed"),
    (
        "volumes",
        "cannot fulfill requested CSI volume mounts on {n} node",
        "cannot fulfill requested CSI volume mounts on {n} nodes",
    ),
    ("affinity", "service affinity not satisfied on {n} node", "service affinity not satisfied on {n} nodes"),
]
ALIASES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


@dataclass
class Outcome:
    """Where tasks go, in the order in which that was decided, with the names given; and what the others say."""

    placed: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


class Machine:
    """A node and what it has given away so far."""

    def __init__(self, view: NodeView) -> None:
        self.view = view
        self.tie = tie_break(view.id) >> 1
        said = view.info.description if view.info else None
        self.cpus = said.resources.nano_cpus if said else 0
        self.memory = said.resources.memory_bytes if said else 0
        self.counts = dict(said.resources.generic) if said else {}
        self.named = dict(said.resources.generic_named) if said else {}
        self.plugins = list(said.plugins) if said else []
        self.used_cpus = self.used_memory = self.nominal_cpus = self.nominal_memory = 0
        self.ports: set[tuple[str, int]] = set()
        self.generic: dict[str, int] = {}
        self.names: set[tuple[str, str]] = set()
        self.replicas: dict[str, int] = {}
        self.failures: dict[tuple[str, int], int] = {}

    def label(self, descriptor: str) -> str:
        kind, _, name = descriptor.partition(".labels.")
        labels: Any = self.view.node.labels
        if kind == "engine":
            labels = self.view.info.description.engine_labels if self.view.info else {}
        return str(labels.get(name, ""))

    def offers(self, kind: str) -> int:
        return self.counts.get(kind, 0) + len(self.named.get(kind, ()))

    def take(self, task: Task, spec: Any, settings: Settings) -> dict[str, tuple[str, ...]]:
        asked = spec.reservations
        counted = asked if asked else settings.nominal
        self.used_cpus += asked.nano_cpus
        self.used_memory += asked.memory_bytes
        self.nominal_cpus += counted.nano_cpus
        self.nominal_memory += counted.memory_bytes
        self.ports |= wanted_ports(task)
        given = {}
        for kind, number in asked.generic.items():
            self.generic[kind] = self.generic.get(kind, 0) + number
            names = [name for name in self.named.get(kind, ()) if (kind, name) not in self.names][:number]
            if names and task.state < TaskState.ASSIGNED:
                given[kind] = tuple(names)
        for kind, names in (task.generic_named or given).items():
            self.names |= {(kind, name) for name in names}
        return given


def wanted_ports(task: Task) -> set[tuple[str, int]]:
    return {(port.protocol, port.published) for port in task.ports if port.mode == "host" and port.published}


class Cluster:
    """Everything one after another."""

    def __init__(self, snapshot: Snapshot, now: float, settings: Settings) -> None:
        self.snapshot, self.now, self.settings = snapshot, now, settings
        self.machines = {node_id: Machine(view) for node_id, view in snapshot.nodes.items()}
        self.most_cpus = float(max([1, *(machine.cpus for machine in self.machines.values())]))
        self.most_memory = float(max([1, *(machine.memory for machine in self.machines.values())]))
        self.bonds_hold: dict[str, dict[str, bool]] = {}
        policies = [(task.service_id, snapshot.task_specs[task.id].placement) for task in snapshot.tasks.values()]
        self.distances = {
            (service, wish.service, wish.topology)
            for service, policy in policies
            for wish in policy.affinities
            if wish.service and wish.required and wish.weight < 0
        }
        for task in snapshot.tasks.values():
            machine = self.machines.get(task.node_id)
            if machine is None or task.state < TaskState.ASSIGNED:
                continue
            state = snapshot.state(task)
            if not is_terminal(state):
                machine.take(task, snapshot.task_specs[task.id], settings)
                if task.desired < TaskState.SHUTDOWN:
                    machine.replicas[task.service_id] = machine.replicas.get(task.service_id, 0) + 1
            elif state in (TaskState.FAILED, TaskState.REJECTED) and snapshot.statuses[task.id].at > now - 300:
                key = (task.service_id, task.spec_version)
                machine.failures[key] = machine.failures.get(key, 0) + 1

    def strategy(self, task: Task) -> str:
        named = self.snapshot.task_specs[task.id].placement.strategy or self.settings.strategy
        return named if named in ("binpack", "spread", "pack", "pack-small") else "binpack"

    def order(self) -> list[list[Task]]:
        groups: dict[tuple[str, int, str], list[Task]] = {}
        for task in self.snapshot.tasks.values():
            if task.state == TaskState.PENDING and task.desired <= TaskState.COMPLETE:
                groups.setdefault((task.service_id, task.spec_version, task.node_id), []).append(task)
        for tasks in groups.values():
            tasks.sort(key=lambda task: (task.created_at, task.slot, task.id))
        keys = sorted(groups, key=lambda key: (groups[key][0].created_at, key))
        by_priority: dict[int, list[tuple[str, int, str]]] = {}
        for key in keys:
            by_priority.setdefault(self.snapshot.task_specs[groups[key][0].id].placement.priority, []).append(key)
        ordered: list[tuple[str, int, str]] = []
        for priority in sorted(by_priority, reverse=True):
            keys = by_priority[priority]
            packed = [key for key in keys if self.strategy(groups[key][0]).startswith("pack")]
            ordered += [key for key in keys if key not in packed]
            ordered += sorted(packed, key=lambda key: self.list_order(key, groups[key][0])) if len(packed) > 1 else packed
        return [groups[key] for key in ordered]

    def list_order(self, key: tuple[str, int, str], task: Task) -> tuple[int, float, int]:
        asked = self.snapshot.task_specs[task.id].reservations
        cpus = max(1, median([machine.cpus for machine in self.machines.values()] or [1]))
        memory = max(1, median([machine.memory for machine in self.machines.values()] or [1]))
        size = max(asked.nano_cpus / cpus, asked.memory_bytes / memory)
        kind = 0 if size > 1 / 2 else 1 if size > 1 / 7 else 2
        return (kind, 0.0 if kind == 1 else -size, tie_break(key[0], key[2]))

    def refuses(self, machine: Machine, task: Task) -> str:
        """The filter that refuses a task on a node; "" if none does."""
        spec = self.snapshot.task_specs[task.id]
        asked, policy = spec.reservations, spec.placement
        view = machine.view
        if view.status is None or view.status.state != "ready" or view.node.availability != "active":
            return "ready"
        if asked.nano_cpus and machine.used_cpus + asked.nano_cpus > machine.cpus:
            return "resources"
        if asked.memory_bytes and machine.used_memory + asked.memory_bytes > machine.memory:
            return "resources"
        for kind, number in asked.generic.items():
            if machine.generic.get(kind, 0) + number > machine.offers(kind):
                return "resources"
        if view.info is not None:
            for kind, name in spec.plugins:
                silent = kind != "Volume" and all(known != kind for known, _ in machine.plugins)
                if (kind, name) not in machine.plugins and not silent:
                    return "plugin"
        if not all(self.meets(machine, str(constraint)) for constraint in policy.constraints):
            return "constraint"
        if policy.platforms and view.info is not None:
            said = view.info.description
            arch = ALIASES.get(said.architecture, said.architecture)
            if not any(o in ("", said.os) and (not a or ALIASES.get(a, a) == arch) for o, a in policy.platforms):
                return "platform"
        if wanted_ports(task) & machine.ports:
            return "port"
        if policy.max_replicas and machine.replicas.get(task.service_id, 0) >= policy.max_replicas:
            return "replicas"
        if spec.cluster_volumes:
            return "volumes"
        return "" if self.bonds_hold[task.id][machine.view.id] else "affinity"

    def bond_holds(self, machine: Machine, task: Task) -> bool:
        """Of affinities that are required, as things stand when the turn of the task's group comes."""
        for wish in self.snapshot.task_specs[task.id].placement.affinities:
            bound = wish.required and wish.service != task.service_id
            if bound and self.near(machine, wish.service, wish.topology) != (wish.weight > 0):
                return False
        return not any(
            other == task.service_id != service and self.near(machine, service, topology)
            for service, other, topology in self.distances
        )

    def near(self, machine: Machine, service: str, topology: str) -> bool:
        if topology == "node.id":
            return machine.replicas.get(service, 0) > 0
        mine = machine.label(topology)
        return bool(mine) and any(m.replicas.get(service) for m in self.machines.values() if m.label(topology) == mine)

    def score(self, machine: Machine, task: Task) -> int:
        total = 0
        for wish in self.snapshot.task_specs[task.id].placement.affinities:
            if wish.constraint is not None:
                holds = self.meets(machine, str(wish.constraint))
            else:
                holds = wish.service != task.service_id and self.near(machine, wish.service, wish.topology)
            total += wish.weight * (holds and not wish.required)
        return total

    def meets(self, machine: Machine, constraint: str) -> bool:
        """The constraints that the cases use, spelled out."""
        zone, size = machine.label("node.labels.zone"), machine.label("node.labels.size")
        address = machine.view.info.address if machine.view.info else ""
        return {
            "node.labels.zone == a": zone == "a",
            "node.labels.zone != a": zone != "a",
            "node.labels.zone in (a,b)": zone in ("a", "b"),
            "node.labels.zone not in (a,b)": zone not in ("a", "b"),
            "node.labels.size > 2": size.isdigit() and int(size) > 2,
            "node.labels.size < 2": size.isdigit() and int(size) < 2,
            "node.labels.zone =~ ^[bc]$": zone in ("b", "c"),
            "node.role == manager": machine.view.node.role == "manager",
            "node.ip == 192.0.2.0/30": address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"),
            "node.hostname != n3": machine.view.hostname != "n3",
        }[constraint]

    def rank(self, machine: Machine, task: Task) -> tuple[Any, ...]:
        spec, strategy = self.snapshot.task_specs[task.id], self.strategy(task)
        failures = machine.failures.get((task.service_id, task.spec_version), 0)
        key: list[Any] = [failures if failures >= 5 else 0]
        path: list[str] = []
        for descriptor in spec.placement.spread:
            path.append(descriptor)
            mine = [machine.label(each) for each in path]
            inside = [m for m in self.machines.values() if [m.label(each) for each in path] == mine]
            key.append(sum(m.replicas.get(task.service_id, 0) for m in inside))
        cpus, memory = max(machine.cpus, 1), max(machine.memory, 1)
        full = max(machine.nominal_cpus / cpus, machine.nominal_memory / memory)
        if strategy in ("binpack", "spread"):
            key += [machine.replicas.get(task.service_id, 0), -self.score(machine, task)]
            key.append(full if strategy == "spread" else -full)
        else:
            counted = spec.reservations if spec.reservations else self.settings.nominal
            left = (machine.cpus - machine.nominal_cpus - counted.nano_cpus) / self.most_cpus
            left += (machine.memory - machine.nominal_memory - counted.memory_bytes) / self.most_memory
            if strategy == "pack" and not machine.nominal_cpus and not machine.nominal_memory:
                left = 1024.0 - (machine.cpus / self.most_cpus + machine.memory / self.most_memory)
            key += [-self.score(machine, task), left]
        return (*key, machine.tie)

    def message(self, task: Task) -> str:
        counts = dict.fromkeys((name for name, *_ in WORDS), 0)
        for node_id, machine in self.machines.items():
            if task.node_id in ("", node_id):
                counts[self.refuses(machine, task)] += 1
        said = sorted((entry for entry in WORDS if counts[entry[0]]), key=lambda entry: -counts[entry[0]])
        parts = [(one if counts[name] == 1 else many).format(n=counts[name]) for name, one, many in said]
        return f"no suitable node ({'; '.join(parts)})" if parts else "no suitable node"


def place(snapshot: Snapshot, now: float, settings: Settings) -> Outcome:
    """Every pending task, one after another."""
    cluster, outcome, refused = Cluster(snapshot, now, settings), Outcome(), []
    for tasks in cluster.order():
        holds = {node_id: cluster.bond_holds(machine, tasks[0]) for node_id, machine in cluster.machines.items()}
        cluster.bonds_hold.update(dict.fromkeys((task.id for task in tasks), holds))
        for task in tasks:
            machines = [m for node_id, m in cluster.machines.items() if task.node_id in ("", node_id)]
            machines = [machine for machine in machines if not cluster.refuses(machine, task)]
            if not machines:
                refused.append(task)
                continue
            best = min(machines, key=lambda machine: cluster.rank(machine, task))
            given = best.take(task, snapshot.task_specs[task.id], settings)
            best.replicas[task.service_id] = best.replicas.get(task.service_id, 0) + 1
            outcome.placed[task.id] = (best.view.id, given)
    outcome.messages = {task.id: cluster.message(task) for task in refused}
    return outcome
