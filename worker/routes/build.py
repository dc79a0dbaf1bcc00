"""Builds and commits over the Engine API: ``POST /build``, ``/build/prune``, ``/commit``, and no to BuildKit's session.

The builder is imported when it is first asked for: most nodes of a cluster build nothing, and it takes a megabyte.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING

from covey.engine_api.answers import Answer, Stream, created
from covey.engine_api.call import Call, decode_object
from covey.engine_api.server import Handler
from covey.errors import InvalidArgument
from worker.containers.engine import Engine
from worker.images import reference
from worker.routes.bodies import BodyReader
from worker.routes.times import seconds

if TYPE_CHECKING:
    from worker.build.base_images import Pull
    from worker.build.building import Building


class _Lines(AsyncIterator[bytes]):
    """A build's lines, and what the build holds: given back also when the client has left before the first."""

    def __init__(self, lines: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        self._lines, self._held = lines, held

    async def __anext__(self) -> bytes:
        return await anext(self._lines)

    async def aclose(self) -> None:
        try:
            await self._lines.aclose()
        finally:
            await self._held.aclose()


class Builds:
    """One method a route. ``pull``: fetches base images; None, and only what the store has can be built upon."""

    def __init__(self, engine: Engine, pull: Pull | None = None) -> None:
        self._engine = engine
        self._pull = pull
        if (engine.options.data_root / "build").exists():
            # A builder clears away, at its start, what builds of a former life left.
            _ = self._building

    @cached_property
    def _building(self) -> Building:
        from worker.build.building import Building

        return Building(self._engine, self._pull)

    def handlers(self) -> dict[str, Handler]:
        return {
            "image_build": self.build,
            "build_prune": self.prune,
            "container_commit": self.commit,
            "session": self.session,
        }

    async def session(self, call: Call) -> Answer:
        from worker.build import options

        raise InvalidArgument(options.BUILDKIT)

    async def build(self, call: Call) -> Answer:
        from worker.build import options

        wanted = options.read(call.text, call.texts, call.headers)
        async with AsyncExitStack() as stack:
            work = await self._building.prepare(wanted, BodyReader(call.chunks), stack)
            return Stream(_Lines(self._building.lines(work), stack.pop_all()))

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(("until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private"))
        now = self._engine.clock.now()
        since = [seconds(value, now) for key in ("until", "unused-for") for value in filters.get(key, ())]
        gone, freed = await self._building.prune(min(since) if since else None)
        return {"CachesDeleted": gone or None, "SpaceReclaimed": freed}

    async def commit(self, call: Call) -> Answer:
        from worker.build import committing

        ref = call.text("container")
        if not ref:
            raise InvalidArgument("give the container to commit: query parameter container")
        given = (await call.read()).strip()
        # Older docker commands say null where they have nothing to say.
        body = decode_object(given) if given not in (b"", b"null") else {}
        repository, tag = call.text("repo"), call.text("tag")
        name = reference.from_parts(repository, tag) if repository else None
        wish = committing.Wish(
            name,
            body,
            call.texts("changes"),
            author=call.text("author"),
            comment=call.text("comment"),
            pause=call.boolean("pause", True),
        )
        made = await committing.container(self._engine, ref, wish)
        container = self._engine.container(ref)
        extra = {"comment": wish.comment, "imageID": made.id, "imageRef": name.familiar if name else ""}
        self._engine.host.publish(container, "commit", extra)
        return created({"Id": made.id})
