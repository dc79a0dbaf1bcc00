"""Cluster-scope addresses: subnets and gateways of networks, addresses of services and tasks, published ports of services.

What is taken is read off the snapshot every time, so nothing can leak: a task's addresses are free again once its worker
says it is over, or once it is forgotten. Tasks go from NEW to PENDING here; one that cannot, because its network or port is not
given yet or nothing is left to give, or because its service waits for others, waits with the reason as its message. It must
not know how traffic flows.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

from covey.model.objects import NetworkAllocation, Service, ServiceAllocation, Task, TaskNetwork
from covey.model.spec import ServiceSpec
from covey.model.task_states import TaskState
from scheduler import depends
from scheduler.allocation import networks, ports
from scheduler.allocation.exhausted import Exhausted
from scheduler.allocation.hosts import Hosts, keeps_addresses
from scheduler.draft import Draft
from scheduler.plan import AllocateTasks, DropAllocation, Plan, PutAllocation
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole

#: Networks of a node, not of the cluster: nothing to give there.
NODE_SCOPE = frozenset({"host", "none", "bridge"})


#: So many services and tasks are looked at without a stop; giving one what it needs counts as ``_GIVING``.
PART = 20_000
_GIVING = 10


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Allocations to write and drop, and tasks that have all they need."""
    return whole(parts(snapshot, now, settings))


def parts(snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
    """The same decision, stopping now and then; the snapshot must not change meanwhile."""
    draft = Draft()
    effort = Effort(PART)
    hosts = Hosts(snapshot)
    names = {network.name: key for key, network in snapshot.networks.items()}
    refused = networks.decide(snapshot, draft)
    refused |= yield from _allocate_services(snapshot, settings, names, hosts, draft, effort)
    for kind, held, owners in (
        ("network_allocation", snapshot.network_allocations, snapshot.networks),
        ("service_allocation", snapshot.service_allocations, snapshot.services),
    ):
        for key in held:
            if key not in owners and not (kind == "network_allocation" and _in_use(snapshot, key)):
                draft.add(DropAllocation(kind, key, f"{kind.split('_')[0]} {key} was removed"))
    yield from _allocate_tasks(snapshot, names, hosts, draft, refused, effort)
    return draft.plan(snapshot.revision, "allocate")


def _in_use(snapshot: Snapshot, network_id: str) -> bool:
    return any(
        attached.network_id == network_id
        for task in snapshot.tasks.values()
        if keeps_addresses(snapshot, task)
        for attached in task.networks
    )


def _allocate_services(
    snapshot: Snapshot, settings: Settings, names: Mapping[str, str], hosts: Hosts, draft: Draft, effort: Effort
) -> Generator[None, None, dict[str, str]]:
    """Ports and virtual addresses in ``draft``; service id → why it gets none."""
    refused: dict[str, str] = {}
    lacking: list[tuple[Service, ServiceAllocation, set[str]]] = []
    for service in snapshot.services.values():
        spec = snapshot.service_specs[service.id]
        held = snapshot.service_allocations.get(service.id) or ServiceAllocation(id=service.id)
        wanted = _virtual_networks(snapshot, spec, names)
        if not ports.answers(spec.ports, held.ports) or wanted != held.addresses.keys():
            lacking.append((service, held, wanted))
        if effort.due():
            yield
    if not lacking:
        return refused
    owned = ports.owners(snapshot)
    for service, held, wanted in sorted(lacking, key=lambda one: (one[0].created_at, one[0].id)):
        if effort.due(_GIVING):
            yield
        try:
            given = _service_allocation(snapshot, service, held, wanted, owned, hosts, settings)
        except Exhausted as reason:
            refused[service.id] = str(reason)
            continue
        draft.add(PutAllocation(given, f"service {service.id} publishes {ports.listed(given.ports)}{_at(given)}"))
    return refused


def _virtual_networks(snapshot: Snapshot, spec: ServiceSpec, names: Mapping[str, str]) -> set[str]:
    """The networks in which the service has an address of its own: those with a subnet, unless it is found by its tasks'."""
    if spec.endpoint_mode != "vip" or not spec.task.networks:
        return set()
    found = {names.get(one.target, one.target) for one in spec.task.networks}
    return {key for key in found if key in snapshot.networks and key in snapshot.network_allocations}


def _service_allocation(
    snapshot: Snapshot,
    service: Service,
    held: ServiceAllocation,
    wanted: set[str],
    owned: ports.Owners,
    hosts: Hosts,
    settings: Settings,
) -> ServiceAllocation:
    chosen = ports.choose(service.id, snapshot.service_specs[service.id].ports, held.ports, owned, settings)
    addresses = {
        # Of each network one, in the first family it has: what Docker shows.
        key: held.addresses.get(key) or hosts.take_one(key, snapshot.network_allocations[key])
        for key in sorted(wanted)
    }
    return ServiceAllocation(id=service.id, ports=chosen, addresses=addresses)


def _at(given: ServiceAllocation) -> str:
    return f" at {', '.join(given.addresses.values())}" if given.addresses else ""


def _allocate_tasks(
    snapshot: Snapshot, names: Mapping[str, str], hosts: Hosts, draft: Draft, refused: Mapping[str, str], effort: Effort
) -> Generator[None]:
    fresh: list[Task] = []
    for task in snapshot.tasks.values():
        if task.state == TaskState.NEW and task.desired < TaskState.SHUTDOWN:
            fresh.append(task)
        if effort.due():
            yield
    if not fresh:
        return
    fresh.sort(key=lambda task: (task.created_at, task.service_id, task.slot, task.id))
    ids: list[str] = []
    given: list[tuple[TaskNetwork, ...]] = []
    gates = {service_id: depends.waiting_for(snapshot, service_id) for service_id in {task.service_id for task in fresh}}
    for task in fresh:
        if effort.due(_GIVING):
            yield
        try:
            if why := gates[task.service_id]:
                raise Exhausted(why)
            attached = _attach(snapshot, task, names, hosts, refused)
        except Exhausted as reason:
            if task.message != str(reason):
                draft.move((task.id,), str(reason), message=str(reason))
            continue
        ids.append(task.id)
        given.append(attached)
    if ids:
        draft.add(AllocateTasks(tuple(ids), tuple(given), "addresses and ports are given"))


def _attach(
    snapshot: Snapshot, task: Task, names: Mapping[str, str], hosts: Hosts, refused: Mapping[str, str]
) -> tuple[TaskNetwork, ...]:
    """The task's attachments. Raises Exhausted with what it waits for."""
    held = snapshot.service_allocations.get(task.service_id)
    if task.ports and (held is None or not ports.answers(task.ports, held.ports)):
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
        TaskNetwork(network_id=key, addresses=hosts.take(key, given), aliases=aliases) for key, given, aliases in wanted
    )
