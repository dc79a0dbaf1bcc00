"""Published ports and bridges as one nftables table: what should be in it, as text.

Pure: values in, nft commands out. `render` replaces the whole table in one transaction (packets never see it missing, and
tracked flows keep their mapping, which lives in conntrack); `changes` is the difference of two states. What is bound
where is port_ledger's, who answers is balance's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from worker.network.endpoint import Address

Backend = tuple[Address, int]
AnyNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class BridgeRules:
    """What the table must know of a bridge; ``masquerade`` is NAT out of the node for its subnets."""

    name: str
    subnets: tuple[AnyNetwork, ...]
    internal: bool = False
    masquerade: bool = True


@dataclass(frozen=True)
class Published:
    """A host port and the container addresses behind it, balanced when there are several."""

    protocol: str
    host_ip: Address
    host_port: int
    backends: tuple[Backend, ...]


@dataclass
class Flat:
    """A table's changing parts: set or map name → elements, port chain name → its one rule."""

    elements: dict[str, set[str]] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)


SETS = {
    "bridges": "type ifname",
    "internal": "type ifname",
    "within": "type ifname . ifname",
    "subnets4": "type ifname . ipv4_addr; flags interval",
    "subnets6": "type ifname . ipv6_addr; flags interval",
    "outward4": "type ipv4_addr; flags interval",
    "outward6": "type ipv6_addr; flags interval",
}
MAPS = {
    "host_ports4": "type inet_proto . inet_service : verdict",
    "host_ports6": "type inet_proto . inet_service : verdict",
    "address_ports4": "type inet_proto . ipv4_addr . inet_service : verdict",
    "address_ports6": "type inet_proto . ipv6_addr . inet_service : verdict",
}

# A packet to 127/8 comes from lo or is forged: with route_localnet on the bridges (needed so that answers find their way
# back to a client on 127.0.0.1) the kernel would take it. This guard runs before connection tracking, where such an
# answer still carries the bridge's address. [::1] needs none: Linux refuses it from any other link.
GUARDS = """\
chain loopback_guard {
  type filter hook prerouting priority raw; policy accept;
  iifname != "lo" ip daddr 127.0.0.0/8 drop
}
chain published {
  meta nfproto ipv4 meta l4proto . ip daddr . th dport vmap @address_ports4
  meta nfproto ipv4 meta l4proto . th dport vmap @host_ports4
  ip6 daddr ::1 return
  meta nfproto ipv6 meta l4proto . ip6 daddr . th dport vmap @address_ports6
  meta nfproto ipv6 meta l4proto . th dport vmap @host_ports6
}
chain prerouting {
  type nat hook prerouting priority dstnat; policy accept;
  fib daddr type local jump published
}
chain output {
  type nat hook output priority -100; policy accept;
  fib daddr type local jump published
}
chain postrouting {
  type nat hook postrouting priority srcnat; policy accept;
  ct status dnat ip saddr 127.0.0.0/8 masquerade
  ct status dnat oifname . ip saddr @subnets4 masquerade
  ct status dnat oifname . ip6 saddr @subnets6 masquerade
  ip saddr @outward4 oifname . ip saddr != @subnets4 masquerade
  ip6 saddr @outward6 oifname . ip6 saddr != @subnets6 masquerade
}
chain forward_guard {
  type filter hook forward priority filter; policy accept;
  iifname . oifname @within accept
  iifname @internal drop
  ct state established,related accept
  oifname @bridges ct status dnat accept
  oifname @bridges drop
}
"""


def flatten(bridges: Iterable[BridgeRules], published: Iterable[Published]) -> Flat:
    """The changing parts of the table for these bridges and ports."""
    flat = Flat({name: set() for name in (*SETS, *MAPS)})
    for bridge in bridges:
        _flatten_bridge(flat.elements, bridge)
    for one in published:
        _flatten_port(flat, one)
    return flat


def _flatten_bridge(elements: dict[str, set[str]], bridge: BridgeRules) -> None:
    name = f'"{bridge.name}"'
    elements["bridges"].add(name)
    elements["within"].add(f"{name} . {name}")
    if bridge.internal:
        elements["internal"].add(name)
    for subnet in bridge.subnets:
        elements[f"subnets{subnet.version}"].add(f"{name} . {subnet}")
        if bridge.masquerade and not bridge.internal:
            elements[f"outward{subnet.version}"].add(str(subnet))


def _flatten_port(flat: Flat, one: Published) -> None:
    """A port without a backend of its family has no element: the node then answers as if nothing listened."""
    version = one.host_ip.version
    backends = sorted({backend for backend in one.backends if backend[0].version == version}, key=_order)
    if not backends:
        return
    place = "any" if one.host_ip.is_unspecified else format(int(one.host_ip), "x")
    chain = f"port{version}_{one.protocol}_{place}_{one.host_port}"
    flat.chains[chain] = f"meta l4proto {one.protocol} {_destination(version, backends)}"
    if one.host_ip.is_unspecified:
        flat.elements[f"host_ports{version}"].add(f"{one.protocol} . {one.host_port} : goto {chain}")
    else:
        key = f"{one.protocol} . {one.host_ip} . {one.host_port}"
        flat.elements[f"address_ports{version}"].add(f"{key} : goto {chain}")


def _order(backend: Backend) -> tuple[int, int]:
    return int(backend[0]), backend[1]


def _destination(version: int, backends: list[Backend]) -> str:
    """One backend is named, several are taken in turn: ``numgen inc`` counts new flows, tracked ones keep theirs."""
    family = "ip" if version == 4 else "ip6"
    if len(backends) == 1:
        address, port = backends[0]
        return f"dnat {family} to {address if version == 4 else f'[{address}]'}:{port}"
    entries = ", ".join(f"{number} : {address} . {port}" for number, (address, port) in enumerate(backends))
    return f"dnat {family} to numgen inc mod {len(backends)} map {{ {entries} }}"


def render(table: str, flat: Flat) -> str:
    """Commands that replace the whole table at once, whatever was there."""
    lines = [f"add table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    for kind, declarations in (("set", SETS), ("map", MAPS)):
        lines += [f"{kind} {name} {{ {declaration}; }}" for name, declaration in declarations.items()]
    lines += [f"chain {name} {{\n{rule}\n}}" for name, rule in sorted(flat.chains.items())]
    lines += [GUARDS, "}"]
    lines += _element_commands(table, "add", flat.elements)
    return "\n".join(lines) + "\n"


def changes(table: str, old: Flat, new: Flat) -> str:
    """Commands from ``old`` to ``new`` in an order nft takes; "" when they are the same."""
    removed = {name: held - new.elements[name] for name, held in old.elements.items()}
    added = {name: held - old.elements[name] for name, held in new.elements.items()}
    lines = _element_commands(table, "delete", removed)
    for name in sorted(old.chains.keys() - new.chains.keys()):
        lines += [f"flush chain inet {table} {name}", f"delete chain inet {table} {name}"]
    for name, rule in sorted(new.chains.items()):
        if name not in old.chains:
            lines += [f"add chain inet {table} {name}", f"add rule inet {table} {name} {rule}"]
        elif old.chains[name] != rule:
            lines += [f"flush chain inet {table} {name}", f"add rule inet {table} {name} {rule}"]
    lines += _element_commands(table, "add", added)
    return "\n".join(lines) + "\n" if lines else ""


def _element_commands(table: str, verb: str, elements: dict[str, set[str]]) -> list[str]:
    return [f"{verb} element inet {table} {name} {{ {', '.join(sorted(held))} }}" for name, held in elements.items() if held]


def delete(table: str) -> str:
    """Commands that remove the table, also when it is not there."""
    return f"add table inet {table}\ndelete table inet {table}\n"
