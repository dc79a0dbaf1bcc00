"""Images of this node over the Engine API: list, inspect, history, import, load, tag, remove, prune.

What concerns registries is worker.routes.registry's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from covey.engine_api import framing
from covey.engine_api.answers import Answer, Empty, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from worker.containers.engine import Engine
from worker.images import progress, reference, views, web
from worker.images.image import Image
from worker.images.progress import Listener
from worker.routes.bodies import BodyReader
from worker.routes.registry import Registry, told

LIST_FILTERS = ("before", "dangling", "label", "label!", "reference", "since", "until")


class Images:
    """One method a route."""

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine, self._registry = engine, registry

    def handlers(self) -> dict[str, Handler]:
        return {
            "image_list": self.list,
            "image_create": self.create,
            "image_load": self.load,
            "image_prune": self.prune,
            "image_inspect": self.inspect,
            "image_history": self.history,
            "image_tag": self.tag,
            "image_delete": self.delete,
        }

    def _event(self, action: str, image_id: str, name: str) -> None:
        self._engine.events.publish("image", action, image_id, {"name": name})

    async def list(self, call: Call) -> Answer:
        filters = call.filters(LIST_FILTERS)
        images = self._engine.images
        found = await self._engine.host.run(images.list, filters)
        users = self._engine.host.users_of_images()
        shared = call.boolean("shared-size")
        out = []
        for one in found:
            size = await self._engine.host.run(images.shared_size, one) if shared else -1
            out.append(views.image_summary(one, containers=len(users.get(one.id, ())), shared_size=size))
        return out

    async def create(self, call: Call) -> Answer:
        if call.text("fromSrc"):
            return await self._import(call)
        return await self._registry.pull(call)

    async def _import(self, call: Call) -> Answer:
        source = call.text("fromSrc")
        if source == "-":
            made = await self._made(call, BodyReader(call.chunks))

            async def lines() -> AsyncIterator[bytes]:
                yield framing.line({"status": made.id})

            return Stream(lines())
        # As Docker's daemon takes it: an address without a scheme is an http one.
        address = source if "://" in source else f"http://{source}"
        await call.read()

        async def work(listener: Listener) -> None:
            async with web.fetched(address) as page:
                listener(progress.status(f"Downloading from {address}"))
                listener(progress.status((await self._made(call, BodyReader(page.chunks))).id))

        return await told(work)

    async def _made(self, call: Call, stream: BodyReader) -> Image:
        repository, tag = call.text("repo"), call.text("tag")
        name = reference.from_parts(repository, tag) if repository else None
        made = await self._engine.host.run(
            self._engine.images.import_rootfs,
            stream,
            name,
            call.texts("changes"),
            message=call.text("message"),
            platform=call.text("platform"),
        )
        self._event("import", made.id, name.familiar if name else made.id)
        return made

    async def load(self, call: Call) -> Answer:
        loaded = await self._engine.host.run(self._engine.images.load_archive, BodyReader(call.chunks))
        for one in loaded:
            self._event("load", one.image.id, one.names[0] if one.names else one.image.id)

        async def lines() -> AsyncIterator[bytes]:
            for one in loaded:
                for name in one.names:
                    yield framing.line({"stream": f"Loaded image: {name}\n"})
                if not one.names:
                    yield framing.line({"stream": f"Loaded image ID: {one.image.id}\n"})

        return Stream(lines())

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(("dangling", "label", "label!", "until"))
        return views.pruned(await self._engine.host.run(self._engine.images.prune, filters))

    async def inspect(self, call: Call) -> Answer:
        host, images = self._engine.host, self._engine.images
        found = await host.run(images.resolve, call.params["name"])
        return views.image_inspect(found, await host.run(images.layer_dirs, found))

    async def history(self, call: Call) -> Answer:
        host, images = self._engine.host, self._engine.images
        found = await host.run(images.resolve, call.params["name"])
        return views.history(found, await host.run(images.layer_sizes, found))

    async def tag(self, call: Call) -> Answer:
        name = reference.from_parts(call.text("repo"), call.text("tag"))
        found = await self._engine.host.run(self._engine.images.tag, call.params["name"], name)
        self._event("tag", found.id, name.familiar)
        return Empty(201)

    async def delete(self, call: Call) -> Answer:
        result = await self._engine.host.run(self._engine.images.remove, call.params["name"], call.boolean("force"))
        for name in result.untagged:
            self._event("untag", name, name)
        for one in result.deleted:
            self._event("delete", one, one)
        return views.removed(result)
