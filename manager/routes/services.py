"""Services: list, create, inspect, update, delete.

A create is one transaction and nothing else: the service, its name, and its ingress ports, so that two creates at once can
take neither twice. What becomes of the service is the leader's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from covey import names, zones
from covey.engine_api.answers import Answer, Empty, Json, created
from covey.engine_api.call import Call
from covey.entropy import object_id
from covey.errors import Conflict, InvalidArgument, NotImplementedYet, Unavailable
from covey.model.cron import parse_cron
from covey.model.dependencies import parse_dependencies
from covey.model.filters import parse_constraint
from covey.model.objects import PortConfig, Service
from covey.model.spec import read_ports, read_service_spec
from manager.dispatcher.assignments import chosen_ports
from manager.routes.door import (
    Door,
    find_service,
    matches_id,
    matches_labels,
    matches_name,
    out_of_sequence,
)
from manager.routes.references import check_references
from manager.routes.service_shapes import show_service
from manager.store.codec import encode
from manager.store.interface import Compare, Delete, Operation, Put, absent, mod_is
from scheduler.snapshot import Snapshot

FILTERS = ("id", "label", "mode", "name", "runtime")
ATTEMPTS = 5
OVERLAY_WARNING = (
    "network {0} is a bridge on each node until overlay networks come: tasks on different nodes do not reach each other in it"
)


def _reserved_ports(spec: Mapping[str, Any]) -> set[str]:
    """Names that hold the ingress ports a spec asks for by number."""
    ports = read_ports(spec.get("EndpointSpec"))
    return {f"{port.published}/{port.protocol}" for port in ports if port.mode == "ingress" and port.published}


def check_ports(snapshot: Snapshot, spec: Mapping[str, Any], service_id: str) -> None:
    """Raises InvalidArgument in SwarmKit's words for a port that another service has."""
    wanted = [port for port in read_ports(spec.get("EndpointSpec")) if port.published]
    if not wanted:
        return
    for other in snapshot.services.values():
        if other.id == service_id:
            continue
        held = chosen_ports(snapshot.service_specs[other.id].ports, snapshot.service_allocations.get(other.id))
        for port in wanted:
            clash = next((have for have in held if _clash(port, have)), None)
            if clash is not None:
                raise InvalidArgument(
                    f"port '{port.published}' is already in use by service '{other.name}' ({other.id}) "
                    f"as a{_mode(clash)} port: publish another one (EndpointSpec.Ports)"
                )


def _clash(port: PortConfig, held: PortConfig) -> bool:
    same = (port.published, port.protocol) == (held.published, held.protocol)
    return same and "ingress" in (port.mode, held.mode)


def _mode(port: PortConfig) -> str:
    return "n ingress" if port.mode == "ingress" else " host-published"


class Services:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "service_list": self.list_all,
            "service_create": self.create,
            "service_inspect": self.inspect,
            "service_update": self.update,
            "service_delete": self.delete,
        }

    async def list_all(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        snapshot = await self._door.view()
        status = call.boolean("status")
        return [
            show_service(snapshot, service, status=status)
            for service in sorted(snapshot.services.values(), key=lambda service: (service.name, service.id))
            if _wanted(snapshot, service, filters)
        ]

    async def inspect(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        service = find_service(snapshot, call.params["id"])
        return show_service(snapshot, service, insert_defaults=call.boolean("insertDefaults"))

    async def create(self, call: Call) -> Answer:
        raw = await call.json()
        door = self._door
        if not raw.get("Name"):
            held = {service.name for service in (await door.view()).services.values()}
            raw = {**raw, "Name": names.fresh(lambda name: name not in held)}
        spec = self._validated(raw)
        for _ in range(ATTEMPTS):
            snapshot = await door.view()
            networks = check_references(snapshot, door.mirror, spec)
            name = str(spec["Name"])
            taken = next((service for service in snapshot.services.values() if service.name == name), None)
            if taken is not None:
                raise Conflict(f"name conflicts with an existing object: service {name} already exists ({taken.id})")
            check_ports(snapshot, spec, "")
            now = door.clock.now()
            service = Service(id=object_id(), spec=spec, created_at=now, updated_at=now, **first_execution(spec, now))
            key = door.keys.key("service", service.id)
            compares, operations = self._reserve(service.id, name, _reserved_ports(spec), set())
            result = await door.commit([absent(key), *compares], [Put(key, encode(service)), *operations])
            if result.ok:
                return created({"ID": service.id, "Warnings": _warnings(networks)})
        raise Unavailable(f"service {spec['Name']} could not be created: names and ports keep changing, try again")

    async def update(self, call: Call) -> Answer:
        asked = call.required_integer("version")
        rollback = call.text("rollback")
        if rollback not in ("", "previous"):
            raise InvalidArgument(f"rollback {rollback!r} is unknown: use previous")
        body = {} if rollback else await call.json()
        door = self._door
        snapshot = await door.view()
        service = find_service(snapshot, call.params["id"])
        if service.version != asked:
            raise out_of_sequence("service", service.name, service.version, asked)
        if rollback:
            if service.previous_spec is None:
                raise InvalidArgument(f"service {service.name} does not have a previous spec: nothing to roll back to")
            spec = service.previous_spec
        else:
            spec = self._validated(body)
        _check_unchangeable(service, spec)
        networks = check_references(snapshot, door.mirror, spec)
        check_ports(snapshot, spec, service.id)
        new = _updated(service, spec, door.clock.now())
        key = door.keys.key("service", service.id)
        compares, operations = self._reserve(service.id, "", _reserved_ports(spec), _reserved_ports(service.spec))
        result = await door.commit([mod_is(key, asked), *compares], [Put(key, encode(new)), *operations])
        if not result.ok:
            held = door.mirror.snapshot().services.get(service.id)
            if held is not None and held.version == asked:
                check_ports(door.mirror.snapshot(), spec, service.id)
            raise out_of_sequence("service", service.name, held.version if held else 0, asked)
        return Json({"Warnings": _warnings(networks)})

    async def delete(self, call: Call) -> Answer:
        door = self._door
        service = find_service(await door.view(), call.params["id"])
        doomed = [door.keys.key("service", service.id), door.keys.name("service", service.name)]
        doomed += [door.keys.name("port", port) for port in sorted(_reserved_ports(service.spec))]
        for _ in range(ATTEMPTS):
            result = await door.commit([mod_is(doomed[0], service.version)], [Delete(key) for key in doomed])
            held = door.mirror.snapshot().services.get(service.id)
            if result.ok or held is None:
                return Empty(200)
            service = held
            doomed[2:] = [door.keys.name("port", port) for port in sorted(_reserved_ports(service.spec))]
        raise Unavailable(f"service {service.name} keeps changing: remove it again")

    def _validated(self, raw: dict[str, Any]) -> dict[str, Any]:
        from covey.engine_api.types.service_rules import validate_service_spec

        spec = validate_service_spec(raw, parse_constraint).stored()
        try:
            parse_dependencies(spec)
            if (cron := parse_cron(spec)) is not None:
                zones.zone_of(cron.zone)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        return spec

    def _reserve(self, owner: str, name: str, new: Iterable[str], old: Iterable[str]) -> tuple[list[Compare], list[Operation]]:
        """Reserve ``name`` (unless "") and the ports in ``new`` but not in ``old``; free those in ``old`` only."""
        pairs = [self._door.reserve("service", name, owner)] if name else []
        pairs += [self._door.reserve("port", port, owner) for port in sorted(set(new) - set(old))]
        freed: list[Operation] = [Delete(self._door.keys.name("port", port)) for port in sorted(set(old) - set(new))]
        return [compare for compare, _ in pairs], [operation for _, operation in pairs] + freed


def _wanted(snapshot: Snapshot, service: Service, filters: Mapping[str, list[str]]) -> bool:
    mode = snapshot.service_specs[service.id].mode
    return (
        matches_id(service.id, filters.get("id", []))
        and matches_name(service.name, filters.get("name", []))
        and matches_labels(service.spec.get("Labels"), filters.get("label", []))
        and (not filters.get("mode") or mode in filters["mode"])
    )


def _check_unchangeable(service: Service, spec: Mapping[str, Any]) -> None:
    """Raises NotImplementedYet (SwarmKit's Unimplemented) for what no update may change."""
    if spec.get("Name") != service.name:
        raise NotImplementedYet(f"renaming services is not supported: service {service.name} cannot become {spec.get('Name')}")
    old, new = read_service_spec(service.spec).mode, read_service_spec(spec).mode
    if old != new:
        raise NotImplementedYet(f"service mode change is not allowed: service {service.name} is {old}, not {new}")


def _updated(service: Service, spec: dict[str, Any], now: float) -> Service:
    """``service`` with ``spec``; its spec version rises only when its tasks would be made otherwise."""
    parts = ("TaskTemplate", "EndpointSpec", "Networks")
    changed = any((service.spec.get(part) or {}) != (spec.get(part) or {}) for part in parts)
    return msgspec.structs.replace(
        service,
        spec=spec,
        previous_spec=service.spec,
        spec_version=service.spec_version + changed,
        updated_at=now,
        version=0,
        **next_execution(service, spec, now),
    )


def first_execution(spec: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Fields of a new Service; a job begins with its creation."""
    return {"job_iteration": 1, "executed_at": now, **_offsets(spec, now)} if read_service_spec(spec).is_job else {}


def next_execution(service: Service, spec: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Fields that an update of ``service`` changes: whatever is updated of a job, it is executed again, as in Docker."""
    if not service.job_iteration:
        return {}
    return {"job_iteration": service.job_iteration + 1, "executed_at": now, **_offsets(spec, now)}


def _offsets(spec: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The rules of a schedule's time zone."""
    cron = read_service_spec(spec).cron
    return {"offsets": () if cron is None or cron.zone == "UTC" else zones.offsets(cron.zone, now)}


def _warnings(networks: Iterable[str]) -> Any:
    return [OVERLAY_WARNING.format(name) for name in networks] or None
