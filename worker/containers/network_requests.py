"""What a container asks of the network, from NetworkMode, EndpointsConfig and PortBindings. Pure.

It parses and refuses in Docker's words; who hands out addresses and ports is worker.network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument
from worker.containers.record import Container
from worker.network.endpoint import EndpointRequest, PortBinding

PROTOCOLS = ("tcp", "udp", "sctp")


def default_network(mode: str) -> str:
    """The network a NetworkMode names."""
    return "bridge" if mode in ("", "default", "bridge") else mode


def joined(mode: str) -> str:
    """The container whose network is shared (``container:NAME``), or ""."""
    return mode.removeprefix("container:") if mode.startswith("container:") else ""


def check(config: Mapping[str, Any], host: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for options that exclude each other."""
    mode = str(host.get("NetworkMode") or "default")
    if mode.startswith("container:"):
        if not joined(mode):
            raise InvalidArgument('invalid container format container:<name|id>: give a container after "container:"')
        if config.get("Hostname"):
            raise InvalidArgument("conflicting options: hostname and the network mode")
        if host.get("PortBindings") or host.get("PublishAllPorts"):
            raise InvalidArgument("conflicting options: port publishing and the container type network mode")
        if host.get("Dns"):
            raise InvalidArgument("conflicting options: dns and the network mode")
        if host.get("ExtraHosts"):
            raise InvalidArgument("conflicting options: custom host-to-IP mapping and the network mode")
    if mode == "host" and host.get("Links"):
        raise InvalidArgument("conflicting options: host type networking can't be used with links")
    for entry in host.get("ExtraHosts") or []:
        name, _, address = entry.replace("=", ":", 1).partition(":")
        if not name or not address or (address != "host-gateway" and not _is_address(address.strip("[]"))):
            raise InvalidArgument(f'bad format for add-host: "{entry}"')
    for address in host.get("Dns") or []:
        if not _is_address(address):
            raise InvalidArgument(f"invalid DNS server address {address!r}: give an IP address")
    port_bindings(config, host, "")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def endpoints(host: Mapping[str, Any], given: Mapping[str, Any] | None, mac: str = "") -> dict[str, dict[str, Any]]:
    """Network name → EndpointSettings as asked for. ``mac``: the older place for it, on the container."""
    mode = str(host.get("NetworkMode") or "default")
    if joined(mode):
        return {}
    main = default_network(mode)
    wanted: dict[str, dict[str, Any]] = {}
    for name, settings in (given or {}).items():
        wanted[default_network(name)] = dict(settings or {})
    if main not in wanted and (mode not in ("", "default") or not wanted):
        wanted = {main: {}, **wanted}
    if mac and not wanted[main].get("MacAddress"):
        wanted[main]["MacAddress"] = mac
    if "host" in wanted and len(wanted) > 1:
        raise InvalidArgument("container cannot be connected to host network and another network at once")
    return wanted


def request(name: str, settings: Mapping[str, Any]) -> EndpointRequest:
    """The wish that EndpointSettings (with our "Service") express for network ``name``."""
    ipam = settings.get("IPAMConfig") or {}
    return EndpointRequest(
        network=name,
        ipv4=ipam.get("IPv4Address") or None,
        ipv6=ipam.get("IPv6Address") or None,
        aliases=tuple(settings.get("Aliases") or ()),
        mac=settings.get("MacAddress") or None,
        links=tuple(settings.get("Links") or ()),
        service=settings.get("Service") or None,
        gw_priority=int(settings.get("GwPriority") or 0),
    )


def requests(container: Container) -> list[EndpointRequest]:
    """The wishes of a container's record."""
    return [request(name, settings) for name, settings in container.networks.items()]


def split_port(key: str) -> tuple[int, str]:
    """``80/tcp`` → (80, "tcp"). Raises InvalidArgument."""
    number, _, protocol = key.partition("/")
    protocol = (protocol or "tcp").lower()
    if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in PROTOCOLS:
        raise InvalidArgument(f'invalid port specification: "{key}"')
    return int(number), protocol


def _host_port(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not text:
        return 0, 0
    if not low.isdigit() or (high and not high.isdigit()) or int(low) > 65535 or int(high or 0) > 65535:
        raise InvalidArgument(f'invalid port specification: "{text}"')
    return int(low), int(high or 0)


def port_bindings(config: Mapping[str, Any], host: Mapping[str, Any], group: str) -> list[PortBinding]:
    """What is published. ``group`` lets several containers share a host port; see PortBinding."""
    wanted: dict[str, Sequence[Mapping[str, Any]]] = {}
    if host.get("PublishAllPorts"):
        wanted = {key: [{}] for key in config.get("ExposedPorts") or {}}
    for key, bindings in (host.get("PortBindings") or {}).items():
        wanted[key] = bindings or [{}]
    out = []
    for key, bindings in wanted.items():
        number, protocol = split_port(key)
        for binding in bindings:
            address = str(binding.get("HostIp") or "")
            if address and not _is_address(address.strip("[]")):
                raise InvalidArgument(f'invalid IP address: "{address}" in the binding of {key}')
            low, high = _host_port(str(binding.get("HostPort") or ""))
            out.append(PortBinding(number, protocol, address.strip("[]"), low, group or None, high))
    return out
