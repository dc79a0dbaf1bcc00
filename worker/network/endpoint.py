"""The words of this room: what is asked for a container (EndpointRequest, PortBinding) and what it got (Endpoint,
BoundPort, Attachment), with their JSON form on disk and their shape in Docker's inspect.

Pure values; who hands out addresses and ports is in ipam and port_ledger.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(8192)
def parse_address(text: str) -> Address:
    """ip_address of a record's text; the same few texts are read at every change."""
    return ipaddress.ip_address(text)


@dataclass(frozen=True)
class EndpointRequest:
    """A wish to be on ``network`` (name, id or unambiguous id prefix).

    ``service`` makes the container answer to the service's name and to ``tasks.<service>``; ``links`` are Docker's
    ``container:alias``, known to this container only.
    """

    network: str
    ipv4: str | None = None
    ipv6: str | None = None
    aliases: Sequence[str] = ()
    mac: str | None = None
    links: Sequence[str] = ()
    service: str | None = None
    gw_priority: int = 0


@dataclass(frozen=True)
class PortBinding:
    """A wish to publish; ``host_port`` 0 takes a free one, ``host_ip`` "" is every local address, IPv4 and IPv6.

    Containers that name the same ``group`` share a host port, which is then balanced over them.
    """

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: int = 0
    group: str | None = None
    host_port_end: int = 0


@dataclass(frozen=True)
class BoundPort:
    """A host port held for a container; ``host_ip`` is always an address ("0.0.0.0", "::" for every one)."""

    container_port: int
    protocol: str
    host_ip: str
    host_port: int
    group: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """One attachment of a container to a network, with everything needed to make its link again.

    ``host_link`` is the veth end on the node, ``interface`` the one in the container; ``resolver`` the bridge address at
    which names of the network are answered ("" on the default bridge).
    """

    id: str
    network_id: str
    network_name: str
    driver: str
    interface: str = ""
    host_link: str = ""
    mac: str = ""
    ipv4: str = ""
    ipv4_prefix: int = 0
    gateway4: str = ""
    ipv6: str = ""
    ipv6_prefix: int = 0
    gateway6: str = ""
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    service: str | None = None
    gw_priority: int = 0
    requested_ipv4: str = ""
    requested_ipv6: str = ""
    internal: bool = False
    resolver: str = ""

    def inspect(self, container_id: str = "", container_name: str = "") -> dict[str, Any]:
        """Docker's EndpointSettings (engine-api-v1.52)."""
        config = {"IPv4Address": self.requested_ipv4, "IPv6Address": self.requested_ipv6}
        wanted = {key: value for key, value in config.items() if value}
        user_defined = self.driver == "bridge" and self.network_name != "bridge"
        return {
            "IPAMConfig": wanted or None,
            "Links": list(self.links) or None,
            "Aliases": list(self.aliases) or None,
            "MacAddress": self.mac,
            "DriverOpts": None,
            "GwPriority": self.gw_priority,
            "NetworkID": self.network_id,
            "EndpointID": self.id,
            "Gateway": self.gateway4,
            "IPAddress": self.ipv4,
            "IPPrefixLen": self.ipv4_prefix,
            "IPv6Gateway": self.gateway6,
            "GlobalIPv6Address": self.ipv6,
            "GlobalIPv6PrefixLen": self.ipv6_prefix,
            "DNSNames": self.dns_names(container_id, container_name) if user_defined else None,
        }

    def dns_names(self, container_id: str, container_name: str) -> list[str]:
        """Names that answer for this endpoint on its network, without the service's."""
        names = [container_name, *self.aliases, container_id[:12]]
        return list(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class Attachment:
    """Everything the network holds for one container; the unit on disk, and so the journal of leases.

    ``serving`` false keeps links and addresses but takes the container out of the sets its published ports choose from.
    ``plugged`` is the pid or path of the namespace once links were made. ``boot`` is the boot id under which the links
    live: after a reboot the record means nothing.
    """

    container_id: str
    name: str
    boot: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[BoundPort, ...] = ()
    dns: tuple[str, ...] = ()
    serving: bool = True
    plugged: str = ""
    version: int = 1

    def networks(self) -> dict[str, dict[str, Any]]:
        """``NetworkSettings.Networks`` of a container."""
        return {one.network_name: one.inspect(self.container_id, self.name) for one in self.endpoints}

    def port_map(self) -> dict[str, list[dict[str, str]]]:
        """``NetworkSettings.Ports``: "80/tcp" to the host addresses it answers on."""
        ports: dict[str, list[dict[str, str]]] = {}
        for one in self.ports:
            entry = {"HostIp": one.host_ip, "HostPort": str(one.host_port)}
            ports.setdefault(f"{one.container_port}/{one.protocol}", []).append(entry)
        return ports

    def gateway_endpoint(self, version: int) -> Endpoint | None:
        """The endpoint whose gateway is the container's default route: highest priority, then network name."""
        able = [one for one in self.endpoints if not one.internal and (one.gateway4 if version == 4 else one.gateway6)]
        return min(able, key=lambda one: (-one.gw_priority, one.network_name), default=None)

    def with_endpoints(self, endpoints: Sequence[Endpoint]) -> Attachment:
        return replace(self, endpoints=tuple(endpoints))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        endpoints = tuple(
            Endpoint(**{**one, "aliases": tuple(one["aliases"]), "links": tuple(one["links"])}) for one in record["endpoints"]
        )
        ports = tuple(BoundPort(**one) for one in record["ports"])
        return cls(**{**record, "endpoints": endpoints, "ports": ports, "dns": tuple(record["dns"])})


@dataclass(frozen=True)
class Subnet:
    """One pool of a network as the user gave it or as it was chosen."""

    subnet: str
    gateway: str
    ip_range: str = ""
    auxiliary: dict[str, str] = field(default_factory=dict)
