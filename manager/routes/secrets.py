"""Secrets and configs: the same calls over two kinds, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from covey.engine_api.answers import Answer, Empty, created
from covey.engine_api.call import Call
from covey.engine_api.types import cluster
from covey.entropy import object_id
from covey.errors import Conflict, InvalidArgument
from covey.model.objects import Config, Secret
from manager.dispatcher.assignments import references
from manager.routes.door import Door, find, matches_id, matches_labels, matches_name, name_of, out_of_sequence
from manager.routes.shapes import show_config, show_secret
from manager.store.codec import encode
from manager.store.interface import Delete, Put, absent, mod_is
from scheduler.snapshot import Snapshot

FILTERS = ("id", "label", "name", "names")


@dataclass(frozen=True, slots=True)
class Kind:
    """One row: its noun, struct, shape, and where specs of services name it."""

    noun: str
    struct: type[Secret] | type[Config]
    show: Callable[[Any], dict[str, Any]]
    field: str
    id_field: str


KINDS = (
    Kind("secret", Secret, show_secret, "Secrets", "SecretID"),
    Kind("config", Config, show_config, "Configs", "ConfigID"),
)


class Files:
    """Handlers by route name in ``handlers``, for one row."""

    def __init__(self, door: Door, kind: Kind) -> None:
        self._door = door
        self._kind = kind

    def handlers(self) -> dict[str, Any]:
        noun = self._kind.noun
        return {
            f"{noun}_list": self.list_all,
            f"{noun}_create": self.create,
            f"{noun}_inspect": self.inspect,
            f"{noun}_update": self.update,
            f"{noun}_delete": self.delete,
        }

    async def list_all(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        held = await self._held()
        items = sorted(held.values(), key=lambda item: (name_of(item), item.id))
        return [self._kind.show(item) for item in items if _wanted(item, filters)]

    async def inspect(self, call: Call) -> Answer:
        return self._kind.show(find(await self._held(), self._kind.noun, call.params["id"]))

    async def create(self, call: Call) -> Answer:
        door, noun = self._door, self._kind.noun
        spec = self._validated(await call.json(), update=False)
        data = _decoded(spec.pop("Data"))
        name = str(spec["Name"])
        now = door.clock.now()
        item = self._kind.struct(id=object_id(), spec=spec, data=data, created_at=now, updated_at=now)
        key = door.keys.key(noun, item.id)
        compare, reserve = door.reserve(noun, name, item.id)
        result = await door.commit([absent(key), compare], [Put(key, encode(item)), reserve])
        if not result.ok:
            raise Conflict(f"name conflicts with an existing object: {noun} {name} already exists")
        return created({"ID": item.id})

    async def update(self, call: Call) -> Answer:
        door, noun = self._door, self._kind.noun
        asked = call.required_integer("version")
        spec = self._validated(await call.json(), update=True)
        item = find(await self._held(), noun, call.params["id"])
        if item.version != asked:
            raise out_of_sequence(noun, name_of(item), item.version, asked)
        data = spec.pop("Data", None)
        same = {**item.spec, "Labels": None} == {**spec, "Labels": None} and (not data or _decoded(data) == item.data)
        if not same:
            raise InvalidArgument(
                f"only updates to Labels are allowed: make another {noun} instead of changing {name_of(item)}"
            )
        new = msgspec.structs.replace(item, spec=spec, updated_at=door.clock.now(), version=0)
        key = door.keys.key(noun, item.id)
        if not (await door.commit([mod_is(key, asked)], [Put(key, encode(new))])).ok:
            held = door.mirror.objects(noun).get(item.id)
            raise out_of_sequence(noun, name_of(item), held.version if held else 0, asked)
        return Empty(200)

    async def delete(self, call: Call) -> Answer:
        door, noun = self._door, self._kind.noun
        item = find(await self._held(), noun, call.params["id"])
        users = self._users(door.mirror.snapshot(), item.id)
        if users:
            services = "services" if len(users) > 1 else "service"
            raise InvalidArgument(f"{noun} '{name_of(item)}' is in use by the following {services}: {', '.join(users)}")
        key = door.keys.key(noun, item.id)
        result = await door.commit([mod_is(key, item.version)], [Delete(key), Delete(door.keys.name(noun, name_of(item)))])
        if not result.ok and (held := door.mirror.objects(noun).get(item.id)) is not None:
            raise out_of_sequence(noun, name_of(item), held.version, item.version)
        return Empty(204)

    async def _held(self) -> Mapping[str, Any]:
        await self._door.view()
        return self._door.mirror.objects(self._kind.noun)

    def _users(self, snapshot: Snapshot, object_id: str) -> list[str]:
        return sorted(
            service.name
            for service in snapshot.services.values()
            if object_id in references(service.spec.get("TaskTemplate") or {}, self._kind.field, self._kind.id_field)
        )

    def _validated(self, raw: dict[str, Any], update: bool) -> dict[str, Any]:
        validate = cluster.validate_secret_spec if self._kind.noun == "secret" else cluster.validate_config_spec
        return validate(raw, update).stored()


def _decoded(text: str) -> bytes:
    return cluster.decode_data("Data", text)


def _wanted(item: Any, filters: Mapping[str, list[str]]) -> bool:
    return (
        matches_id(item.id, filters.get("id", []))
        and matches_name(name_of(item), filters.get("name", []))
        and (not filters.get("names") or name_of(item) in filters["names"])
        and matches_labels(item.spec.get("Labels"), filters.get("label", []))
    )
