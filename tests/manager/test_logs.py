"""Logs of many containers as one stream: in order of time, or as they come; what cannot be read is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from covey.engine_api.aio import Client
from covey.engine_api.framing import SYSTEM_ERROR, Decoder, Frame, encode
from covey.errors import Unavailable
from manager.logs import LogQuery, Source, followed, merged

pytestmark = pytest.mark.asyncio
BOTH = LogQuery(stdout=True, stderr=True)


def source(name: str, tty: bool = False) -> Source:
    return Source(name, f"c-{name}", f"t-{name}", {"com.docker.swarm.task.id": f"t {name}"}, tty)


class Nodes:
    """Containers' logs by node, served over loopback connections; an asyncio.Event in a log is waited for."""

    def __init__(self, logs: dict[str, list[bytes | asyncio.Event]]) -> None:
        self.logs = logs
        self.asked: list[str] = []
        self.open = 0

    def reach(self, node_id: str) -> Client:
        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            if node_id not in self.logs:
                raise Unavailable(f"node {node_id} is not connected")
            server = await asyncio.start_server(self._server(node_id), "127.0.0.1", 0)
            try:
                return await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            finally:
                server.close()

        return Client(connect, name=node_id)

    def _server(self, node_id: str) -> Callable[..., object]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.open += 1
            try:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                for piece in self.logs[node_id]:
                    if isinstance(piece, asyncio.Event):
                        gone = asyncio.ensure_future(reader.read())
                        waiting = asyncio.ensure_future(piece.wait())
                        await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
                        gone.cancel()
                        waiting.cancel()
                    else:
                        writer.write(piece)
                        await writer.drain()
            except OSError:
                pass
            finally:
                self.open -= 1
                writer.close()

        return serve


def line(second: int, text: str, stream: int = 1) -> bytes:
    return encode(stream, f"2024-01-01T00:00:{second:02d}Z {text}\n".encode())


async def frames(chunks: AsyncIterator[bytes]) -> list[Frame]:
    return Decoder().feed(b"".join([chunk async for chunk in chunks]))


async def test_lines_of_several_nodes_come_in_order_of_time() -> None:
    nodes = Nodes({"a": [line(1, "one"), line(4, "four")], "b": [line(2, "two"), line(3, "three", 2)], "c": []})
    got = await frames(merged([source("a"), source("b"), source("c")], nodes.reach, BOTH, False))
    assert [(frame.stream, frame.payload) for frame in got] == [(1, b"one\n"), (1, b"two\n"), (2, b"three\n"), (1, b"four\n")]
    assert all("timestamps=1" in asked and "/c-" in asked for asked in nodes.asked)


async def test_timestamps_and_details_are_told_on_request() -> None:
    nodes = Nodes({"a": [line(1, "one")]})
    query = LogQuery(stdout=True, stderr=True, timestamps=True, details=True)
    got = await frames(merged([source("a")], nodes.reach, query, False))
    assert got[0].payload == b"2024-01-01T00:00:01Z com.docker.swarm.task.id=t+a one\n"


async def test_what_cannot_be_read_is_said_at_the_end_and_costs_no_other_line() -> None:
    nodes = Nodes({"a": [line(1, "one")]})
    got = await frames(merged([source("gone"), source("a")], nodes.reach, BOTH, False))
    assert got[0].payload == b"one\n"
    assert got[1].stream == SYSTEM_ERROR
    assert b"task t-gone on node gone: node gone is not connected" in got[1].payload


async def test_a_terminal_is_not_framed() -> None:
    nodes = Nodes({"a": [b"2024-01-01T00:00:01Z one\r\n2024-01-01T00:00:0", b"2Z two"]})
    raw = b"".join([chunk async for chunk in merged([source("a", tty=True)], nodes.reach, BOTH, True)])
    assert raw == b"one\r\ntwo"


async def test_followed_logs_take_in_containers_that_come_and_end_with_the_reader() -> None:
    hold = asyncio.Event()
    nodes = Nodes({"a": [line(1, "one"), hold], "b": [line(2, "two"), hold]})
    coming: asyncio.Queue[Source] = asyncio.Queue()

    async def sources() -> AsyncIterator[Source]:
        while True:
            yield await coming.get()

    query = LogQuery(stdout=True, stderr=True, follow=True)
    stream = followed(sources(), nodes.reach, query, False)
    coming.put_nowait(source("a"))
    assert Decoder().feed(await asyncio.wait_for(anext(stream), 5))[0].payload == b"one\n"
    coming.put_nowait(source("b"))
    assert Decoder().feed(await asyncio.wait_for(anext(stream), 5))[0].payload == b"two\n"
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while nodes.open:
            await asyncio.sleep(0.01)


async def test_a_followed_task_ends_when_its_log_does() -> None:
    nodes = Nodes({"a": [line(1, "one")]})

    async def only() -> AsyncIterator[Source]:
        yield source("a")

    got = await asyncio.wait_for(frames(followed(only(), nodes.reach, BOTH, False)), 5)
    assert [frame.payload for frame in got] == [b"one\n"]
