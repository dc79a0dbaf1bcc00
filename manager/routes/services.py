"""Services: list, create, inspect, update, delete.

A create is one transaction and nothing else: the service, its name, and its ingress ports, so that two creates at once can
take neither twice. What becomes of the service is the leader's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from covey import names, zones
from covey.engine_api.answers import Answer, Empty, Json, created
from covey.engine_api.call import Call
from covey.engine_api.types.service_rules import validate_service_spec
from covey.entropy import object_id
from covey.errors import Conflict, InvalidArgument, NotImplementedYet, Unavailable
from covey.model import versions
from covey.model.cron import parse_cron
from covey.model.dependencies import parse_dependencies
from covey.model.filters import parse_constraint
from covey.model.objects import PastSpec, PortConfig, Service
from covey.model.spec import read_ports, read_service_spec
from manager.dispatcher.assignments import chosen_ports
from manager.routes import service_changes, service_logins
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
from manager.store.interface import Delete, Put, absent, mod_is
from scheduler.snapshot import Snapshot

FILTERS = ("id", "label", "mode", "name", "runtime")
ATTEMPTS = 5
OVERLAY_WARNING = (
    "network {0} is a bridge on each node until overlay networks come: tasks on different nodes do not reach each other in it"
)


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
        given = service_logins.given(call, spec, door.clock.now())
        for _ in range(ATTEMPTS):
            snapshot = await door.view()
            networks = check_references(snapshot, door.mirror, spec)
            name = str(spec["Name"])
            taken = next((service for service in snapshot.services.values() if service.name == name), None)
            if taken is not None:
                raise Conflict(f"name conflicts with an existing object: service {name} already exists ({taken.id})")
            check_ports(snapshot, spec, "")
            now = door.clock.now()
            made = Service(id=object_id(), spec=spec, created_at=now, updated_at=now, **versions.first_execution(spec, now))
            service = service_changes.zoned(made)
            key = door.keys.key("service", service.id)
            compares, operations = service_changes.reserve(door, service.id, name, versions.port_names(spec), ())
            operations += service_logins.created(door, service.id, given)
            result = await door.commit([absent(key), *compares], [Put(key, encode(service)), *operations])
            if result.ok:
                return created({"ID": service.id, "Warnings": _warnings(networks)})
        raise Unavailable(f"service {spec['Name']} could not be created: names and ports keep changing, try again")

    async def update(self, call: Call) -> Answer:
        asked = call.required_integer("version")
        rollback, to = call.text("rollback"), call.integer("to", 0) or 0
        if rollback not in ("", "previous"):
            raise InvalidArgument(f"rollback {rollback!r} is unknown: use previous")
        body = {} if rollback else await call.json()
        door = self._door
        snapshot = await door.view()
        service = find_service(snapshot, call.params["id"])
        if service.version != asked:
            raise out_of_sequence("service", service.name, service.version, asked)
        now = door.clock.now()
        if rollback:
            new = versions.reverted(service, self._past(service, to), now)
        else:
            new = versions.updated(service, self._validated(body), now)
        _check_unchangeable(service, new.spec)
        networks = check_references(snapshot, door.mirror, new.spec)
        check_ports(snapshot, new.spec, service.id)
        login = service_logins.updated(door, service.id, call, new.spec, now)
        try:
            await service_changes.put(door, service, new, login)
        except Conflict:
            held = door.mirror.snapshot().services.get(service.id)
            if held is not None and held.version == asked:
                check_ports(door.mirror.snapshot(), new.spec, service.id)
            raise
        return Json({"Warnings": _warnings(networks)})

    def _past(self, service: Service, generation: int) -> PastSpec:
        """The spec to go back to: the one of ``generation``, or the previous one if it is 0."""
        if generation:
            return service_changes.past_spec(self._door, service, generation)
        if service.previous_spec is None:
            raise InvalidArgument(f"service {service.name} does not have a previous spec: nothing to roll back to")
        return versions.previous(service)

    async def delete(self, call: Call) -> Answer:
        door = self._door
        service = find_service(await door.view(), call.params["id"])
        for _ in range(ATTEMPTS):
            doomed = [door.keys.key("service", service.id), door.keys.name("service", service.name)]
            doomed += [door.keys.name("port", port) for port in sorted(versions.port_names(service.spec))]
            doomed += [door.keys.key("service_login", service.id)]
            doomed += [door.keys.key("past_spec", one.id) for one in service_changes.past_specs(door, service.id)]
            result = await door.commit([mod_is(doomed[0], service.version)], [Delete(key) for key in doomed])
            held = door.mirror.snapshot().services.get(service.id)
            if result.ok or held is None:
                return Empty(200)
            service = held
        raise Unavailable(f"service {service.name} keeps changing: remove it again")

    def proposed(self, snapshot: Snapshot, held: Service | None, raw: dict[str, Any]) -> Service:
        """What an update of ``held`` with ``raw`` (None: a create) would store, refused as that would be.

        Names and references are the caller's to look up. A new service has an id that says that it is not there.
        """
        spec = self._validated(raw)
        check_ports(snapshot, spec, held.id if held is not None else "")
        now = self._door.clock.now()
        if held is None:
            execution = versions.first_execution(spec, now)
            made = Service(id=f"planned-{spec['Name']}", spec=spec, created_at=now, updated_at=now, **execution)
            return service_changes.zoned(made)
        _check_unchangeable(held, spec)
        return service_changes.zoned(versions.updated(held, spec, now))

    def _validated(self, raw: dict[str, Any]) -> dict[str, Any]:
        spec = validate_service_spec(raw, parse_constraint).stored()
        try:
            parse_dependencies(spec)
            if (cron := parse_cron(spec)) is not None:
                zones.zone_of(cron.zone)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        return spec


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


def _warnings(networks: Iterable[str]) -> Any:
    return [OVERLAY_WARNING.format(name) for name in networks] or None
