"""A service gets another spec: one transaction, for whoever asks (an update, a rollback, stop, start, restart).

It decides what is written together: the service, the spec it had, the ports it takes and gives up. Which spec it is to be, and
whether it can be, is the caller's. The leader writes the same when an update is rolled back (scheduler/writes.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from covey import zones
from covey.errors import InvalidArgument
from covey.model import versions
from covey.model.objects import PastSpec, Service
from covey.model.spec import read_service_spec
from manager.routes.door import Door, out_of_sequence
from manager.store.codec import encode
from manager.store.interface import Compare, Delete, Operation, Put, mod_is


def reserve(door: Door, owner: str, name: str, new: Iterable[str], old: Iterable[str]) -> tuple[list[Compare], list[Operation]]:
    """Reserve ``name`` (unless "") and the ports in ``new`` but not in ``old``; free those in ``old`` only."""
    pairs = [door.reserve("service", name, owner)] if name else []
    pairs += [door.reserve("port", port, owner) for port in sorted(set(new) - set(old))]
    freed: list[Operation] = [Delete(door.keys.name("port", port)) for port in sorted(set(old) - set(new))]
    return [compare for compare, _ in pairs], [operation for _, operation in pairs] + freed


def zoned(service: Service) -> Service:
    """``service`` with the rules of the time zone that its schedule is in, which decisions may not look up."""
    cron = read_service_spec(service.spec).cron
    rules = () if cron is None or cron.zone == "UTC" else zones.offsets(cron.zone, service.executed_at)
    return service if rules == service.offsets else msgspec.structs.replace(service, offsets=rules)


async def put(door: Door, service: Service, new: Service, beside: Iterable[Operation] = ()) -> None:
    """Write ``new`` in place of ``service``, and ``beside``. Raises Conflict when the service has changed since it was read."""
    new = zoned(new)
    key = door.keys.key("service", service.id)
    compares, operations = reserve(door, service.id, "", versions.port_names(new.spec), versions.port_names(service.spec))
    operations = [Put(key, encode(new)), *operations, *_history(door, service, new), *beside]
    result = await door.commit([mod_is(key, service.version), *compares], operations)
    if not result.ok:
        held = door.mirror.snapshot().services.get(service.id)
        raise out_of_sequence("service", service.name, held.version if held else 0, service.version)


def past_specs(door: Door, service_id: str) -> list[PastSpec]:
    """The specs a service had, as far as they are kept, the oldest first."""
    held: Any = door.mirror.objects("past_spec").values()
    return sorted((one for one in held if one.service_id == service_id), key=lambda one: int(one.generation))


def past_spec(door: Door, service: Service, generation: int) -> PastSpec:
    """The spec of ``generation``. Raises InvalidArgument that says which there are."""
    kept = {one.generation: one for one in past_specs(door, service.id)}
    if generation not in kept:
        known = ", ".join(map(str, kept)) or "none"
        raise InvalidArgument(
            f"service {service.name} has no version {generation} to roll back to (kept: {known}): "
            f"see `cluster service history {service.name}`"
        )
    return kept[generation]


def _history(door: Door, service: Service, new: Service) -> list[Operation]:
    """What is kept of ``service`` once it is ``new``, and what of its history goes for it."""
    if not versions.worth_keeping(service.spec, new.spec):
        return []
    kept = past_specs(door, service.id)
    surplus = kept[: max(len(kept) + 1 - door.settings.past_specs, 0)]
    past = versions.current(service)
    operations: list[Operation] = [Put(door.keys.key("past_spec", past.id), encode(past))]
    return operations + [Delete(door.keys.key("past_spec", one.id)) for one in surplus if one.id != past.id]
