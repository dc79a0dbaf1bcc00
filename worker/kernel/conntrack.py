"""Tracked UDP flows over ctnetlink: lists them and forgets single ones, in the caller's network namespace.

A UDP flow keeps the mapping it got with its first packet for as long as packets come. When the rules change, flows that
contradict them must be forgotten so that their next packet is looked at anew. Which those are is the caller's decision.
Layout: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from worker.kernel.netlink import Netlink
from worker.kernel.netlink_codec import Address, Message, attributes, nested

_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_ACK, _DUMP = 4, 0x300
_ORIGINAL, _REPLY = 1, 2
_UDP = 17


@dataclass(frozen=True)
class Flow:
    """Where the first packet was sent (``destination``, ``port``) and who answers (``server``); ``key`` deletes it."""

    destination: Address
    port: int
    server: Address
    key: bytes


def parse_flow(body: bytes) -> Flow | None:
    """A UDP flow of a dump's message, None for anything else."""
    found = dict(attributes(body[4:]))
    original = dict(attributes(found.get(_ORIGINAL, b"")))
    reply = dict(attributes(found.get(_REPLY, b"")))
    transport = dict(attributes(original.get(2, b"")))
    if transport.get(1) != bytes([_UDP]) or 3 not in transport:
        return None
    ends, answering = dict(attributes(original.get(1, b""))), dict(attributes(reply.get(1, b"")))
    destination, server = ends.get(2) or ends.get(4), answering.get(1) or answering.get(3)
    if destination is None or server is None:
        return None
    return Flow(
        ipaddress.ip_address(destination),
        int.from_bytes(transport[3]),
        ipaddress.ip_address(server),
        struct.pack("=BBH", body[0], 0, 0) + nested(_ORIGINAL, found[_ORIGINAL]),
    )


def forget_flows(stale: Callable[[Flow], bool]) -> int:
    """Forgets every UDP flow for which ``stale`` is true; how many there were. Raises OSError.

    The kernel walks its whole table for it, also an empty one: some 10 ms.
    """
    count = 0
    with Netlink(_NETFILTER) as netlink:
        request = Message("list tracked flows", _GET, _DUMP, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        for flow in filter(None, map(parse_flow, netlink.dump(request))):
            if not stale(flow):
                continue
            try:
                netlink.run(Message("forget a tracked flow", _DELETE, _ACK, flow.key))
                count += 1
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
    return count
