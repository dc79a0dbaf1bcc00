"""Cluster-scope addresses: subnets and gateways of networks, addresses of tasks, published ports of services.

What is taken is read off the snapshot every time, so nothing can leak: a task's addresses are free again once its worker
says it is over, or once it is forgotten. Tasks go from NEW to PENDING here; one that cannot, because its network or port is not
given yet or nothing is left to give, or because its service waits for others, waits with the reason as its message. It must
not know how traffic flows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from covey.model.objects import Network, NetworkAllocation, PortConfig, ServiceAllocation, Task, TaskNetwork
from covey.model.task_states import TaskState, is_terminal
from scheduler import depends
from scheduler.addresses import IPNetwork, first_host, free_subnet, hosts_after, overlaps, parse_subnet
from scheduler.draft import Draft
from scheduler.plan import AllocateTasks, DropAllocation, Plan, PutAllocation
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

#: Networks of a node, not of the cluster: nothing to give there.
NODE_SCOPE = frozenset({"host", "none", "bridge"})
_FIRST_VXLAN = 4097


class Exhausted(Exception):
    """Nothing of this kind is left; the message says of which."""


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Allocations to write and drop, and tasks that have all they need."""
    draft = Draft()
    refused: dict[str, str] = {}
    _allocate_networks(snapshot, draft, refused)
    _allocate_services(snapshot, settings, draft, refused)
    for kind, held, owners in (
        ("network_allocation", snapshot.network_allocations, snapshot.networks),
        ("service_allocation", snapshot.service_allocations, snapshot.services),
    ):
        for key in held:
            if key not in owners and not (kind == "network_allocation" and _in_use(snapshot, key)):
                draft.add(DropAllocation(kind, key, f"{kind.split('_')[0]} {key} was removed"))
    _allocate_tasks(snapshot, draft, refused)
    return draft.plan(snapshot.revision, "allocate")


def _in_use(snapshot: Snapshot, network_id: str) -> bool:
    return any(
        attached.network_id == network_id
        for task in snapshot.tasks.values()
        if _keeps_addresses(snapshot, task)
        for attached in task.networks
    )


def _allocate_networks(snapshot: Snapshot, draft: Draft, refused: dict[str, str]) -> None:
    cluster = snapshot.cluster
    pools = cluster.address_pools if cluster is not None else ("10.0.0.0/8",)
    size = cluster.subnet_size if cluster is not None else 24
    taken = [parse_subnet(text) for given in snapshot.network_allocations.values() for text in given.subnets]
    vxlan_ids = {given.vxlan_id for given in snapshot.network_allocations.values()}
    missing = [network for key, network in snapshot.networks.items() if key not in snapshot.network_allocations]
    asked = sorted(missing, key=lambda network: (not _wishes(network), network.created_at, network.id))
    for network in asked:
        try:
            subnets, gateways = _subnets(network, pools, size, taken)
        except Exhausted as reason:
            refused[network.id] = str(reason)
            continue
        taken += [parse_subnet(text) for text in subnets]
        vxlan_id = 0
        if network.spec.get("Driver") == "overlay":
            vxlan_id = next(number for number in range(_FIRST_VXLAN, 1 << 24) if number not in vxlan_ids)
            vxlan_ids.add(vxlan_id)
        given = NetworkAllocation(id=network.id, subnets=subnets, gateways=gateways, vxlan_id=vxlan_id)
        draft.add(PutAllocation(given, f"network {network.id} gets {', '.join(subnets)}"))


def _wishes(network: Network) -> list[Mapping[str, Any]]:
    """The IPAM configurations with a subnet that the user asked for."""
    return [entry for entry in (network.spec.get("IPAM") or {}).get("Config") or () if entry.get("Subnet")]


def _subnets(
    network: Network, pools: tuple[str, ...], size: int, taken: list[IPNetwork]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    wishes = _wishes(network)
    if not wishes:
        subnet = free_subnet(pools, size, taken)
        if subnet is None:
            raise Exhausted(
                f"no /{size} subnet is left in the address pools {', '.join(pools)} for network {network.name or network.id}:"
                " remove networks that are not used, or ask for a subnet of your own"
            )
        return (str(subnet),), (first_host(subnet),)
    wanted = [parse_subnet(str(entry["Subnet"])) for entry in wishes]
    for subnet in wanted:
        if (other := overlaps(subnet, taken)) is not None:
            raise Exhausted(f"subnet {subnet} of network {network.name or network.id} overlaps {other}: choose another")
    gateways = (str(entry.get("Gateway") or first_host(subnet)) for entry, subnet in zip(wishes, wanted, strict=True))
    return tuple(str(subnet) for subnet in wanted), tuple(gateways)


def _allocate_services(snapshot: Snapshot, settings: Settings, draft: Draft, refused: dict[str, str]) -> None:
    """Each published port belongs to one service; what a service has it keeps while it asks for it."""
    owners: dict[tuple[str, int], str] = {}
    for key, given in snapshot.service_allocations.items():
        for port in given.ports:
            if port.mode == "ingress":
                owners[port.protocol, port.published] = key
    services = sorted(snapshot.services.values(), key=lambda service: (service.created_at, service.id))
    for service in services:
        held = snapshot.service_allocations.get(service.id)
        asked = snapshot.service_specs[service.id].ports
        if held is None and not asked:
            continue
        if held is not None and _answers(asked, held.ports):
            continue
        try:
            ports = _ports(service.id, asked, held.ports if held else (), owners, settings)
        except Exhausted as reason:
            refused[service.id] = str(reason)
            continue
        addresses = held.addresses if held is not None else {}
        given = ServiceAllocation(id=service.id, ports=ports, addresses=addresses)
        draft.add(PutAllocation(given, f"service {service.id} publishes {_listed(ports)}"))


def _listed(ports: tuple[PortConfig, ...]) -> str:
    return ", ".join(f"{port.published}/{port.protocol}" for port in ports) or "nothing"


def _same_wish(asked: PortConfig, given: PortConfig) -> bool:
    """Whether ``given`` is what was chosen for ``asked``."""
    chosen = asked.published in (0, given.published)
    return chosen and (asked.target, asked.protocol, asked.mode, asked.name, asked.host_ip) == (
        given.target,
        given.protocol,
        given.mode,
        given.name,
        given.host_ip,
    )


def _answers(asked: tuple[PortConfig, ...], given: tuple[PortConfig, ...]) -> bool:
    """Whether an allocation is the one for these ports: a number where an ingress port asked for any."""
    return len(asked) == len(given) and all(
        _same_wish(wish, port) and (bool(port.published) or port.mode != "ingress")
        for wish, port in zip(asked, given, strict=True)
    )


def _ports(
    service_id: str,
    asked: tuple[PortConfig, ...],
    held: tuple[PortConfig, ...],
    owners: dict[tuple[str, int], str],
    settings: Settings,
) -> tuple[PortConfig, ...]:
    left = list(held)
    chosen: list[PortConfig] = []
    claims = dict(owners)
    for wish in asked:
        kept = next((port for port in left if _same_wish(wish, port)), None)
        if kept is not None:
            left.remove(kept)
            chosen.append(kept)
        else:
            chosen.append(_claim(service_id, wish, claims, settings))
    owners.update(claims)
    return tuple(chosen)


def _claim(service_id: str, wish: PortConfig, claims: dict[tuple[str, int], str], settings: Settings) -> PortConfig:
    if wish.mode != "ingress":
        return wish
    number = wish.published
    if not number:
        every = range(settings.first_port, settings.last_port + 1)
        number = next((port for port in every if (wish.protocol, port) not in claims), 0)
        if not number:
            raise Exhausted(
                f"no {wish.protocol} port is left between {settings.first_port} and {settings.last_port}"
                f" for service {service_id}: publish on a port of your own choice"
            )
    owner = claims.get((wish.protocol, number), service_id)
    if owner != service_id:
        raise Exhausted(f"port {number}/{wish.protocol} is already published by service {owner}: choose another")
    claims[wish.protocol, number] = service_id
    return PortConfig(
        target=wish.target,
        published=number,
        protocol=wish.protocol,
        mode=wish.mode,
        name=wish.name,
        host_ip=wish.host_ip,
    )


def _keeps_addresses(snapshot: Snapshot, task: Task) -> bool:
    """Whether a container with the task's addresses may exist: only its worker can say that there is none.

    A task that the leader gave up for lost may well run behind a partition.
    """
    if not task.networks or task.state == TaskState.REMOVE:
        return False
    status = snapshot.statuses.get(task.id)
    return status is None or not is_terminal(status.state)


class _Pools:
    """The addresses that are left, network by network, while one pass hands them out."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._taken: dict[str, set[str]] = {}
        self._left: dict[str, Iterator[str]] = {}
        for task in snapshot.tasks.values():
            if _keeps_addresses(snapshot, task):
                for attached in task.networks:
                    self._taken.setdefault(attached.network_id, set()).update(attached.addresses)

    def take(self, network_id: str, given: NetworkAllocation) -> str:
        """The next free address of a network's first subnet. Raises Exhausted."""
        left = self._left.get(network_id)
        if left is None:
            subnet = parse_subnet(given.subnets[0])
            left = self._left[network_id] = hosts_after(subnet, given.gateways[0] if given.gateways else "")
        taken = self._taken.setdefault(network_id, set())
        for address in left:
            if address not in taken:
                taken.add(address)
                return address
        network = self._snapshot.networks.get(network_id)
        name = network.name if network is not None and network.name else network_id
        raise Exhausted(f"every address of subnet {given.subnets[0]} of network {name} is taken: use a larger subnet")


def _allocate_tasks(snapshot: Snapshot, draft: Draft, refused: Mapping[str, str]) -> None:
    fresh = [t for t in snapshot.tasks.values() if t.state == TaskState.NEW and t.desired < TaskState.SHUTDOWN]
    if not fresh:
        return
    fresh.sort(key=lambda task: (task.created_at, task.service_id, task.slot, task.id))
    names = {network.name: key for key, network in snapshot.networks.items()}
    pools = _Pools(snapshot)
    ids: list[str] = []
    networks: list[tuple[TaskNetwork, ...]] = []
    gates = {service_id: depends.waiting_for(snapshot, service_id) for service_id in {task.service_id for task in fresh}}
    for task in fresh:
        try:
            if why := gates[task.service_id]:
                raise Exhausted(why)
            given = _attach(snapshot, task, names, pools, refused)
        except Exhausted as reason:
            if task.message != str(reason):
                draft.move((task.id,), str(reason), message=str(reason))
            continue
        ids.append(task.id)
        networks.append(given)
    if ids:
        draft.add(AllocateTasks(tuple(ids), tuple(networks), "addresses and ports are given"))


def _attach(
    snapshot: Snapshot, task: Task, names: Mapping[str, str], pools: _Pools, refused: Mapping[str, str]
) -> tuple[TaskNetwork, ...]:
    """The task's attachments. Raises Exhausted with what it waits for."""
    held = snapshot.service_allocations.get(task.service_id)
    if task.ports and (held is None or not _answers(task.ports, held.ports)):
        raise Exhausted(refused.get(task.service_id, f"waiting for the ports of service {task.service_id}"))
    wanted: list[tuple[str, NetworkAllocation, tuple[str, ...]]] = []
    for attachment in snapshot.task_specs[task.id].networks:
        if attachment.target in NODE_SCOPE:
            continue
        key = attachment.target if attachment.target in snapshot.networks else names.get(attachment.target, "")
        if not key:
            raise Exhausted(f"waiting for network {attachment.target}, which does not exist: create it or update the service")
        given = snapshot.network_allocations.get(key)
        if given is None:
            raise Exhausted(refused.get(key, f"waiting for the subnet of network {attachment.target}"))
        wanted.append((key, given, attachment.aliases))
    return tuple(
        TaskNetwork(network_id=key, addresses=(pools.take(key, given),), aliases=aliases) for key, given, aliases in wanted
    )
