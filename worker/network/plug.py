"""Plugs a container's namespace into a bridge: one veth pair, made with its far end already inside, then addressed.

Executor only: what goes where is in the Endpoint. `unplug` removes the host's end, and with it the container's.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.kernel.netlink import Netlink, in_namespace, inside
from worker.kernel.netlink_codec import (
    Message,
    add_address,
    add_route,
    change_link,
    change_port,
    create_veth,
    delete_link,
    link_local,
)
from worker.network.endpoint import Attachment, Endpoint

LOOPBACK = 1
_READY_SECONDS = 0.1
_EVERYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


@dataclass(frozen=True)
class Port:
    """How a container's port of a bridge is made; isolated ports do not see each other."""

    bridge: str
    mtu: int
    isolated: bool


def namespace_path(where: int | str) -> str:
    """The namespace file of a process, or the path as it is."""
    return f"/proc/{where}/ns/net" if isinstance(where, int) else where


def plug(
    netlink: Netlink,
    where: int | str,
    attachment: Attachment,
    bridges: Mapping[str, Port],
    group: int,
    only: Sequence[Endpoint] | None = None,
) -> None:
    """Makes the links of all endpoints (or ``only`` some) and brings lo up.

    ``bridges`` says for each network id how its ports are made; ``group`` marks them as ours. Raises OSError; what was
    made is removed again.
    """
    endpoints = [one for one in (attachment.endpoints if only is None else only) if one.driver == "bridge"]
    if any(one.driver == "host" for one in attachment.endpoints):
        return
    fd = os.open(namespace_path(where), os.O_RDONLY | os.O_CLOEXEC)
    try:
        for one in endpoints:
            _create(netlink, fd, one, bridges[one.network_id], group)
        with inside(fd) as within:
            _configure(within, attachment, endpoints)
        _wait_operational(netlink, [one.host_link for one in endpoints])
    except BaseException:
        for one in endpoints:
            unplug(netlink, one)
        raise
    finally:
        os.close(fd)


def _create(netlink: Netlink, fd: int, one: Endpoint, port: Port, group: int) -> None:
    master = netlink.index(port.bridge)
    if master is None:
        raise OSError(errno.ENODEV, f"bridge {port.bridge} of network {one.network_name} is gone")
    request = create_veth(
        one.host_link,
        one.interface,
        master=master,
        mtu=port.mtu,
        peer_mac=one.mac,
        peer_namespace_fd=fd,
        group=group,
    )
    # With br_netfilter a published port is translated while still on the bridge; the way back to the container that
    # asked is then the port it came from.
    netlink.run(
        request,
        change_port(one.host_link, hairpin=True, isolated=port.isolated),
        change_link(one.host_link, link_local=False),
        change_link(one.host_link, up=True),
    )


def _wait_operational(netlink: Netlink, names: Sequence[str]) -> None:
    """The kernel puts a new port to work a moment after it is up; what a container sends before is lost, and asking for
    a neighbour again takes it a second. Not waiting for ever: it is then merely slow."""
    deadline = time.monotonic() + _READY_SECONDS
    for name in names:
        while netlink.operational(name) is False and time.monotonic() < deadline:
            time.sleep(0.0005)


def _configure(within: Netlink, attachment: Attachment, endpoints: Sequence[Endpoint]) -> None:
    """``within``: speaks to the container's namespace."""
    found = {one.interface: within.index(one.interface) for one in attachment.endpoints if one.interface}
    indexes = {name: index for name, index in found.items() if index is not None}
    messages: list[Message] = [change_link(LOOPBACK, up=True)]
    for one in endpoints:
        index = indexes[one.interface]
        messages += [change_link(index, link_local=False), change_link(index, up=True)]
        messages += [add_address(index, address) for address in addresses(one)]
    messages += default_routes(attachment, indexes)
    within.run(*messages)


def default_routes(attachment: Attachment, indexes: dict[str, int]) -> list[Message]:
    """The routes out, through the endpoint that is the container's gateway; they replace older ones."""
    messages = []
    for version, gateway in ((4, "gateway4"), (6, "gateway6")):
        chosen = attachment.gateway_endpoint(version)
        if chosen is not None and chosen.interface in indexes:
            via = ipaddress.ip_address(getattr(chosen, gateway))
            messages.append(add_route(indexes[chosen.interface], _EVERYWHERE[version], via))
    return messages


def addresses(one: Endpoint) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """What the interface gets: with IPv6 also the link-local address, which the kernel would spend a second to check."""
    given = ((one.ipv4, one.ipv4_prefix), (one.ipv6, one.ipv6_prefix))
    found = [ipaddress.ip_interface(f"{address}/{length}") for address, length in given if address]
    return [*found, link_local(one.mac)] if one.ipv6 else found


def reroute(where: int | str, attachment: Attachment) -> None:
    """Sets the default routes right after an endpoint left a running container."""

    def change() -> None:
        with Netlink() as netlink:
            messages = default_routes(attachment, {link.name: link.index for link in netlink.links()})
            if messages:
                netlink.run(*messages)

    in_namespace(namespace_path(where), change)


def unplug(netlink: Netlink, one: Endpoint) -> None:
    """Removes the pair; nothing if it went with its namespace already."""
    if not one.host_link:
        return
    try:
        netlink.run(delete_link(one.host_link))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
