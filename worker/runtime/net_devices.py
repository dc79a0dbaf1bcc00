"""Moves network devices of the runtime's namespace into a container's (OCI config-linux.md, "Network Devices").

For a process that does nothing else: it enters the container's network namespace. A device keeps its lasting addresses,
which the kernel drops on the way, and comes up. Where one cannot be moved those moved before it come back.
"""

from __future__ import annotations

import os
from typing import Any

from worker.kernel.netlink import Netlink
from worker.kernel.netlink_codec import Link, add_address, change_link, is_lasting_address, list_addresses, parse_address
from worker.runtime import namespaces
from worker.runtime.errors import RuntimeFault

Addresses = list[Any]
Moved = tuple[Link, Addresses, int]
"""(the device as it was, its lasting addresses, its index inside)."""


def move(devices: dict[str, Any], pid: int) -> None:
    """Move ``devices`` (linux.netDevices) to the network namespace of ``pid``. Raises RuntimeFault."""
    own = namespaces.open_namespace("/proc/self/ns/net", "network")
    theirs = namespaces.open_namespace(f"/proc/{pid}/ns/net", "network")
    if os.fstat(own).st_ino == os.fstat(theirs).st_ino:
        raise RuntimeFault("invalid", "linux.netDevices: the container has the runtime's own network namespace")
    here = Netlink()
    namespaces.join(f"/proc/{pid}/ns/net", "network")
    there = Netlink()
    moved: list[Moved] = []
    try:
        for name, entry in devices.items():
            moved.append(_move(here, there, theirs, name, (entry or {}).get("name") or name))
    except (OSError, RuntimeFault) as error:
        for one in reversed(moved):
            _bring_back(here, there, own, one)
        if isinstance(error, RuntimeFault):
            raise
        raise RuntimeFault("kernel", f"linux.netDevices.{name}: {error.strerror}") from None


def _move(here: Netlink, there: Netlink, theirs: int, name: str, inside: str) -> Moved:
    link = here.link(name)
    if link is None:
        raise RuntimeFault("invalid", f"linux.netDevices.{name}: the machine has no such device")
    before = there.links()
    if any(other.name == inside for other in before):
        raise RuntimeFault("invalid", f"linux.netDevices.{name}: the container has a device {inside} already")
    addresses = [
        parse_address(body).address
        for body in here.dump(list_addresses())
        if is_lasting_address(body) and parse_address(body).index == link.index
    ]
    here.run(change_link(link.index, name=inside, namespace_fd=theirs))
    known = {other.index for other in before}
    (index,) = (other.index for other in there.links() if other.index not in known)
    for address in addresses:
        there.run(add_address(index, address))
    there.run(change_link(index, up=True))
    return link, addresses, index


def _bring_back(here: Netlink, there: Netlink, own: int, moved: Moved) -> None:
    link, addresses, index = moved
    there.run(change_link(index, name=link.name, namespace_fd=own))
    back = here.link(link.name)
    if back is not None:
        for address in addresses:
            here.run(add_address(back.index, address))
        here.run(change_link(back.index, up=link.up))
