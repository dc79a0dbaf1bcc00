"""The streams of pulls and pushes: when an error is a status, when it is a line, and what a client that hangs up ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.engine_api.listeners import listen_unix
from covey.engine_api.server import Server
from covey.errors import InvalidArgument, NotFound
from worker.images.progress import Listener
from worker.routes import registry

pytestmark = pytest.mark.asyncio


async def read(stream: Any) -> list[dict[str, Any]]:
    return [json.loads(line) async for line in stream.chunks]


async def test_an_error_before_the_first_line_is_the_answer() -> None:
    async def work(listener: Listener) -> None:
        raise NotFound("no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        await registry.told(work)


async def test_an_error_after_the_first_line_is_the_last_line() -> None:
    async def work(listener: Listener) -> None:
        listener({"status": "one"})
        await asyncio.sleep(0)
        raise NotFound("no such thing")

    assert await read(await registry.told(work)) == [
        {"status": "one"},
        {"errorDetail": {"message": "no such thing"}, "error": "no such thing"},
    ]


async def test_work_without_a_line_is_an_empty_stream() -> None:
    async def work(listener: Listener) -> None:
        return

    assert await read(await registry.told(work)) == []


async def test_a_client_that_hangs_up_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work(listener: Listener) -> None:
        listener({"status": "one"})
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    stream = await registry.told(work)
    assert json.loads(await anext(stream.chunks)) == {"status": "one"}
    await stream.chunks.aclose()  # type: ignore[attr-defined]
    assert ended.is_set()


async def test_a_client_that_hangs_up_before_the_first_line_ends_the_work() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(listener: Listener) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    call = asyncio.create_task(registry.told(work))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


@pytest.mark.parametrize(
    ("name", "tag", "expected", "every"),
    [
        ("app", "1", "docker.io/library/app:1", False),
        ("app:2", "", "docker.io/library/app:2", False),
        ("app:2", "1", "docker.io/library/app:1", False),
        ("app", "", "docker.io/library/app", True),
        ("app", f"sha256:{'a' * 64}", f"docker.io/library/app@sha256:{'a' * 64}", False),
        (f"app@sha256:{'a' * 64}", "1", f"docker.io/library/app@sha256:{'a' * 64}", False),
        (f"app:1@sha256:{'a' * 64}", "", f"docker.io/library/app@sha256:{'a' * 64}", False),
    ],
)
async def test_what_is_to_be_pulled(name: str, tag: str, expected: str, every: bool) -> None:
    named, all_tags = registry._wanted(name, tag)
    assert (str(named), all_tags) == (expected, every)


@pytest.mark.parametrize(("name", "tag"), [("", ""), ("A B", "1"), ("app", "a b"), ("app", "sha256:12")])
async def test_what_names_no_image_is_refused(name: str, tag: str) -> None:
    with pytest.raises(InvalidArgument):
        registry._wanted(name, tag)


@pytest.mark.parametrize("lines", [0, 1])
async def test_the_connection_s_end_ends_the_work(tmp_path: Path, lines: int) -> None:
    """Through the real server: the docker command that is interrupted closes its connection, and that is all it does."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(listener: Listener) -> None:
        for number in range(lines):
            listener({"status": str(number)})
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def create(call: Call) -> Answer:
        await call.read()
        return await registry.told(work)

    async with listen_unix(Server({"image_create": create}), tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"POST /v1.41/images/create?fromImage=x HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n")
        await asyncio.wait_for(begun.wait(), 10)
        if lines:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)
