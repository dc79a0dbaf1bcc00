"""Forwards a call to another Engine API endpoint as it streams: requests, answers, and upgraded connections.

It holds at most one chunk in each direction and passes half-close on. It must not know which endpoint: the caller
brings a function that connects (a manager's private socket, a worker's dial-back).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from covey.engine_api import http1
from covey.engine_api.answers import Answer, Stream, Taken
from covey.engine_api.call import Call, Duplex
from covey.errors import CoveyError, Unavailable

Connect = Callable[[], Awaitable[Duplex]]

PIECE = 64 * 1024
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect")
)
NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


def connect_unix(path: str) -> Connect:
    """Connects to a Unix socket by path."""
    return lambda: asyncio.open_unix_connection(path, limit=4 * PIECE)


def node_path(call: Call) -> str:
    """The request a ``/_node/{name}/{tail}`` call carries: its tail with the query."""
    _, mark, query = call.path.partition("?")
    return call.params["tail"] + mark + query


async def _send_body(call: Call, writer: asyncio.StreamWriter, chunked: bool) -> None:
    try:
        async for data in call.chunks:
            writer.write(http1.chunk(data) if chunked else data)
            await writer.drain()
        if chunked:
            writer.write(http1.LAST_CHUNK)
            await writer.drain()
    except ConnectionError:
        # The target refused the rest; its answer says why.
        pass


class _Exchange:
    """One request to the target: owns the connection and the task that sends the body."""

    def __init__(self, call: Call, duplex: Duplex, path: str) -> None:
        self._reader, self._writer = duplex
        self.answer = http1.Answer(call.method, hijack=call.route.answer == "hijack")
        self._ready: list[bytes] = []
        fields = [(name, value) for name, value in call.headers.items() if name.lower() not in HOP_BY_HOP]
        upgrade = call.headers.get("Upgrade", "")
        fields += [("Connection", "Upgrade"), ("Upgrade", upgrade)] if upgrade else [("Connection", "close")]
        chunked = "chunked" in call.headers.get("Transfer-Encoding", "").lower()
        if chunked:
            fields = [(name, value) for name, value in fields if name.lower() != "content-length"]
            fields.append(("Transfer-Encoding", "chunked"))
        self._writer.write(http1.request_head(call.method, path, fields))
        self._sending = asyncio.create_task(_send_body(call, self._writer, chunked))

    async def read_head(self) -> None:
        """Waits until the answer's head is whole. Raises http1.ProtocolError or OSError."""
        while not self.answer.status:
            self._ready += await self._read()

    async def _read(self) -> list[bytes]:
        data = await self._reader.read(PIECE)
        if not data:
            self.answer.end()
        return self.answer.feed(data)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self.answer.complete:
                raise StopAsyncIteration
            try:
                self._ready += await self._read()
            except http1.ProtocolError as error:
                raise ConnectionResetError(str(error)) from error
        return self._ready.pop(0)

    async def relay(self, client: Duplex) -> None:
        """Both directions of an upgraded connection, until the target has nothing more to say."""
        await self._sending
        reader, writer = client
        if self.answer.rest:
            writer.write(self.answer.rest)
        upward = asyncio.create_task(_copy(reader, self._writer))
        try:
            await _copy(self._reader, writer)
        finally:
            await _end(upward)

    async def aclose(self) -> None:
        """Ends the exchange wherever it is; may be called again."""
        await _end(self._sending)
        self._writer.close()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until end of file, which is passed on where the transport can; a vanished end ends the copy."""
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        pass


def _headers(answer: http1.Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.fields if name.lower() not in HOP_BY_HOP}


async def forward(call: Call, connect: Connect, path: str | None = None, unreachable: CoveyError | None = None) -> Answer:
    """Sends ``call`` to what ``connect`` reaches and answers with its answer, streaming.

    ``path``: replaces the path and query. Raises ``unreachable`` (default: 503 in Docker's words for a node that is
    no manager) when the target cannot be connected, Unavailable when it breaks off before its head.
    """
    try:
        duplex = await connect()
    except OSError as error:
        raise (unreachable or Unavailable(NOT_A_MANAGER)) from error
    exchange = _Exchange(call, duplex, call.path if path is None else path)
    kept = False
    try:
        await exchange.read_head()
        answer = exchange.answer
        headers = _headers(answer)
        if answer.switched:
            upgrade = {"Connection": "Upgrade", "Upgrade": answer.headers.get("Upgrade", "tcp")}
            client = await call.take(answer.status, {**headers, **upgrade} if answer.status == 101 else headers)
            await exchange.relay(client)
            return Taken()
        kept = True
        return Stream(exchange, answer.headers.get("Content-Type", ""), answer.status, headers)
    except (http1.ProtocolError, ConnectionError) as error:
        raise Unavailable(f"the endpoint behind {call.path} broke off: {error}: try again") from error
    finally:
        if not kept:
            await exchange.aclose()
