"""Subnets, gateways and VXLAN ids of cluster-scope networks: those asked for first, then free ones of the address pools.

A network has IPv4 unless its spec says otherwise, and IPv6 if it says so (``EnableIPv4``, ``EnableIPv6``). IPv6 subnets come
from the cluster's IPv6 pools or, where it has none, from unique local addresses of a prefix made of the cluster's id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from covey.model.objects import Cluster, Network, NetworkAllocation
from scheduler.addresses import IPNetwork, first_host, free_subnet, overlaps, parse_subnet, unique_local_prefix
from scheduler.allocation.exhausted import Exhausted
from scheduler.draft import Draft
from scheduler.plan import PutAllocation
from scheduler.snapshot import Snapshot

#: Swarm's first VXLAN id, and the largest there is (RFC 7348: 24 bits).
FIRST_VXLAN, LAST_VXLAN = 4097, (1 << 24) - 1
_POOLS = ("10.0.0.0/8",)
_IPV6_LENGTH = 64


class _Left:
    """What may still be given to networks, while one pass hands it out."""

    def __init__(self, cluster: Cluster | None, given: list[NetworkAllocation]) -> None:
        pools = cluster.address_pools if cluster is not None else _POOLS
        self._length = {4: cluster.subnet_size if cluster is not None else 24, 6: _IPV6_LENGTH}
        self._pools = {version: tuple(p for p in pools if parse_subnet(p).version == version) for version in (4, 6)}
        if not self._pools[6] and cluster is not None:
            self._pools[6] = (str(unique_local_prefix(cluster.id)),)
        self._taken = [parse_subnet(text) for one in given for text in one.subnets]
        self._vxlan_ids = {one.vxlan_id for one in given}

    def claim(self, subnet: IPNetwork, name: str) -> None:
        """A subnet that was asked for. Raises Exhausted when it is another's."""
        if (other := overlaps(subnet, self._taken)) is not None:
            raise Exhausted(f"subnet {subnet} of network {name} overlaps {other}: choose another")
        self._taken.append(subnet)

    def subnet(self, version: int, name: str) -> IPNetwork:
        """A free one of the pools. Raises Exhausted."""
        pools, length = self._pools[version], self._length[version]
        subnet = free_subnet(pools, length, self._taken)
        if subnet is None:
            raise Exhausted(
                f"no /{length} subnet is left in the address pools {', '.join(pools)} for network {name}:"
                " remove networks that are not used, or ask for a subnet of your own"
            )
        self._taken.append(subnet)
        return subnet

    def vxlan_id(self, name: str) -> int:
        """Raises Exhausted."""
        number = next(number for number in count(FIRST_VXLAN) if number not in self._vxlan_ids)
        if number > LAST_VXLAN:
            raise Exhausted(f"no VXLAN id is left up to {LAST_VXLAN} for network {name}: remove networks that are not used")
        self._vxlan_ids.add(number)
        return number


def decide(snapshot: Snapshot, draft: Draft) -> dict[str, str]:
    """Allocations of networks that have none, in ``draft``; network id → why it gets none."""
    missing = [network for key, network in snapshot.networks.items() if key not in snapshot.network_allocations]
    if not missing:
        return {}
    left = _Left(snapshot.cluster, list(snapshot.network_allocations.values()))
    refused: dict[str, str] = {}
    # Who asks for a subnet of its own gets it before others are given any that is free.
    for network in sorted(missing, key=lambda network: (not _wishes(network), network.created_at, network.id)):
        try:
            given = _allocation(network, left)
        except Exhausted as reason:
            refused[network.id] = str(reason)
        else:
            draft.add(PutAllocation(given, f"network {network.id} gets {', '.join(given.subnets)}"))
    return refused


def _wishes(network: Network) -> list[Mapping[str, Any]]:
    """The IPAM configurations with a subnet that the user asked for."""
    return [entry for entry in (network.spec.get("IPAM") or {}).get("Config") or () if entry.get("Subnet")]


def _allocation(network: Network, left: _Left) -> NetworkAllocation:
    name = network.name or network.id
    subnets: list[IPNetwork] = []
    gateways: list[str] = []
    for entry in _wishes(network):
        subnet = parse_subnet(str(entry["Subnet"]))
        left.claim(subnet, name)
        subnets.append(subnet)
        gateways.append(str(entry.get("Gateway") or first_host(subnet)))
    for version in _versions(network):
        if all(subnet.version != version for subnet in subnets):
            subnet = left.subnet(version, name)
            subnets.append(subnet)
            gateways.append(first_host(subnet))
    vxlan_id = left.vxlan_id(name) if network.spec.get("Driver") == "overlay" else 0
    return NetworkAllocation(id=network.id, subnets=tuple(map(str, subnets)), gateways=tuple(gateways), vxlan_id=vxlan_id)


def _versions(network: Network) -> Iterator[int]:
    if network.spec.get("EnableIPv4") is not False:
        yield 4
    if network.spec.get("EnableIPv6"):
        yield 6


def ranges(network: Network) -> Mapping[str, IPNetwork]:
    """Subnet → the part of it that addresses are taken from, where the user named one (IPAM ``IPRange``)."""
    return {
        str(parse_subnet(str(entry["Subnet"]))): parse_subnet(str(entry["IPRange"]))
        for entry in _wishes(network)
        if entry.get("IPRange")
    }


def auxiliary(network: Network) -> Iterator[str]:
    """Addresses that the user keeps for hosts of their own (IPAM ``AuxiliaryAddresses``)."""
    for entry in _wishes(network):
        yield from map(str, (entry.get("AuxiliaryAddresses") or {}).values())
