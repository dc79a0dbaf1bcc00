"""Node-scope address management: which subnet a network gets, which address an endpoint gets.

Pure and in memory. The journal of leases is the attachment records (records.py): after a restart the pools are filled
from them, so a lease and its owner are written and freed in one rename. Cluster-scope addresses are the scheduler's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from covey.errors import Forbidden, InvalidArgument, Unavailable
from worker.network.endpoint import Address, Subnet

AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# The default local address pools of Docker's daemon (base, prefix length of each subnet), in its order of choice.
DEFAULT_POOLS = (
    *((f"172.{number}.0.0/16", 16) for number in range(17, 32)),
    ("192.168.0.0/16", 20),
)


def default_subnets() -> Iterator[ipaddress.IPv4Network]:
    """172.17.0.0/16 … 172.31.0.0/16, then 192.168.0.0/20 …"""
    for base, length in DEFAULT_POOLS:
        yield from ipaddress.IPv4Network(base).subnets(new_prefix=length)


def ula_subnets(global_id: int) -> Iterator[ipaddress.IPv6Network]:
    """The first 4,096 /64s of the node's own unique local prefix (RFC 4193): fd, 40 random bits, subnet number."""
    base = (0xFD << 120) | ((global_id & ((1 << 40) - 1)) << 80)
    for number in range(4096):
        yield ipaddress.IPv6Network((base | (number << 64), 64))


def overlapping(candidate: AnyNetwork, taken: Iterable[AnyNetwork]) -> AnyNetwork | None:
    """The first of ``taken`` that shares addresses with the candidate; default routes (length 0) do not count."""
    for other in taken:
        if other.version == candidate.version and other.prefixlen and candidate.overlaps(other):
            return other
    return None


def choose_subnet(candidates: Iterable[AnyNetwork], taken: Iterable[AnyNetwork]) -> AnyNetwork:
    """The first candidate that nothing overlaps. Raises InvalidArgument (Docker's 400) when all are used up."""
    used = list(taken)
    count = 0
    for candidate in candidates:
        if overlapping(candidate, used) is None:
            return candidate
        count += 1
    raise InvalidArgument(
        f"all predefined address pools have been fully subnetted: each of {count} overlaps a network or a route of this "
        "node; remove unused networks (cluster network prune) or give --subnet"
    )


def checked_subnet(given: Subnet, networks: Iterable[AnyNetwork], connected: Iterable[AnyNetwork]) -> Subnet:
    """A user's subnet with its gateway filled in (first usable address of the range's subnet).

    ``networks`` are the pools of other networks, ``connected`` the subnets of the node's own links. Raises
    InvalidArgument for what can never be, Forbidden (Docker's 403) for an overlap.
    """
    try:
        subnet = ipaddress.ip_network(given.subnet)
    except ValueError as error:
        raise InvalidArgument(f"invalid subnet {given.subnet}: {error}; give it as <network address>/<length>") from None
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise InvalidArgument(f"invalid subnet {given.subnet}: too small for a gateway and one container")
    for others, words in ((networks, "another network"), (connected, "a network this node is connected to")):
        clash = overlapping(subnet, others)
        if clash is not None:
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space: "
                f"{subnet} overlaps {clash} of {words}; choose another --subnet"
            )
    if given.ip_range:
        _inside(given.ip_range, subnet)
    if not given.gateway:
        return Subnet(str(subnet), str(subnet[1]), given.ip_range, given.auxiliary)
    for label, text in {"gateway": given.gateway, **given.auxiliary}.items():
        if _address(text, label) not in subnet:
            raise InvalidArgument(f"invalid {label} {text}: it is not in subnet {subnet}")
    return Subnet(str(subnet), given.gateway, given.ip_range, given.auxiliary)


def _inside(text: str, subnet: AnyNetwork) -> AnyNetwork:
    try:
        inner = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument(f"invalid ip-range {text}: {error}") from None
    if inner.version != subnet.version or not inner.subnet_of(subnet):  # type: ignore[arg-type]
        raise InvalidArgument(f"invalid ip-range {text}: it is not in subnet {subnet}")
    return inner


def _address(text: str, label: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"invalid {label} {text}: {error}") from None


class Pool:
    """The addresses of one subnet of one network and who holds each.

    Addresses are given in turn, not lowest first: a freed one is the last to be given again, so flows and neighbour
    entries of its last owner have died.
    """

    def __init__(self, network: str, given: Subnet) -> None:
        self.network = network
        self.subnet = ipaddress.ip_network(given.subnet)
        self.gateway = ipaddress.ip_address(given.gateway)
        self._range = _inside(given.ip_range, self.subnet) if given.ip_range else self.subnet
        self._leases: dict[int, str] = {}
        edges = [self.subnet.network_address]
        if self.subnet.version == 4:
            edges.append(self.subnet.broadcast_address)
        auxiliary = [ipaddress.ip_address(text) for text in given.auxiliary.values()]
        self._reserved = {int(one) for one in (*edges, self.gateway, *auxiliary)}
        self._cursor = int(self._range.network_address)

    def lease(self, owner: str, wanted: str | None = None) -> Address:
        """An address for ``owner``. Raises Forbidden for a ``wanted`` one in use, Unavailable when none is left."""
        if wanted:
            return self._lease_one(owner, _address(wanted, "address"))
        low, high = int(self._range.network_address), int(self._range.broadcast_address)
        for number in self._walk(low, high):
            if number not in self._leases and number not in self._reserved:
                self._cursor = number + 1
                self._leases[number] = owner
                return type(self.gateway)(number)
        raise Unavailable(
            f"no available IPv{self.subnet.version} addresses on this network's address pools: network {self.network}, "
            f"{self._range} has {len(self._leases)} leases; remove containers or use a larger subnet"
        )

    def _walk(self, low: int, high: int) -> Iterator[int]:
        start = self._cursor if low <= self._cursor <= high else low
        yield from range(start, high + 1)
        yield from range(low, start)

    def _lease_one(self, owner: str, address: Address) -> Address:
        if address not in self.subnet:
            raise InvalidArgument(f"invalid address {address}: it does not belong to network {self.network} ({self.subnet})")
        number = int(address)
        holder = "the network itself" if number in self._reserved else self._leases.get(number)
        if holder is not None and holder != owner:
            raise Forbidden(f"Address already in use: {address} of network {self.network} is held by {holder}")
        self._leases[number] = owner
        return address

    def restore(self, owner: str, address: str) -> None:
        """Puts a lease of an earlier life back; the next new address is looked for behind it."""
        number = int(ipaddress.ip_address(address))
        self._leases[number] = owner
        if number in range(int(self._range.network_address), int(self._range.broadcast_address)):
            self._cursor = max(self._cursor, number + 1)

    def release(self, owner: str) -> None:
        """Frees what ``owner`` holds; nothing if it holds nothing."""
        for number in [number for number, holder in self._leases.items() if holder == owner]:
            del self._leases[number]

    def leases(self) -> dict[str, str]:
        """Address to owner."""
        return {str(type(self.gateway)(number)): owner for number, owner in sorted(self._leases.items())}
