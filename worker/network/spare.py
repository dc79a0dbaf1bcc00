"""A veth pair made ahead: in a sandbox's namespace on one end, on the default bridge on the other, without an address.

A container with one endpoint takes it over for the price of an address (and of another bridge, when its network has one).
What is taken by whom is Plumbing's to say.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from worker.kernel.netlink import Netlink
from worker.kernel.netlink import inside as netlink_inside
from worker.kernel.netlink_codec import Message, add_address, change_link, change_port, create_veth, delete_link
from worker.network.endpoint import Attachment, Endpoint
from worker.network.plug import LOOPBACK, Port, addresses, default_routes, namespace_path

INTERFACE = "eth0"


@dataclass(frozen=True)
class Spare:
    """``inside`` speaks to the namespace in which the pair's far end is ``INTERFACE``, link number ``index``."""

    host_link: str
    inside: Netlink
    index: int
    port: Port


def prewire(netlink: Netlink, where: int | str, host_link: str, port: Port, group: int) -> Spare:
    """Makes the pair, up on both ends, and brings lo up. Raises OSError; nothing is left then."""
    master = netlink.index(port.bridge)
    fd = os.open(namespace_path(where), os.O_RDONLY | os.O_CLOEXEC)
    inside: Netlink | None = None
    try:
        inside = netlink_inside(fd)
        netlink.run(
            create_veth(
                host_link,
                INTERFACE,
                master=master,
                mtu=port.mtu,
                peer_namespace_fd=fd,
                group=group,
            ),
            change_port(host_link, hairpin=True, isolated=port.isolated),
            change_link(host_link, link_local=False),
            change_link(host_link, up=True),
        )
        index = inside.index(INTERFACE)
        assert index is not None
        inside.run(change_link(LOOPBACK, up=True), change_link(index, link_local=False), change_link(index, up=True))
        return Spare(host_link, inside, index, port)
    except BaseException:
        if inside is not None:
            inside.close()
        with contextlib.suppress(OSError):
            netlink.run(delete_link(host_link))
        raise
    finally:
        os.close(fd)


def adopt(netlink: Netlink, spare: Spare, attachment: Attachment, port: Port) -> None:
    """Makes the pair the link of the attachment's only endpoint. Raises OSError; the pair is the container's even so."""
    (one,) = attachment.endpoints
    if port != spare.port:
        master = netlink.index(port.bridge)
        if master is None:
            raise OSError(errno.ENODEV, f"bridge {port.bridge} of network {one.network_name} is gone")
        netlink.run(
            change_link(spare.host_link, mtu=port.mtu, master=master),
            change_port(spare.host_link, hairpin=True, isolated=port.isolated),
        )
    spare.inside.run(*_inside(spare, attachment, one, port))
    spare.inside.close()


def _inside(spare: Spare, attachment: Attachment, one: Endpoint, port: Port) -> list[Message]:
    mtu = port.mtu if port.mtu != spare.port.mtu else None
    return [
        change_link(spare.index, mac=one.mac, mtu=mtu),
        *(add_address(spare.index, address) for address in addresses(one)),
        *default_routes(attachment, {one.interface: spare.index}),
    ]
