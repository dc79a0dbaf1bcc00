"""Which ports a service publishes: those asked for, and numbers for those that asked for any. One port, one service.

What a service has it keeps while it asks for it. Ports of host mode are the nodes', and nothing is chosen for them here.
"""

from __future__ import annotations

from covey.model.objects import PortConfig
from scheduler.allocation.exhausted import Exhausted
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

Owners = dict[tuple[str, int], str]
"""(protocol, number) → the service that has it."""


def owners(snapshot: Snapshot) -> Owners:
    """Every ingress port that is given."""
    return {
        (port.protocol, port.published): key
        for key, given in snapshot.service_allocations.items()
        for port in given.ports
        if port.mode == "ingress"
    }


def listed(ports: tuple[PortConfig, ...]) -> str:
    """The published numbers, for people."""
    return ", ".join(f"{port.published}/{port.protocol}" for port in ports) or "nothing"


def _same_wish(asked: PortConfig, given: PortConfig) -> bool:
    """Whether ``given`` is what was chosen for ``asked``."""
    chosen = asked.published in (0, given.published)
    return chosen and (asked.target, asked.protocol, asked.mode, asked.name, asked.host_ip) == (
        given.target,
        given.protocol,
        given.mode,
        given.name,
        given.host_ip,
    )


def answers(asked: tuple[PortConfig, ...], given: tuple[PortConfig, ...]) -> bool:
    """Whether an allocation is the one for these ports: a number where an ingress port asked for any."""
    return len(asked) == len(given) and all(
        _same_wish(wish, port) and (bool(port.published) or port.mode != "ingress")
        for wish, port in zip(asked, given, strict=True)
    )


def choose(
    service_id: str,
    asked: tuple[PortConfig, ...],
    held: tuple[PortConfig, ...],
    owned: Owners,
    settings: Settings,
) -> tuple[PortConfig, ...]:
    """The ports ``asked`` for, those ``held`` unchanged; ``owned`` is kept up to date. Raises Exhausted."""
    left = list(held)
    chosen: list[PortConfig] = []
    claims = dict(owned)
    for wish in asked:
        kept = next((port for port in left if _same_wish(wish, port)), None)
        if kept is not None:
            left.remove(kept)
            chosen.append(kept)
        else:
            chosen.append(_claim(service_id, wish, claims, settings))
    owned.update(claims)
    return tuple(chosen)


def _claim(service_id: str, wish: PortConfig, claims: Owners, settings: Settings) -> PortConfig:
    if wish.mode != "ingress":
        return wish
    number = wish.published
    if not number:
        every = range(settings.first_port, settings.last_port + 1)
        number = next((port for port in every if (wish.protocol, port) not in claims), 0)
        if not number:
            raise Exhausted(
                f"no {wish.protocol} port is left between {settings.first_port} and {settings.last_port}"
                f" for service {service_id}: publish on a port of your own choice"
            )
    owner = claims.get((wish.protocol, number), service_id)
    if owner != service_id:
        raise Exhausted(f"port {number}/{wish.protocol} is already published by service {owner}: choose another")
    claims[wish.protocol, number] = service_id
    return PortConfig(
        target=wish.target,
        published=number,
        protocol=wish.protocol,
        mode=wish.mode,
        name=wish.name,
        host_ip=wish.host_ip,
    )
