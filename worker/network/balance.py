"""Which containers answer a published port on this node.

Pure: attachments in, `Published` out. A container is in the set while its links are plugged and it is serving; the port
itself stays held by its ledger also when nobody answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from worker.network.endpoint import Attachment, Endpoint, parse_address
from worker.network.ports import Backend, Published

Key = tuple[str, str, int]


def publishing_endpoint(attachment: Attachment, version: int) -> Endpoint | None:
    """The endpoint that inbound traffic goes to: the one whose gateway is the default route."""
    return attachment.gateway_endpoint(version)


def backends(attachments: Iterable[Attachment]) -> dict[Key, tuple[Backend, ...]]:
    """(protocol, host ip, host port) → container addresses of both families, the same for the same input."""
    found: dict[Key, set[Backend]] = {}
    for attachment in attachments:
        if not attachment.ports:
            continue
        able = [publishing_endpoint(attachment, version) for version in (4, 6)]
        addresses = [one.ipv4 if version == 4 else one.ipv6 for version, one in zip((4, 6), able) if one]
        for port in attachment.ports:
            key = (port.protocol, port.host_ip, port.host_port)
            held = found.setdefault(key, set())
            if attachment.serving and attachment.plugged:
                held.update((parse_address(address), port.container_port) for address in addresses)
    return {key: tuple(sorted(held, key=lambda one: (one[0].version, int(one[0]), one[1]))) for key, held in found.items()}


def published(sets: dict[Key, tuple[Backend, ...]]) -> list[Published]:
    return [
        Published(protocol, parse_address(host_ip), host_port, held)
        for (protocol, host_ip, host_port), held in sorted(sets.items())
    ]


def relayed(sets: dict[Key, tuple[Backend, ...]]) -> dict[Key, tuple[Backend, ...]]:
    """The IPv6 keys a relay in the daemon must answer: nftables cannot turn IPv6 into IPv4, nor leave [::1].

    Backends prefer IPv4; for other IPv6 addresses nftables takes the packet first where there are IPv6 backends.
    """
    return {key: held for key, held in sets.items() if ":" in key[1] and key[0] in ("tcp", "udp")}
