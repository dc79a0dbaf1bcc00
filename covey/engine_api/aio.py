"""The asyncio client, over the route table: for the daemon, for a manager that reaches a worker, for tests.

It runs on any function that connects, since a dialled-back connection is a (reader, writer) that exists already; one
request a connection. It must not know how connections come about, and needs no aiohttp.
"""

from __future__ import annotations

import asyncio
import json as json_codec
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from covey.engine_api import http1
from covey.engine_api.framing import Lines
from covey.engine_api.routes import BY_NAME, path_of
from covey.engine_api.versions import API_VERSION
from covey.errors import CoveyError, Unavailable, from_status

Duplex = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Duplex]]
Query = Mapping[str, str]

PIECE = 64 * 1024


class Response:
    """An answer whose body is read as it comes."""

    def __init__(self, answer: http1.Answer, reader: asyncio.StreamReader, ready: list[bytes], what: str) -> None:
        self._what = what
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._reader = reader
        self._ready = ready

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Body pieces as they come. Raises Unavailable when the connection breaks."""
        while True:
            while self._ready:
                yield self._ready.pop(0)
            if self._answer.complete:
                return
            try:
                data = await self._reader.read(PIECE)
                if not data:
                    self._answer.end()
                self._ready = self._answer.feed(data)
            except (OSError, http1.ProtocolError) as error:
                raise Unavailable(f"lost the connection to {self._what}: {error}") from error

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self])

    async def lines(self) -> AsyncIterator[Any]:
        """The objects of a JSON stream as they come."""
        lines = Lines()
        async for piece in self:
            for value in lines.feed(piece):
                yield value
        for value in lines.end():
            yield value


def _refusal(status: int, text: bytes) -> CoveyError:
    try:
        message = str(json_codec.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text.decode(errors="replace").strip() or f"the other end answered status {status}"
    return from_status(status, message)


class Client:
    """Calls the endpoint that ``connect`` reaches, in ``version``; ``name`` is how errors call it."""

    def __init__(self, connect: Connect, version: str = API_VERSION, name: str = "the endpoint") -> None:
        self._connect = connect
        self._version = version
        self._name = name

    async def call(
        self,
        route: str,
        params: Mapping[str, str] | None = None,
        query: Query | None = None,
        json: Any = None,
        body: bytes | None = None,
    ) -> Any:
        """The JSON of a route by its name (``container_start``), text for other types, None for no body.

        Raises the CoveyError of the answer's status; Unavailable when the connection fails.
        """
        async with self.stream(route, params, query, json, body) as response:
            text = await response.read()
        if not text.strip():
            return None
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return json_codec.loads(text) if is_json else text.decode(errors="replace")

    @asynccontextmanager
    async def stream(
        self,
        route: str,
        params: Mapping[str, str] | None = None,
        query: Query | None = None,
        json: Any = None,
        body: bytes | AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        """The answer of a route, read as it comes; statuses of 400 and above are raised."""
        method, path = self._target(route, params, query)
        reader, writer = await self._open(route)
        try:
            try:
                await self._send(writer, method, path, json, body)
                response = await self._head(http1.Answer(method), reader, route)
            except (OSError, http1.ProtocolError) as error:
                raise Unavailable(f"lost the connection to {self._name} during {route}: {error}") from error
            if response.status >= 400:
                raise _refusal(response.status, await response.read())
            yield response
        finally:
            writer.close()

    @asynccontextmanager
    async def hijack(
        self, route: str, params: Mapping[str, str] | None = None, query: Query | None = None, json: Any = None
    ) -> AsyncIterator[Duplex]:
        """Takes the connection over (attach, exec start); closed at the end of the context."""
        method, path = self._target(route, params, query)
        reader, writer = await self._open(route)
        try:
            try:
                upgrade = (("Connection", "Upgrade"), ("Upgrade", "tcp"))
                await self._send(writer, method, path, json, None, upgrade)
                answer = http1.Answer(method, hijack=True)
                while not answer.status:
                    # Exactly the head: what comes behind it is the caller's to read.
                    answer.feed(await reader.readuntil(b"\r\n\r\n"))
                if not answer.switched:
                    raise _refusal(answer.status, await Response(answer, reader, [], self._name).read())
            except (OSError, EOFError, asyncio.LimitOverrunError, http1.ProtocolError) as error:
                raise Unavailable(f"lost the connection to {self._name} during {route}: {error}") from error
            yield reader, writer
        finally:
            writer.close()

    async def _open(self, route: str) -> Duplex:
        try:
            return await self._connect()
        except OSError as error:
            raise Unavailable(f"cannot connect to {self._name} for {route}: {error}") from error

    def _target(self, route: str, params: Mapping[str, str] | None, query: Query | None) -> tuple[str, str]:
        path = f"/v{self._version}" + path_of(route, params or {})
        return BY_NAME[route].method, path + ("?" + http1.query_string(query) if query else "")

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        json: Any,
        body: bytes | AsyncIterator[bytes] | None,
        extra: tuple[tuple[str, str], ...] = (("Connection", "close"),),
    ) -> None:
        fields = [("Host", "covey"), *extra]
        if json is not None:
            body = json_codec.dumps(json, separators=(",", ":")).encode()
        if body is not None:
            fields.append(("Content-Type", "application/json" if json is not None else "application/x-tar"))
        if body is None or isinstance(body, bytes):
            fields.append(("Content-Length", str(len(body or b""))))
            writer.write(http1.request_head(method, path, fields) + (body or b""))
            await writer.drain()
            return
        writer.write(http1.request_head(method, path, [*fields, ("Transfer-Encoding", "chunked")]))
        try:
            async for piece in body:
                writer.write(http1.chunk(piece))
                await writer.drain()
            writer.write(http1.LAST_CHUNK)
            await writer.drain()
        except ConnectionError:
            # A refused upload: the answer says why.
            pass

    async def _head(self, answer: http1.Answer, reader: asyncio.StreamReader, route: str) -> Response:
        ready: list[bytes] = []
        while not answer.status:
            data = await reader.read(PIECE)
            if not data:
                answer.end()
            ready += answer.feed(data)
        return Response(answer, reader, ready, f"{self._name} during {route}")
