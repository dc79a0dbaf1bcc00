"""Which of the node's addresses others should use. Asks the kernel; opens no connection.

Docker's rule: an explicit address or interface is taken; else the only address of the machine that is not loopback; if
there are several on different interfaces, the user has to say.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from covey.errors import InvalidArgument
from worker.identity import CLUSTER_PORT, with_port


def _source(host: str, port: int) -> str:
    """The address this machine would use towards ``host``: a connected datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


async def toward(manager: str) -> str:
    """The node's address as ``manager`` (host:port) sees it, "" if there is no way there."""
    host, _, port = manager.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        return _source(str(found[0][4][0]), int(port))
    except OSError:
        return ""


def _interfaces() -> dict[str, list[str]]:
    """Global IPv4 addresses by interface; bridges and veths of containers are left out."""
    from worker.kernel.netlink import Netlink

    found: dict[str, list[str]] = {}
    with Netlink() as netlink:
        names = {link.index: link.name for link in netlink.links()}
        for address in netlink.addresses():
            name = names.get(address.index, "")
            parsed = address.address.ip
            ours = name.startswith(("covey", "cv", "docker", "br-", "veth"))
            if parsed.version == 4 and not parsed.is_loopback and not parsed.is_link_local and not ours:
                found.setdefault(name, []).append(str(parsed))
    return found


async def advertise(given: str, listen: str) -> str:
    """host:port to advertise. Raises InvalidArgument in Docker's words when it cannot be known."""
    port = listen.rpartition(":")[2] or str(CLUSTER_PORT)
    if given:
        name = given.partition(":")[0]
        if name in {known for _, known in socket.if_nameindex()}:
            of_interface = (await asyncio.to_thread(_interfaces)).get(name, [])
            if not of_interface:
                raise InvalidArgument(f"interface {name} has no IPv4 address to advertise")
            return f"{of_interface[0]}:{given.partition(':')[2] or port}"
        given = with_port(given) if _has_port(given) else with_port(given).rpartition(":")[0] + f":{port}"
        host = given.rpartition(":")[0].strip("[]")
        try:
            if ipaddress.ip_address(host).is_unspecified:
                raise InvalidArgument(f"advertise address must be a non-zero IP address or network interface, not {host}")
        except ValueError:
            raise InvalidArgument(f"invalid advertise address {host!r}: give an IP address or a network interface") from None
        return given
    host = listen.rpartition(":")[0].strip("[]")
    if host not in ("", "0.0.0.0", "::"):
        return listen
    found = await asyncio.to_thread(_interfaces)
    if not found:
        return f"127.0.0.1:{port}"
    if len(found) > 1:
        listed = ", ".join(f"{addresses[0]} on {name}" for name, addresses in sorted(found.items()))
        raise InvalidArgument(
            f"could not choose an IP address to advertise since this system has multiple addresses on different interfaces "
            f"({listed}) - specify one with --advertise-addr"
        )
    return f"{next(iter(found.values()))[0]}:{port}"


def _has_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(colon) and port.isdigit() and (":" not in host or host.endswith("]"))
