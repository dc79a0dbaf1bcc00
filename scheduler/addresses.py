"""Arithmetic of subnets and addresses: the next free one of each. Pure; it knows no store object and no network driver."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_subnet(text: str) -> IPNetwork:
    """The network ``text`` names, host bits ignored; ValueError else."""
    return ipaddress.ip_network(text, strict=False)


def overlaps(one: IPNetwork, others: Iterable[IPNetwork]) -> IPNetwork | None:
    """The first of ``others`` that shares an address with ``one``."""
    return next((other for other in others if one.version == other.version and one.overlaps(other)), None)


def free_subnet(pools: Sequence[str], size: int, taken: Collection[IPNetwork]) -> IPNetwork | None:
    """The first subnet of prefix length ``size`` in ``pools`` that overlaps nothing taken; None when there is none."""
    for text in pools:
        pool = parse_subnet(text)
        length = max(size, pool.prefixlen)
        step = 1 << (pool.max_prefixlen - length)
        first, last = int(pool.network_address), int(pool.broadcast_address)
        while first <= last:
            candidate = ipaddress.ip_network((first, length))
            clash = overlaps(candidate, taken)
            if clash is None:
                return candidate
            beyond = max(int(clash.broadcast_address) + 1, first + step)
            first = (beyond + step - 1) // step * step
    return None


def first_host(subnet: IPNetwork) -> str:
    """The gateway a subnet gets when none is asked for: its first usable address."""
    return str(subnet.network_address + (1 if subnet.num_addresses > 2 else 0))


def hosts_after(subnet: IPNetwork, gateway: str, part: IPNetwork | None = None) -> Iterator[str]:
    """Usable addresses in CIDR form, from the one behind the gateway to the last, then those before the gateway.

    ``part``: only those in this part of the subnet.
    """
    low = int(subnet.network_address) + (1 if subnet.num_addresses > 2 else 0)
    high = int(subnet.broadcast_address) - (1 if subnet.num_addresses > 2 and subnet.version == 4 else 0)
    middle = int(ipaddress.ip_address(gateway)) if gateway else low - 1
    if part is not None:
        low, high = max(low, int(part.network_address)), min(high, int(part.broadcast_address))
    make = ipaddress.IPv4Address if subnet.version == 4 else ipaddress.IPv6Address
    for number in range(max(middle + 1, low), high + 1):
        yield f"{make(number)}/{subnet.prefixlen}"
    for number in range(low, min(middle, high + 1)):
        yield f"{make(number)}/{subnet.prefixlen}"


def unique_local_prefix(seed: str) -> ipaddress.IPv6Network:
    """A /48 of unique local addresses (RFC 4193, 3.2): its 40 bits look random, and are always the same for ``seed``."""
    random = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:5])
    return ipaddress.IPv6Network(((0xFD << 120) | (random << 80), 48))
