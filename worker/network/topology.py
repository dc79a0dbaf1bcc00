"""Links a node should have against links it has: the ordered operations between them.

Pure. A running container is never interrupted: a veth that is there is kept and only its bridge is set right; what is
missing on the container's side is plug.py's. Only links that carry this node's group number are ever removed; a bridge
that someone else made is used as it is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Bridge:
    """A bridge as wanted or as seen; ``addresses`` are the gateways of its subnets."""

    mac: str
    mtu: int
    addresses: frozenset[Interface]
    up: bool = True


@dataclass(frozen=True)
class Wanted:
    """``ports`` maps a host-side veth to its bridge."""

    bridges: Mapping[str, Bridge]
    ports: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """Links by name. ``bridges`` are links of kind bridge, ``ports`` veths and their master ("" none), ``owned`` ours."""

    bridges: Mapping[str, Bridge] = field(default_factory=dict)
    ports: Mapping[str, str] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    owned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Operation:
    """One step of the executor; ``verb`` is a key of bridge.VERBS, ``argument`` what it needs beside the link."""

    verb: str
    link: str
    argument: object = None


class NameTaken(Exception):
    """A bridge's name belongs to a link of another kind."""


def operations(wanted: Wanted, seen: Seen) -> list[Operation]:
    """Stale ports, then stale bridges, go first; then bridges come, then ports join them. Nothing when they agree.

    Raises NameTaken.
    """
    steps = [Operation("delete", name) for name in sorted(seen.owned & seen.ports.keys() - wanted.ports.keys())]
    steps += [Operation("delete", name) for name in sorted(seen.owned & seen.bridges.keys() - wanted.bridges.keys())]
    for name, bridge in sorted(wanted.bridges.items()):
        if name in seen.others or name in seen.ports:
            raise NameTaken(f"link {name} exists and is no bridge; remove it or give the network another bridge name")
        steps += _bridge_steps(name, bridge, seen.bridges.get(name), name in seen.owned)
    for name, master in sorted(wanted.ports.items()):
        if name in seen.ports and seen.ports[name] != master:
            steps.append(Operation("master", name, master))
    return steps


def _bridge_steps(name: str, bridge: Bridge, seen: Bridge | None, owned: bool) -> list[Operation]:
    steps = []
    if seen is None:
        steps.append(Operation("bridge", name, bridge))
        seen = Bridge(bridge.mac, bridge.mtu, frozenset())
    if owned and seen.mac != bridge.mac:
        steps.append(Operation("mac", name, bridge.mac))
    if owned and seen.mtu != bridge.mtu:
        steps.append(Operation("mtu", name, bridge.mtu))
    if not seen.up:
        steps.append(Operation("up", name, True))
    stale = [one for one in seen.addresses - bridge.addresses if owned and not one.ip.is_link_local]
    steps += [Operation("unaddress", name, one) for one in sorted(stale, key=str)]
    steps += [Operation("address", name, one) for one in sorted(bridge.addresses - seen.addresses, key=str)]
    return steps


def missing_ports(wanted: Wanted, seen: Seen) -> list[str]:
    """Host veths that should be there and are not: their containers must be plugged again."""
    return sorted(set(wanted.ports) - set(seen.ports))
