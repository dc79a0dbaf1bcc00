"""Archives of images over the Engine API: docker save."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.errors import InvalidArgument
from worker.containers.engine import Engine

TAR = "application/x-tar"


class ImageArchives:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {"image_get": self.get, "image_get_all": self.get_all}

    async def get(self, call: Call) -> Answer:
        return await self._archive([call.params["name"]], call)

    async def get_all(self, call: Call) -> Answer:
        names = call.texts("names")
        if not names:
            raise InvalidArgument("name the images to save: names=…")
        return await self._archive(names, call)

    async def _archive(self, names: list[str], call: Call) -> Answer:
        host, images = self._engine.host, self._engine.images
        chosen = await host.run(images.choose, names, platform_text(call.text("platform")))
        pieces = images.save_archive(chosen)
        # What is wrong is said while there is a status to say it with.
        first = await host.run(next, pieces)
        for each in chosen:
            shown = each.names[0].familiar if each.names else each.image.id
            self._engine.events.publish("image", "save", each.image.id, {"name": shown})

        async def chunks() -> AsyncIterator[bytes]:
            yield first
            while (piece := await host.run(next, pieces, None)) is not None:
                yield piece

        return Stream(chunks(), TAR)


def platform_text(given: str) -> str:
    """``linux/arm64/v8`` of the API's ``platform``, an OCI platform as JSON; "" where none is given."""
    if not given:
        return ""
    try:
        found = json.loads(given)
        return "/".join(str(found[key]) for key in ("os", "architecture", "variant") if found.get(key))
    except (ValueError, AttributeError, RecursionError):
        raise InvalidArgument(f"invalid platform: {given[:80]!r} is not an OCI platform as JSON") from None
