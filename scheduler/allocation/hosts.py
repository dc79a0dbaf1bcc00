"""The addresses that are left in each network while one pass hands them out: to services first, then to tasks.

What is taken is read off the snapshot: addresses of services that exist, and of tasks whose container may exist. So nothing
leaks, and nothing is given twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from covey.model.objects import NetworkAllocation, Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.addresses import hosts_after, parse_subnet
from scheduler.allocation import networks
from scheduler.allocation.exhausted import Exhausted
from scheduler.snapshot import Snapshot


def keeps_addresses(snapshot: Snapshot, task: Task) -> bool:
    """Whether a container with the task's addresses may exist: only its worker can say that there is none.

    A task that the leader gave up for lost may well run behind a partition.
    """
    if not task.networks or task.state == TaskState.REMOVE:
        return False
    status = snapshot.statuses.get(task.id)
    return status is None or not is_terminal(status.state)


class Hosts:
    """Addresses in CIDR form; the taken ones are collected when the first is asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._taken: dict[str, set[str]] | None = None
        self._left: dict[str, Iterator[str]] = {}

    def take(self, network_id: str, given: NetworkAllocation) -> tuple[str, ...]:
        """The next free address of each family the network has. Raises Exhausted, and takes nothing then."""
        taken = self._all_taken().setdefault(network_id, set())
        chosen: list[str] = []
        try:
            for subnets in _families(given):
                chosen.append(self._take(network_id, given, subnets, taken))
        except Exhausted:
            taken.difference_update(chosen)
            raise
        return tuple(chosen)

    def take_one(self, network_id: str, given: NetworkAllocation) -> str:
        """The next free address of the network's first family. Raises Exhausted."""
        return self._take(network_id, given, _families(given)[0], self._all_taken().setdefault(network_id, set()))

    def _take(self, network_id: str, given: NetworkAllocation, subnets: list[str], taken: set[str]) -> str:
        for subnet in subnets:
            for address in self._free(network_id, given, subnet, taken):
                taken.add(address)
                return address
        raise Exhausted(self._words(network_id, subnets))

    def _free(self, network_id: str, given: NetworkAllocation, subnet: str, taken: set[str]) -> Iterator[str]:
        key = f"{network_id} {subnet}"
        if key not in self._left:
            self._left[key] = self._candidates(network_id, given, subnet)
        return (address for address in self._left[key] if address not in taken)

    def _candidates(self, network_id: str, given: NetworkAllocation, subnet: str) -> Iterator[str]:
        network = self._snapshot.networks.get(network_id)
        whole = parse_subnet(subnet)
        gateways = dict(zip(given.subnets, given.gateways, strict=False))
        part = networks.ranges(network).get(subnet) if network is not None else None
        kept = set(networks.auxiliary(network)) if network is not None else set()
        for address in hosts_after(whole, gateways.get(subnet, ""), part):
            if address.partition("/")[0] not in kept:
                yield address

    def _all_taken(self) -> dict[str, set[str]]:
        if self._taken is None:
            snapshot = self._snapshot
            self._taken = {}
            for service_id, held in snapshot.service_allocations.items():
                if service_id in snapshot.services:
                    for network_id, address in held.addresses.items():
                        self._taken.setdefault(network_id, set()).add(address)
            for task in snapshot.tasks.values():
                if keeps_addresses(snapshot, task):
                    for attached in task.networks:
                        self._taken.setdefault(attached.network_id, set()).update(attached.addresses)
        return self._taken

    def _words(self, network_id: str, subnets: list[str]) -> str:
        network = self._snapshot.networks.get(network_id)
        name = network.name if network is not None and network.name else network_id
        which = f"subnet {subnets[0]}" if len(subnets) == 1 else f"subnets {', '.join(subnets)}"
        return f"every address of {which} of network {name} is taken: use a larger subnet"


def _families(given: NetworkAllocation) -> list[list[str]]:
    """Its subnets, IPv4's and IPv6's apart."""
    versions = {subnet: parse_subnet(subnet).version for subnet in given.subnets}
    return [[subnet for subnet, version in versions.items() if version == one] for one in sorted(set(versions.values()))]
