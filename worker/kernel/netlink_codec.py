"""A small hand-packed rtnetlink codec: requests for links, addresses, routes and neighbours, and what the kernel lists.

Pure: values in, bytes out, and back. Which links should exist is worker.network's, the socket is netlink.py's.
Layouts: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=8BI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_STATISTICS = struct.Struct("=8Q")

_REQUEST, _ACK, _DUMP, _REPLACE, _EXCL, _CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NEW_NEIGHBOUR = 28
_UP = 1
_OPERSTATE, _OPERATIONAL = 16, b"\x06"
_NESTED = 0x8000
_PERMANENT = 0x80
_NO_DAD = 0x02
_IPV6_GENERATE_NONE = 1
MAIN_TABLE, _PROTO_BOOT, _UNICAST = 254, 3, 1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253


@dataclass(frozen=True)
class Message:
    """One request: ``what`` names it in errors; a dump is answered by many messages, anything else by one ack.

    A refusal with an errno in ``tolerated`` counts as done.
    """

    what: str
    kind: int
    flags: int
    body: bytes
    tolerated: tuple[int, ...] = ()

    def pack(self, sequence: int, *, silent: bool = False) -> bytes:
        """``silent``: it is answered by nothing but a refusal."""
        flags = self.flags & ~_ACK if silent else self.flags
        return HEADER.pack(16 + len(self.body), self.kind, _REQUEST | flags, sequence, 0) + self.body


@dataclass(frozen=True)
class Link:
    """A network link as the kernel lists it; ``statistics`` are seen from this side.

    ``up`` is what was asked for; ``operational`` that it carries packets (RFC 2863's up), which comes a moment later.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int
    group: int = 0
    operational: bool = field(default=False, compare=False)
    statistics: dict[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class LinkAddress:
    index: int
    address: Interface


@dataclass(frozen=True)
class Route:
    """``destination`` has prefix length 0 for a default route."""

    destination: Network
    gateway: Address | None
    index: int
    table: int


_PERMANENT = 0x80  # linux/if_addr.h


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _mac(kind: int, value: str) -> bytes:
    return attribute(kind, bytes.fromhex(value.replace(":", "")))


def attributes(data: bytes, kinds: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
    """The (kind, value) pairs of a packed attribute list, all or those of some ``kinds``; flags of the kind are cut."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        if kinds is None or kind & 0x3FFF in kinds:
            yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _link_options(
    *,
    name: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    namespace_fd: int | None = None,
    group: int | None = None,
    link_local: bool = True,
) -> bytes:
    parts = []
    if name is not None:
        parts.append(_text(3, name))
    if mac is not None:
        parts.append(_mac(1, mac))
    if mtu is not None:
        parts.append(_u32(4, mtu))
    if master is not None:
        parts.append(_u32(10, master))
    if namespace_fd is not None:
        parts.append(_u32(28, namespace_fd))
    if group is not None:
        parts.append(_u32(27, group))
    if not link_local:
        parts.append(nested(26, nested(socket.AF_INET6, attribute(8, bytes([_IPV6_GENERATE_NONE])))))
    return b"".join(parts)


def create_bridge(name: str, *, mac: str | None = None, mtu: int | None = None, group: int = 0) -> Message:
    """A bridge, down, without spanning tree; a fixed ``mac`` keeps it from taking its ports' lowest.

    ``group`` is the link group (``ip link show group N``), a number by which an owner finds its links again.
    """
    body = _LINK.pack(0, 0, 0, 0, 0) + _link_options(name=name, mac=mac, mtu=mtu, group=group)
    return Message(f"create bridge {name}", _NEW_LINK, _CREATE | _EXCL | _ACK, body + nested(18, _text(1, "bridge")))


def create_veth(
    name: str,
    peer: str,
    *,
    master: int | None = None,
    mtu: int | None = None,
    peer_mac: str | None = None,
    peer_namespace_fd: int | None = None,
    group: int = 0,
) -> Message:
    """Both ends at once, still down: ``name`` here (a port of ``master``), ``peer`` in the descriptor's namespace."""
    options = _link_options(name=peer, mac=peer_mac, mtu=mtu, namespace_fd=peer_namespace_fd)
    peer_body = _LINK.pack(0, 0, 0, 0, 0) + options
    body = _LINK.pack(0, 0, 0, 0, 0) + _link_options(name=name, mtu=mtu, master=master, group=group)
    body += nested(18, _text(1, "veth"), nested(2, attribute(1 | _NESTED, peer_body)))
    return Message(f"create veth {name}", _NEW_LINK, _CREATE | _EXCL | _ACK, body)


def delete_link(name: str) -> Message:
    return Message(f"delete link {name}", _DELETE_LINK, _ACK, _LINK.pack(0, 0, 0, 0, 0) + _text(3, name))


def change_link(
    which: int | str,
    *,
    up: bool | None = None,
    name: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    namespace_fd: int | None = None,
    link_local: bool = True,
) -> Message:
    """Changes only what is given of a link, by index or name; ``master`` 0 takes it off its bridge.

    A rename needs the index. ``link_local`` false keeps the kernel from giving it an IPv6 link-local address when it
    goes up (nothing to do where there is no IPv6); that must be said in a message of its own before ``up``, as the
    kernel takes the flags first.
    """
    index, known = (0, which) if isinstance(which, str) else (which, None)
    flags, mask = (_UP if up else 0, 0 if up is None else _UP)
    body = _LINK.pack(0, 0, index, flags, mask) + _link_options(
        name=known or name, mac=mac, mtu=mtu, master=master, namespace_fd=namespace_fd, link_local=link_local
    )
    return Message(f"change link {which}", _NEW_LINK, _ACK, body, () if link_local else (errno.EAFNOSUPPORT,))


def change_port(name: str, *, hairpin: bool, isolated: bool) -> Message:
    """A bridge's port: with ``hairpin`` a frame may leave where it came in, isolated ports do not see each other."""
    options = nested(5, attribute(4, bytes([hairpin])), attribute(33, bytes([isolated])))
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(3, name) + nested(18, _text(4, "bridge"), options)
    return Message(f"change bridge port {name}", _NEW_LINK, _ACK, body)


def _family(address: Address | Network | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address_body(index: int, address: Interface) -> bytes:
    body = _ADDRESS.pack(_family(address), address.network.prefixlen, 0, 0, index)
    body += attribute(2, address.ip.packed) + attribute(1, address.ip.packed)
    if address.version == 4 and address.network.prefixlen < 31:
        body += attribute(4, address.network.broadcast_address.packed)
    if address.version == 6:
        body += _u32(8, _NO_DAD)
    return body


def add_address(index: int, address: Interface) -> Message:
    """IPv6 addresses skip duplicate detection: the leases already exclude duplicates and a start must not wait 1 s."""
    return Message(f"add address {address}", _NEW_ADDRESS, _CREATE | _EXCL | _ACK, _address_body(index, address))


def delete_address(index: int, address: Interface) -> Message:
    return Message(f"delete address {address}", _DELETE_ADDRESS, _ACK, _address_body(index, address))


def _route_body(index: int, destination: Network, gateway: Address | None) -> bytes:
    scope = _SCOPE_LINK if gateway is None and destination.version == 4 else _SCOPE_UNIVERSE
    fixed = (_family(destination), destination.prefixlen, 0, 0, MAIN_TABLE, _PROTO_BOOT, scope, _UNICAST)
    body = _ROUTE.pack(*fixed, 0) + _u32(4, index)
    if destination.prefixlen:
        body += attribute(1, destination.network_address.packed)
    return body if gateway is None else body + attribute(5, gateway.packed)


def add_route(index: int, destination: Network, gateway: Address | None = None) -> Message:
    body = _route_body(index, destination, gateway)
    return Message(f"add route {destination} via {gateway}", _NEW_ROUTE, _CREATE | _REPLACE | _ACK, body)


def delete_route(index: int, destination: Network, gateway: Address | None = None) -> Message:
    body = _route_body(index, destination, gateway)
    return Message(f"delete route {destination} via {gateway}", _DELETE_ROUTE, _ACK, body)


def set_neighbour(index: int, address: Address, mac: str) -> Message:
    """A permanent entry: no resolution is asked for ``address``."""
    body = _NEIGHBOUR.pack(_family(address), index, _PERMANENT, 0, 0)
    body += attribute(1, address.packed) + _mac(2, mac)
    return Message(f"set neighbour {address}", _NEW_NEIGHBOUR, _CREATE | _REPLACE | _ACK, body)


def link_local(mac: str) -> Interface:
    """The IPv6 link-local address of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    suffix = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Interface((b"\xfe\x80".ljust(8, b"\0") + suffix, 64))


def list_links() -> Message:
    return Message("list links", _GET_LINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0))


def get_link(name: str) -> Message:
    return Message(f"get link {name}", _GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _text(3, name))


def list_addresses() -> Message:
    return Message("list addresses", _GET_ADDRESS, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0))


def list_routes(family: int) -> Message:
    return Message("list routes", _GET_ROUTE, _DUMP, _ROUTE.pack(family, *[0] * 7, 0))


_OF_A_LINK = frozenset((1, 3, 4, 10, 16, 18, 23, 27))
"""The attributes that ``Link`` is made of: one in five of those the kernel tells."""


def parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = dict(attributes(body[_LINK.size :], _OF_A_LINK))
    info = dict(attributes(found.get(18, b""), (1,)))
    statistics = {}
    if len(found.get(23, b"")) >= _STATISTICS.size:
        names = ["rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped"]
        statistics = dict(zip(names, _STATISTICS.unpack_from(found[23])))
    return Link(
        index=index,
        name=found.get(3, b"").rstrip(b"\0").decode(),
        kind=info.get(1, b"").rstrip(b"\0").decode(),
        mac=found.get(1, b"").hex(":"),
        mtu=int.from_bytes(found.get(4, b"\0"), sys.byteorder),
        up=bool(flags & _UP),
        master=int.from_bytes(found.get(10, b"\0"), sys.byteorder),
        group=int.from_bytes(found.get(27, b"\0"), sys.byteorder),
        operational=found.get(_OPERSTATE, b"") == _OPERATIONAL,
        statistics=statistics,
    )


def is_operational(body: bytes) -> bool:
    """Of a link: the kernel puts it near the front of some 40 attributes."""
    return next((value for _, value in attributes(body[_LINK.size :], (_OPERSTATE,))), b"") == _OPERATIONAL


def parse_address(body: bytes) -> LinkAddress:
    _, length, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(attributes(body[_ADDRESS.size :]))
    address = ipaddress.ip_address(found.get(2) or found[1])
    return LinkAddress(index, ipaddress.ip_interface(f"{address}/{length}"))


def is_lasting_address(body: bytes) -> bool:
    """Whether an address is permanent (IFA_F_PERMANENT) and of global scope: somebody's setting, not the kernel's."""
    _, _, flags, scope, _ = _ADDRESS.unpack_from(body)
    wide = dict(attributes(body[_ADDRESS.size :])).get(8)
    if wide:
        flags = int.from_bytes(wide[:4], sys.byteorder)
    return bool(flags & _PERMANENT) and scope == 0


def parse_route(body: bytes) -> Route | None:
    """None for what is no IPv4 or IPv6 unicast route of one device."""
    family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    found = dict(attributes(body[_ROUTE.size :]))
    if kind != _UNICAST or 4 not in found:
        return None
    empty = bytes(4 if family == socket.AF_INET else 16)
    destination = ipaddress.ip_network((found.get(1, empty), length), strict=False)
    gateway = ipaddress.ip_address(found[5]) if 5 in found else None
    return Route(destination, gateway, int.from_bytes(found[4], sys.byteorder), table)
