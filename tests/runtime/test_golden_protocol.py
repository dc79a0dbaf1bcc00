"""A shim of this release answers the requests of every kept release: a daemon that was not yet replaced still drives it.

The files are those of tests/contract/golden/shim; an answer holds at least what that release's held, of the same types.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from .conftest import wait_until

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
GOLDEN = Path(__file__).parents[1] / "contract/golden/shim"
LENGTH = struct.Struct(">I")
LIFE = (
    "create", "start", "hello", "state", "pids", "stats", "update", "pause", "resume", "exec", "exec_start", "exec_state",
    "resize", "unknown", "kill", "events", "delete",
)  # fmt: skip
VOLATILE = {"id", "exit", "signal", "max_usage", "limit", "stat", "blkio", "per_cpu_ns", "message", "pids"}


class Talk:
    """One connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, path: Path) -> Talk:
        return cls(*await asyncio.open_unix_connection(path))

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(request).encode()
        self.writer.write(LENGTH.pack(len(data)) + data)
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            (length,) = LENGTH.unpack(await self.reader.readexactly(4))
            return json.loads(await self.reader.readexactly(length))


def holds(answer: Any, kept: Any, where: str) -> None:
    """Every key of ``kept`` is in ``answer``, and of its type."""
    if isinstance(kept, dict):
        for key, value in kept.items():
            assert key in answer, f"{where} lacks {key}: {answer}"
            if key not in VOLATILE:
                holds(answer[key], value, f"{where}.{key}")
    elif kept is not None:
        assert isinstance(answer, type(kept)), f"{where} is {answer!r}, was {kept!r}"


@pytest.mark.parametrize("release", sorted(path.name for path in GOLDEN.iterdir()))
async def test_a_whole_life_in_the_words_of(boxes, release):
    shim, directory, _ = await boxes.shim()
    (directory / "config.json").write_text(json.dumps(boxes.bundle(["sleep", "60"], directory.name)))
    talk = await Talk.open(directory / "shim.sock")
    # A shim that holds nothing ends with its last client, so that one has been heard before the other goes.
    await talk.ask({"op": "hello", "version": 1})
    shim.close()
    for op in LIFE:
        kept = json.loads((GOLDEN / release / f"{op}.json").read_text())
        request, answers = kept["request"], kept["answers"]
        if op == "create":
            request = {**request, "bundle": str(directory), "log": {**request["log"], "path": str(directory / "log")}}
        if op == "events":
            talk.writer.close()
            told = await Talk.open(directory / "shim.sock")
            answer, answers = await told.ask(request), answers[-1:]
            assert (answer["code"], answer["signal"]) == (137, 9)
            told.writer.close()
            talk = await Talk.open(directory / "shim.sock")
        else:
            answer = await talk.ask(request)
        assert ("error" in answer) == ("error" in answers[0]), f"{op}: {answer}"
        holds(answer, answers[0], op)
        if "error" in answer:
            assert answer["error"]["code"] == answers[0]["error"]["code"]
        if op == "exec_start":
            states = [await talk.ask({"op": "exec_state", "exec_id": "e1"})]
            while states[-1]["running"]:
                states.append(await talk.ask({"op": "exec_state", "exec_id": "e1"}))
    talk.writer.close()
    await wait_until("the socket gone", lambda: not (directory / "shim.sock").exists())


@pytest.mark.parametrize("release", sorted(path.name for path in GOLDEN.iterdir()))
async def test_a_shim_with_its_container_in_the_words_of(boxes, zygote_socket, release):
    directory = boxes.base / f"with-{release}"
    directory.mkdir(mode=0o700)
    (directory / "config.json").write_text(json.dumps(boxes.bundle(["sleep", "0.2"], directory.name)))
    kept = json.loads((GOLDEN / release / "zygote-fork_container.json").read_text())
    place = {"id": directory.name, "dir": str(directory), "bundle": str(directory), "cgroup_parent": boxes.parent}
    request = {**kept["request"], **place, "log": {**kept["request"]["log"], "path": str(directory / "log")}}
    data = json.dumps(request).encode()
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as zygote, theirs:
        zygote.connect(str(zygote_socket))
        socket.send_fds(zygote, [LENGTH.pack(len(data)) + data], [theirs.fileno()])
    talk = Talk(*await asyncio.open_unix_connection(sock=ours))
    holds(await talk.hear(), kept["answers"][0], "fork_container")
    kept = json.loads((GOLDEN / release / "start-and-tell.json").read_text())
    assert await talk.ask(kept["request"]) == kept["answers"][0]
    event = await talk.hear()
    assert (event["type"], event["code"]) == ("exit", 0)
    talk.writer.close()
    talk = await Talk.open(directory / "shim.sock")
    assert await talk.ask({"op": "delete"}) == {}
    talk.writer.close()
    await wait_until("the socket gone", lambda: not (directory / "shim.sock").exists())


async def test_attach_in_kept_words(boxes):
    for release in sorted(path.name for path in GOLDEN.iterdir()):
        request = json.loads((GOLDEN / release / "attach.json").read_text())["request"]
        box = await boxes.start(["sleep", "60"])
        await box.shim.exec(request["exec_id"], {"cwd": "/", "args": ["echo", "x"], "env": ["PATH=/bin"]})
        talk = await Talk.open(box.directory / "shim.sock")
        assert await talk.ask(request) == {}
        await box.shim.exec_start(request["exec_id"])
        async with asyncio.timeout(10):
            assert await talk.reader.read() == b"\x01\0\0\0\0\0\0\x02x\n"
        talk.writer.close()
