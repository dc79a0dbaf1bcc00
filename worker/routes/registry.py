"""Registries over the Engine API: pull, push, log in, search, and what a registry has under a name.

It decides Docker's parameters, events and status codes. An error before the first line of a stream is the answer's status;
after it, the stream's last line. What asks registries is imported at the first request (worker.images.remote).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from covey import credentials
from covey.credentials import Credentials
from covey.engine_api import framing
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.errors import CoveyError, InvalidArgument, from_status
from worker.containers.engine import Engine
from worker.images import reference
from worker.images.platforms import Platform
from worker.images.progress import Listener
from worker.images.reference import Reference
from worker.images.registry.errors import NoCredentials, Refused
from worker.images.threads import until_done

AUTH_HEADER = "X-Registry-Auth"
_PASSED_ON = frozenset({401, 403, 404, 429})

Work = Callable[[Listener], Awaitable[None]]


async def told(work: Work) -> Stream:
    """The progress of ``work`` as a stream; it ends with its client. Raises what ``work`` raises before its first line."""
    queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
    task = asyncio.get_running_loop().create_task(_run(work, queue))
    try:
        first = await queue.get()
        if first is None:
            await task
    except BaseException:
        await _end(task)
        raise

    async def lines() -> AsyncIterator[bytes]:
        message = first
        try:
            while message is not None:
                yield framing.line(message)
                message = await queue.get()
            try:
                await task
            except CoveyError as error:
                yield framing.error_line(error.message)
        finally:
            await _end(task)

    return Stream(lines())


async def _run(work: Work, queue: asyncio.Queue[Mapping[str, Any] | None]) -> None:
    try:
        await work(queue.put_nowait)
    finally:
        queue.put_nowait(None)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await until_done(task)


class Registry:
    """One method a route; ``pull`` is a part of ``image_create``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "image_push": self.push,
            "image_search": self.search,
            "distribution_inspect": self.distribution,
            "system_auth": self.auth,
        }

    def _event(self, action: str, named: Reference) -> None:
        self._engine.events.publish("image", action, named.familiar, {"name": named.familiar_name})

    async def pull(self, call: Call) -> Answer:
        """The ``fromImage`` part of ``image_create``: one tag or digest, or all tags where neither is named."""
        named, every = _wanted(call.text("fromImage"), call.text("tag"))
        auth, platform = credentials.from_header(call.headers.get(AUTH_HEADER, "")), call.text("platform")
        await call.read()
        puller = self._engine.remote.puller

        async def work(listener: Listener) -> None:
            if every:
                done = await puller.pull_all(named, auth=auth, platform=platform, listener=listener)
            else:
                done = [await puller.pull(named, auth=auth, platform=platform, listener=listener)]
            for one in done:
                self._event("pull", one.name)

        return await told(work)

    async def push(self, call: Call) -> Answer:
        named = reference.parse(call.params["name"])
        if call.text("tag"):
            named = named.with_tag(call.text("tag"))
        auth, platform = credentials.from_header(call.headers.get(AUTH_HEADER, "")), call.text("platform")
        await call.read()

        async def work(listener: Listener) -> None:
            for one in await self._engine.remote.pusher.push(named, auth=auth, platform=platform, listener=listener):
                self._event("push", one.name)

        return await told(work)

    async def auth(self, call: Call) -> Answer:
        from worker.images.registry import inquiries

        given = credentials.from_api(await call.json())
        token = await inquiries.log_in(self._engine.remote.registries, given)
        return {"Status": "Login Succeeded", "IdentityToken": token}

    async def search(self, call: Call) -> Answer:
        from worker.images.registry import inquiries

        limit = call.integer("limit", 0) or inquiries.SEARCH_DEFAULT
        filters = call.filters(inquiries.SEARCH_FILTERS)
        who = credentials.from_header(call.headers.get(AUTH_HEADER, ""))
        return await inquiries.search(self._engine.remote.registries, call.text("term"), limit, filters, who)

    async def distribution(self, call: Call) -> Answer:
        """The digest and platforms a registry has under a name: what pins a service's image."""
        from worker.images.registry import inquiries

        named = reference.parse_tagged(call.params["name"])
        who: Credentials = credentials.from_header(call.headers.get(AUTH_HEADER, ""))
        try:
            found = await inquiries.describe(self._engine.remote.registries, named, who)
        except NoCredentials as error:
            raise from_status(401, error.message) from None
        except Refused as error:
            code = error.http_status
            raise (from_status(code, error.message) if code in _PASSED_ON else error) from None
        return {
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
            "Platforms": [_platform(one) for one in found.platforms],
        }


def _platform(one: Platform) -> dict[str, str]:
    shown = {"architecture": one.architecture, "os": one.os}
    return {**shown, "variant": one.variant} if one.variant else shown


def _wanted(name: str, tag: str) -> tuple[Reference, bool]:
    """What ``fromImage`` and ``tag`` mean, and whether that is all tags."""
    if not name:
        raise InvalidArgument("give fromImage or fromSrc")
    named = reference.parse(name)
    if named.digest:
        return Reference(named.domain, named.path, None, named.digest), False
    if tag:
        return reference.from_parts(name, tag), False
    return named, named.tag is None
