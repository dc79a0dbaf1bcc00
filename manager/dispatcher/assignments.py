"""What a node should hold, and how to tell it what changed. Pure: (world, node id) → Holding; (old, new) → message.

A node is given its tasks that were assigned and are not deleted, the networks those use, and the secrets and configs of
those that are not over. It must not know sessions or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from covey.model.objects import Config, PortConfig, Secret, ServiceAllocation, Task
from covey.model.task_states import TaskState, is_terminal
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask, Assignments
from scheduler.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Holding:
    """Everything one node should hold at ``revision``, by id."""

    revision: int = 0
    tasks: Mapping[str, AssignedTask] = field(default_factory=dict)
    networks: Mapping[str, AssignedNetwork] = field(default_factory=dict)
    secrets: Mapping[str, AssignedSecret] = field(default_factory=dict)
    configs: Mapping[str, AssignedSecret] = field(default_factory=dict)


def holding(
    snapshot: Snapshot, secrets: Mapping[str, Secret], configs: Mapping[str, Config], node_id: str, former: Holding
) -> Holding:
    """The Holding of ``node_id``. References to what does not exist are left out: the worker says what it misses.

    A network that was removed stays as it was in ``former`` until the node's last task in it is gone.
    """
    tasks: dict[str, AssignedTask] = {}
    networks: dict[str, AssignedNetwork] = {}
    used_secrets: dict[str, AssignedSecret] = {}
    used_configs: dict[str, AssignedSecret] = {}
    view = snapshot.nodes.get(node_id)
    hostname = view.hostname if view is not None else ""
    for task in snapshot.tasks_on(node_id):
        if task.state < TaskState.ASSIGNED:
            continue
        ports = chosen_ports(task.ports, snapshot.service_allocations.get(task.service_id))
        tasks[task.id] = AssignedTask(task=task, ports=ports, hostname=hostname)
        for attachment in task.networks:
            network = _network(snapshot, attachment.network_id) or former.networks.get(attachment.network_id)
            if network is not None:
                networks[network.id] = network
        if not is_terminal(snapshot.state(task)):
            _collect(task, "Secrets", "SecretID", secrets, used_secrets)
            _collect(task, "Configs", "ConfigID", configs, used_configs)
    return Holding(snapshot.revision, tasks, networks, used_secrets, used_configs)


def chosen_ports(ports: Iterable[PortConfig], allocation: ServiceAllocation | None) -> tuple[PortConfig, ...]:
    """Published ports of a task or a spec, with those filled in that the leader chose for the service."""
    chosen = {_port_name(port): port.published for port in (allocation.ports if allocation else ())}
    return tuple(
        msgspec.structs.replace(port, published=chosen[_port_name(port)])
        if port.mode == "ingress" and not port.published and _port_name(port) in chosen
        else port
        for port in ports
    )


def _port_name(port: PortConfig) -> tuple[int, str, str, str]:
    return port.target, port.protocol, port.mode, port.name


def _network(snapshot: Snapshot, network_id: str) -> AssignedNetwork | None:
    network = snapshot.networks.get(network_id)
    if network is None:
        return None
    given = snapshot.network_allocations.get(network_id)
    return AssignedNetwork(
        id=network.id,
        name=network.name,
        spec=network.spec,
        subnets=given.subnets if given else (),
        gateways=given.gateways if given else (),
        vxlan_id=given.vxlan_id if given else 0,
    )


def references(spec: Mapping[str, Any], field_name: str, id_field: str) -> Iterable[str]:
    """The ids that a TaskTemplate's ``ContainerSpec.<field_name>[].<id_field>`` name."""
    entries = (spec.get("ContainerSpec") or {}).get(field_name) or ()
    return (str(entry.get(id_field) or "") for entry in entries)


def _collect(
    task: Task, field_name: str, id_field: str, known: Mapping[str, Secret | Config], used: dict[str, AssignedSecret]
) -> None:
    for object_id in references(task.spec, field_name, id_field):
        item = known.get(object_id)
        if item is not None and object_id not in used:
            used[object_id] = AssignedSecret(id=item.id, name=str(item.spec.get("Name", "")), data=item.data)


NOTHING = Holding()

_PARTS: tuple[tuple[str, Callable[[Holding], Mapping[str, Any]]], ...] = (
    ("task", lambda held: held.tasks),
    ("network", lambda held: held.networks),
    ("secret", lambda held: held.secrets),
    ("config", lambda held: held.configs),
)


def complete(new: Holding, sequence: str, cause: str) -> Assignments:
    """All of ``new`` as one message, after which the node is at ``sequence``."""
    return Assignments(
        complete=True,
        results_in=sequence,
        revision=new.revision,
        tasks=tuple(new.tasks.values()),
        networks=tuple(new.networks.values()),
        secrets=tuple(new.secrets.values()),
        configs=tuple(new.configs.values()),
        cause=cause,
    )


def diff(old: Holding, new: Holding, applies_to: str, sequence: str, cause: str) -> Assignments | None:
    """What takes a node from ``old`` (sequence ``applies_to``) to ``new``; None when they are the same."""
    changed: dict[str, tuple[Any, ...]] = {}
    removed: list[tuple[str, str]] = []
    for kind, part in _PARTS:
        before, after = part(old), part(new)
        changed[kind] = tuple(item for key, item in after.items() if before.get(key) != item)
        removed += [(kind, key) for key in before if key not in after]
    if not removed and not any(changed.values()):
        return None
    return Assignments(
        complete=False,
        applies_to=applies_to,
        results_in=sequence,
        revision=new.revision,
        tasks=changed["task"],
        networks=changed["network"],
        secrets=changed["secret"],
        configs=changed["config"],
        removed=tuple(removed),
        cause=cause,
    )
