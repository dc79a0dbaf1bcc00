"""Sees the node's links and carries out what topology decided, on the netlink socket of the node's namespace.

It decides nothing. Every operation is safe to repeat; a link that went by itself counts as removed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

from worker.kernel import safe_paths
from worker.kernel.netlink import Netlink
from worker.kernel.netlink_codec import add_address, change_link, create_bridge, delete_address, delete_link
from worker.network.topology import Bridge, Operation, Seen

_GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO)


def observe(netlink: Netlink, group: int) -> Seen:
    """The bridges, veths and other links of the namespace; those of the link group are ours."""
    links = netlink.links()
    names = {link.index: link.name for link in links}
    addresses: dict[int, set[Any]] = {}
    for one in netlink.addresses():
        addresses.setdefault(one.index, set()).add(one.address)
    bridges = {
        link.name: Bridge(link.mac, link.mtu, frozenset(addresses.get(link.index, ())), link.up)
        for link in links
        if link.kind == "bridge"
    }
    ports = {link.name: names.get(link.master, "") for link in links if link.kind == "veth"}
    others = frozenset(link.name for link in links if link.kind not in ("bridge", "veth"))
    owned = frozenset(link.name for link in links if link.group == group)
    return Seen(bridges, ports, others, owned)


def apply(netlink: Netlink, operations: Iterable[Operation], group: int) -> None:
    """Executes the operations in order. Raises OSError with the kernel's words."""
    for operation in operations:
        if operation.verb == "bridge":
            _create(netlink, operation.link, operation.argument, group)
            continue
        VERBS[operation.verb](netlink, operation.link, operation.argument)


def _create(netlink: Netlink, name: str, argument: Any, group: int) -> None:
    """Without link-local addresses of the kernel's: it checks one for a second and resolves no neighbour meanwhile."""
    netlink.run(
        create_bridge(name, mac=argument.mac, mtu=argument.mtu, group=group),
        change_link(name, link_local=False),
        change_link(name, up=True),
    )


def localize(name: str) -> None:
    """Lets the bridge carry flows of clients on 127.0.0.1; ports.GUARDS keeps forged ones out."""
    sysctl(f"ipv4/conf/{name}/route_localnet", "1")


def sysctl(key: str, value: str) -> None:
    """Writes a net sysctl of the calling thread's namespace, only if it differs. Raises OSError."""
    if safe_paths.read_proc(f"sys/net/{key}").strip() != value:
        safe_paths.write_proc(f"sys/net/{key}", value)


def _delete(netlink: Netlink, name: str, _argument: Any) -> None:
    try:
        netlink.run(delete_link(name))
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _changing(option: str) -> Callable[[Netlink, str, Any], None]:
    def change(netlink: Netlink, name: str, argument: Any) -> None:
        netlink.run(change_link(_index(netlink, name), **{option: argument}))

    return change


def _master(netlink: Netlink, name: str, argument: Any) -> None:
    netlink.run(change_link(_index(netlink, name), master=_index(netlink, argument), up=True))


def _address(netlink: Netlink, name: str, argument: Any) -> None:
    try:
        netlink.run(add_address(_index(netlink, name), argument))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def _unaddress(netlink: Netlink, name: str, argument: Any) -> None:
    netlink.run(delete_address(_index(netlink, name), argument))


def _index(netlink: Netlink, name: str) -> int:
    link = netlink.link(name)
    if link is None:
        raise OSError(errno.ENODEV, f"link {name} is gone")
    return link.index


VERBS: dict[str, Callable[[Netlink, str, Any], None]] = {
    "delete": _delete,
    "mac": _changing("mac"),
    "mtu": _changing("mtu"),
    "up": _changing("up"),
    "master": _master,
    "address": _address,
    "unaddress": _unaddress,
}
