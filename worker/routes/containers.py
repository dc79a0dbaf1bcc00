"""Containers over the Engine API: parse the request, call the engine, shape the answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from covey.engine_api import framing
from covey.engine_api.answers import Answer, Empty, Stream, Taken, created
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.engine_api.types.base import validate
from covey.engine_api.types.container import ContainerLimits, check_limits, validate_container_create
from covey.errors import InvalidArgument, NotFound
from worker.containers import list_filters, signals, streams
from worker.containers.engine import Engine
from worker.containers.log_lines import Query
from worker.routes.times import seconds


class Containers:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "container_list": self.list,
            "container_create": self.create,
            "container_prune": self.prune,
            "container_inspect": self.inspect,
            "container_top": self.top,
            "container_logs": self.logs,
            "container_stats": self.stats,
            "container_resize": self.resize,
            "container_start": self.start,
            "container_stop": self.stop,
            "container_restart": self.restart,
            "container_kill": self.kill,
            "container_update": self.update,
            "container_rename": self.rename,
            "container_pause": self.pause,
            "container_unpause": self.unpause,
            "container_attach": self.attach,
            "container_wait": self.wait,
            "container_delete": self.delete,
        }

    async def list(self, call: Call) -> Answer:
        filters = call.filters(list_filters.LIST_KEYS)
        limit = call.integer("limit", 0) or 0
        return await self._engine.list(call.boolean("all"), max(limit, 0), call.boolean("size"), filters)

    async def create(self, call: Call) -> Answer:
        body = await call.json()
        validate_container_create(body)
        container_id, warnings = await self._engine.create(call.text("name") or None, body, platform=call.text("platform"))
        return created({"Id": container_id, "Warnings": warnings})

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(("label", "label!", "until"))
        now = self._engine.clock.now()
        if "until" in filters:
            filters["until"] = [str(seconds(value, now)) for value in filters["until"]]
        gone, freed = await self._engine.prune(filters)
        return {"ContainersDeleted": gone or None, "SpaceReclaimed": freed}

    async def inspect(self, call: Call) -> Answer:
        return await self._engine.inspect(call.params["id"], call.boolean("size"))

    async def top(self, call: Call) -> Answer:
        return await self._engine.top(call.params["id"], call.text("ps_args", "-ef"))

    async def logs(self, call: Call) -> Answer:
        query = log_query(call, self._engine.clock.now())
        if not (query.stdout or query.stderr):
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        tty = self._engine.container(call.params["id"]).tty
        chunks = self._engine.logs(call.params["id"], query)
        return Stream(chunks, framing.content_type(call.version, tty))

    async def stats(self, call: Call) -> Answer:
        ref = call.params["id"]
        self._engine.container(ref)
        if not call.boolean("stream", True):
            return await self._engine.stats_once(ref, not call.boolean("one-shot"))

        async def lines() -> AsyncIterator[bytes]:
            async for sample in self._engine.stats(ref):
                yield framing.line(sample)

        return Stream(lines())

    async def resize(self, call: Call) -> Answer:
        await self._engine.resize(call.params["id"], call.required_integer("h"), call.required_integer("w"))
        return Empty(200)

    async def start(self, call: Call) -> Answer:
        await self._engine.start(call.params["id"])
        return Empty(204)

    async def stop(self, call: Call) -> Answer:
        await self._engine.stop(call.params["id"], call.integer("t"), call.text("signal") or None)
        return Empty(204)

    async def restart(self, call: Call) -> Answer:
        await self._engine.restart(call.params["id"], call.integer("t"), call.text("signal") or None)
        return Empty(204)

    async def kill(self, call: Call) -> Answer:
        ref, name = call.params["id"], call.text("signal")
        signals.parse(name or "KILL")
        try:
            await self._engine.kill(ref, name or None)
        except NotFound as error:
            raise NotFound(f"cannot kill container: {ref}: {error.message}") from None
        return Empty(204)

    async def update(self, call: Call) -> Answer:
        body = await call.json()
        check_limits(validate(ContainerLimits, body), "")
        return {"Warnings": await self._engine.update(call.params["id"], body)}

    async def rename(self, call: Call) -> Answer:
        if not call.text("name"):
            raise InvalidArgument("Neither old nor new names may be empty")
        await self._engine.rename(call.params["id"], call.text("name"))
        return Empty(204)

    async def pause(self, call: Call) -> Answer:
        await self._engine.pause(call.params["id"])
        return Empty(204)

    async def unpause(self, call: Call) -> Answer:
        await self._engine.unpause(call.params["id"])
        return Empty(204)

    async def delete(self, call: Call) -> Answer:
        if call.boolean("link"):
            raise InvalidArgument("links between containers are not supported: remove the container without --link")
        await self._engine.remove(call.params["id"], call.boolean("force"), call.boolean("v"))
        return Empty(204)

    async def wait(self, call: Call) -> Answer:
        # The waiter is registered before the head is sent: a client that sees the head may start the container.
        future = self._engine.exit_of(call.params["id"], call.text("condition"))

        async def answer() -> AsyncIterator[bytes]:
            code = await future
            yield json.dumps({"StatusCode": code}).encode() + b"\n"

        return Stream(answer())

    async def attach(self, call: Call) -> Answer:
        ref, keys = call.params["id"], call.text("detachKeys")
        streams.detach_sequence(keys)
        container = self._engine.check_attachable(ref)
        stdin, stdout, stderr = (call.boolean(name) for name in ("stdin", "stdout", "stderr"))
        # What cannot be read is said while it still can be.
        replayed = call.boolean("logs") and (stdout or stderr)
        chunks = self._engine.logs(container.id, Query(stdout=stdout, stderr=stderr)) if replayed else None
        await call.read()
        client = await call.hijack(container.tty)
        _, writer = client
        if chunks is not None:
            async for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
        if call.boolean("stream"):
            await self._engine.attach(container.id, client, stdin=stdin, stdout=stdout, stderr=stderr, detach_keys=keys)
        return Taken()


def log_query(call: Call, now: float) -> Query:
    """The log parameters of a request; ``tail`` that is no number means all, as Docker's."""
    tail = call.text("tail", "all")
    return Query(
        stdout=call.boolean("stdout"),
        stderr=call.boolean("stderr"),
        follow=call.boolean("follow"),
        timestamps=call.boolean("timestamps"),
        details=call.boolean("details"),
        tail=int(tail) if tail.isdigit() else None,
        since=seconds(call.text("since"), now),
        until=seconds(call.text("until"), now),
    )
