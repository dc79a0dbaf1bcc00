"""The embedded resolver's knowledge and its answers: names of containers, aliases and services on user-defined networks.

Pure: a view made of networks and attachments, a query's bytes and the asker's address in; an answer's bytes out, or None
when the question is for the upstream servers. Sockets are resolver.py's. Message format: RFC 1035, EDNS size RFC 6891.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worker.network.endpoint import Address, Attachment, Endpoint, parse_address
from worker.network.network import Network

A, PTR, AAAA, ANY, OPT = 1, 12, 28, 255, 41
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, REFUSED = 0, 1, 2, 5
TTL = 5
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHHIH")


@dataclass(frozen=True)
class Client:
    """An asking container: the networks it sees, its own link names, its upstream servers, whether it may ask out."""

    networks: tuple[str, ...]
    links: Mapping[str, str]
    upstreams: tuple[str, ...]
    outward: bool


@dataclass(frozen=True)
class View:
    """What is known at one moment. ``zones``: network id → lower-case name → addresses; ``suffixes``: network name → id."""

    zones: Mapping[str, Mapping[str, tuple[Address, ...]]] = field(default_factory=dict)
    suffixes: Mapping[str, str] = field(default_factory=dict)
    clients: Mapping[str, Client] = field(default_factory=dict)
    pointers: Mapping[Address, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """One question; ``question`` is its wire form, ``limit`` the largest answer the asker takes over UDP."""

    id: int
    flags: int
    name: str
    type: int
    question: bytes
    limit: int


def view(networks: Iterable[Network], attachments: Iterable[Attachment]) -> View:
    """The names of every user-defined network, from what is attached and plugged now."""
    named = {network.id: network for network in networks if network.user_defined}
    zones: dict[str, dict[str, tuple[Address, ...]]] = {network_id: {} for network_id in named}
    clients: dict[str, Client] = {}
    pointers: dict[Address, tuple[str, str]] = {}
    for attachment in attachments:
        mine = [one for one in attachment.endpoints if one.network_id in named]
        if not mine:
            continue
        client = Client(
            networks=tuple(one.network_id for one in mine),
            links={alias.lower(): target.lower() for one in mine for target, alias in map(_link, one.links)},
            upstreams=attachment.dns,
            outward=any(not one.internal for one in mine),
        )
        for one in mine:
            addresses = _addresses(one)
            clients.update((str(address), client) for address in addresses)
            for address in addresses:
                pointers[address] = (one.network_id, f"{attachment.name or attachment.container_id[:12]}.{one.network_name}")
            if attachment.plugged:
                _enter(zones[one.network_id], attachment, one, addresses)
    return View(zones, {network.name.lower(): network.id for network in named.values()}, clients, pointers)


def _enter(zone: dict[str, tuple[Address, ...]], attachment: Attachment, one: Endpoint, addresses: tuple[Address, ...]) -> None:
    names = one.dns_names(attachment.container_id, attachment.name)
    if one.service and attachment.serving:
        names += [one.service, f"tasks.{one.service}"]
    for name in dict.fromkeys(name.lower() for name in names):
        zone[name] = (*zone.get(name, ()), *addresses)


def _link(text: str) -> tuple[str, str]:
    target, _, alias = text.partition(":")
    return target, alias or target


def _addresses(one: Endpoint) -> tuple[Address, ...]:
    return tuple(parse_address(text) for text in (one.ipv4, one.ipv6) if text)


def parse(data: bytes) -> Query | None:
    """The one question of a query; None for what is no plain query (answer it with `failure` FORMAT_ERROR)."""
    if len(data) < 17:
        return None
    number, flags, questions, _answers, _authorities, additional = _HEADER.unpack_from(data)
    if flags & 0x8000 or questions != 1:
        return None
    labels = []
    at = _HEADER.size
    while at < len(data) and data[at]:
        length = data[at]
        if length > 63 or at + 1 + length >= len(data):
            return None
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", errors="replace").lower())
        at += 1 + length
    end = at + 5
    if end > len(data):
        return None
    kind, _class = struct.unpack_from(">HH", data, at + 1)
    limit = 512
    if additional and len(data) >= end + 11 and data[end] == 0:
        option, size = struct.unpack_from(">HH", data, end + 1)
        limit = max(512, min(size, 4096)) if option == OPT else 512
    return Query(number, flags, ".".join(labels), kind, data[_HEADER.size : end], limit)


def answer(query: Query, known: View, client: Client, turn: int = 0) -> bytes | None:
    """The answer if the name is one of ours (also an empty one, for a type it has not), None to ask upstream.

    ``turn`` rotates the addresses, so askers that take the first spread over the replicas.
    """
    if query.type == PTR:
        address = _reverse(query.name)
        network_id, name = known.pointers.get(address, ("", "")) if address else ("", "")
        return response(query, [_encode(name)], PTR) if network_id in client.networks else None
    addresses = lookup(query.name, known, client)
    if addresses is None:
        return None
    version = {A: 4, AAAA: 6}.get(query.type)
    chosen = [address.packed for address in addresses if address.version == version]
    start = turn % len(chosen) if chosen else 0
    return response(query, chosen[start:] + chosen[:start], query.type)


def lookup(name: str, known: View, client: Client) -> tuple[Address, ...] | None:
    """Addresses of a name as this client sees it: its links, then the networks it is on, then ``name.network``."""
    name = client.links.get(name, name)
    for network_id in client.networks:
        found = known.zones.get(network_id, {}).get(name)
        if found is not None:
            return found
    for suffix, network_id in known.suffixes.items():
        if network_id in client.networks and name.endswith(f".{suffix}"):
            return known.zones[network_id].get(name.removesuffix(f".{suffix}"))
    return None


def response(query: Query, records: list[bytes], kind: int, code: int = NO_ERROR) -> bytes:
    """An authoritative answer whose records all carry the asked name."""
    flags = 0x8480 | (query.flags & 0x0100) | code
    head = _HEADER.pack(query.id, flags, 1, len(records), 0, 0)
    return head + query.question + b"".join(_RECORD.pack(0xC00C, kind, 1, TTL, len(one)) + one for one in records)


def failure(data: bytes, code: int) -> bytes:
    """An error answer to whatever was sent, with its question where it can be read; b"" if there is not even an id."""
    query = parse(data)
    if query is not None:
        return response(query, [], 0, code)
    return data[:2] + struct.pack(">5H", 0x8080 | code, 0, 0, 0, 0) if len(data) >= 2 else b""


def truncated(query: Query, message: bytes) -> bytes:
    """The message as UDP may carry it: cut to its question with TC set when it is over the asker's limit."""
    if len(message) <= query.limit:
        return message
    number, flags, *_ = _HEADER.unpack_from(message)
    return _HEADER.pack(number, flags | 0x0200, 1, 0, 0, 0) + query.question


def _encode(name: str) -> bytes:
    labels = [label.encode("ascii", errors="replace")[:63] for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _reverse(name: str) -> Address | None:
    try:
        if name.endswith(".in-addr.arpa"):
            return ipaddress.IPv4Address(".".join(reversed(name.removesuffix(".in-addr.arpa").split("."))))
        if name.endswith(".ip6.arpa"):
            digits = "".join(reversed(name.removesuffix(".ip6.arpa").split(".")))
            return ipaddress.IPv6Address(int(digits, 16)) if len(digits) == 32 else None
    except ValueError:
        return None
    return None
