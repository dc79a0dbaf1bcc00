"""Volumes over the Engine API."""

from __future__ import annotations

from covey.engine_api.answers import Answer, Empty, created
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.engine_api.types.network import validate_volume_create
from worker.containers.engine import Engine
from worker.rootfs import views


class Volumes:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "volume_list": self.list,
            "volume_create": self.create,
            "volume_prune": self.prune,
            "volume_inspect": self.inspect,
            "volume_delete": self.delete,
        }

    async def list(self, call: Call) -> Answer:
        filters = call.filters(("dangling", "driver", "label", "label!", "name"))
        return views.volume_list(await self._engine.host.run(self._engine.volumes.list, filters))

    async def create(self, call: Call) -> Answer:
        body = await call.json()
        wanted = validate_volume_create(body)
        self._engine.options.policy.check_volume(body.get("DriverOpts") or {})
        known = {one.name for one in self._engine.volumes.list()}
        volume = await self._engine.host.run(
            self._engine.volumes.create,
            wanted.Name or None,
            wanted.Driver or "local",
            body.get("DriverOpts") or {},
            body.get("Labels") or {},
        )
        if volume.name not in known:
            self._engine.events.publish("volume", "create", volume.name, {"driver": volume.driver})
        return created(views.volume(volume))

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(("all", "label", "label!"))
        return views.volumes_pruned(*await self._engine.host.run(self._engine.volumes.prune, filters))

    async def inspect(self, call: Call) -> Answer:
        return views.volume(self._engine.volumes.get(call.params["name"]))

    async def delete(self, call: Call) -> Answer:
        name = call.params["name"]
        await self._engine.host.run(self._engine.volumes.remove, name, call.boolean("force"))
        self._engine.events.publish("volume", "destroy", name, {"driver": "local"})
        return Empty(204)
