"""Shim and zygote protocol: this release's daemon reads what the shims of every kept release say, and says what they read.

A shim outlives the daemon that started it, so a new daemon meets old shims. ``golden/shim/<release>/<op>.json`` is one
request and its answers (or events), ``*.record.json`` a file a shim leaves. Never change those of an earlier release.
What a shim of this release answers to kept requests is tests/runtime/test_golden_protocol.py, on a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.containers.shim_client import Shim, ShimSilent, exit_record
from worker.containers.shim_socket import ShimGone
from worker.containers.zygote_client import Zygote
from worker.runtime.errors import RuntimeFault
from worker.shim import records

GOLDEN = Path(__file__).parent / "golden" / "shim"
RELEASES = sorted(path.name for path in GOLDEN.iterdir())
LENGTH = struct.Struct(">I")


def golden(release: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    body = json.loads((GOLDEN / release / f"{name}.json").read_text())
    return body["request"], body["answers"]


@contextlib.asynccontextmanager
async def old_one(path: Path, release: str, *names: str) -> AsyncIterator[list[dict[str, Any]]]:
    """A socket that answers as kept: by op, in whatever order; yields the requests it was sent."""
    heard: list[dict[str, Any]] = []
    answers = {golden(release, name)[0]["op"]: golden(release, name)[1] for name in names}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(4))
                heard.append(json.loads(await reader.readexactly(length)))
                for answer in answers[heard[-1]["op"]]:
                    data = json.dumps(answer).encode()
                    writer.write(LENGTH.pack(len(data)) + data)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield heard
    finally:
        server.close()
        await server.wait_closed()


CALLS: dict[str, Callable[[Shim, dict[str, Any]], Awaitable[Any]]] = {
    "prepare": lambda shim, r: shim.prepare(r["template"]),
    "create-claim": lambda shim, r: shim.create(Path(r["bundle"]), log=r["log"], identity={"id": r["id"], "dir": r["dir"]}),
    "create": lambda shim, r: shim.create(Path(r["bundle"]), log=r["log"], stdin=r["stdin"], init=r["init"]),
    "start": lambda shim, r: shim.start(),
    "state": lambda shim, r: shim.state(),
    "pids": lambda shim, r: shim.pids(),
    "stats": lambda shim, r: shim.stats(),
    "update": lambda shim, r: shim.update(r["resources"]),
    "pause": lambda shim, r: shim.pause(),
    "resume": lambda shim, r: shim.resume(),
    "exec": lambda shim, r: shim.exec(r["exec_id"], r["process"], stdin=r["stdin"]),
    "exec_start": lambda shim, r: shim.exec_start(r["exec_id"]),
    "exec_state": lambda shim, r: shim.exec_state(r["exec_id"]),
    "kill": lambda shim, r: shim.kill(r["signal"], everything=r["all"], exec_id=r["exec_id"]),
    "delete": lambda shim, r: shim.delete(),
}
RESULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "prepare": lambda a: a["pid"],
    "create": lambda a: (a["init_pid"], a["init_start_time"]),
    "create-claim": lambda a: (a["init_pid"], a["init_start_time"]),
    "pids": lambda a: a["pids"],
    "exec": lambda a: a["pid"],
    "state": lambda a: a,
    "stats": lambda a: a,
    "exec_state": lambda a: a,
}


@pytest.mark.asyncio
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("op", CALLS)
async def test_the_daemon_asks_and_understands(tmp_path: Path, release: str, op: str) -> None:
    request, (answer,) = golden(release, op)
    async with old_one(tmp_path / "shim.sock", release, "hello", op) as heard:
        shim = await Shim.connect(tmp_path)
        assert heard[-1] == golden(release, "hello")[0]
        assert shim.hello == golden(release, "hello")[1][0]
        result = await CALLS[op](shim, request)
        assert {**heard[-1], **request} == heard[-1], "what that release needs is not said any more"
        assert result == RESULTS.get(op, lambda _: None)(answer)
        shim.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("release", RELEASES)
async def test_errors_events_and_attachments(tmp_path: Path, release: str) -> None:
    async with old_one(tmp_path / "shim.sock", release, "hello", "resize", "events", "attach") as heard:
        shim = await Shim.connect(tmp_path)
        request, (answer,) = golden(release, "resize")
        with pytest.raises(RuntimeFault) as caught:
            await shim.resize(request["height"], request["width"], exec_id=request["exec_id"])
        assert caught.value.as_dict() == answer["error"]
        request, wanted = golden(release, "events")
        events = shim.events()
        assert [await anext(events) for _ in wanted] == wanted
        await events.aclose()
        request, _ = golden(release, "attach")
        attachment = await shim.attach(exec_id=request["exec_id"])
        assert heard[-1] == request
        attachment.close()
        shim.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("release", RELEASES)
async def test_the_zygote(tmp_path: Path, release: str) -> None:
    names = ("hello", "ping", "fork_shim", "stop")
    async with old_one(tmp_path / "z.sock", release, *(f"zygote-{name}" for name in names)) as heard:
        zygote = await Zygote.connect(tmp_path / "z.sock")
        assert zygote.pid == golden(release, "zygote-hello")[1][0]["pid"]
        await zygote.ping()
        request, (answer,) = golden(release, "zygote-fork_shim")
        forked = await zygote.fork_shim(request["id"], Path(request["dir"]), request["cgroup_parent"])
        assert forked == (answer["pid"], answer["start_time"])
        await zygote.stop()
        assert heard == [golden(release, f"zygote-{name}")[0] for name in names]


@contextlib.contextmanager
def zygote_with_containers(path: Path, release: str) -> Iterator[list[dict[str, Any]]]:
    """A zygote as kept that forks shims with their containers: those answer, and tell, on the connection that came along."""
    heard: list[dict[str, Any]] = []

    def message(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
        data, fds, _, _ = socket.recv_fds(sock, 65536, 1)
        return json.loads(data[4:]), fds

    def say(sock: socket.socket, answers: list[dict[str, Any]]) -> None:
        for answer in answers:
            data = json.dumps(answer).encode()
            sock.sendall(LENGTH.pack(len(data)) + data)

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            heard.append(message(client)[0])
            say(client, [{**golden(release, "zygote-hello")[1][0], "containers": True}])
            request, fds = message(client)
            heard.append(request)
            with socket.socket(fileno=fds[0]) as line:
                say(line, golden(release, "zygote-fork_container")[1])
                heard.append(message(line)[0])
                say(line, golden(release, "start-and-tell")[1])
                say(line, golden(release, "events")[1])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        serving = threading.Thread(target=serve)
        serving.start()
        yield heard
        serving.join(10)


@pytest.mark.asyncio
@pytest.mark.parametrize("release", RELEASES)
async def test_a_shim_with_its_container(tmp_path: Path, release: str) -> None:
    request, (answer,) = golden(release, "zygote-fork_container")
    with zygote_with_containers(tmp_path / "z.sock", release) as heard:
        zygote = await Zygote.connect(tmp_path / "z.sock")
        assert zygote.containers
        wanted = {key: request[key] for key in ("bundle", "log", "init")}
        line = await zygote.fork_container(request["id"], Path(request["dir"]), wanted, request["cgroup_parent"])
        shim = Shim.newborn(tmp_path)
        launching = shim.launching(line)
        assert await launching.created() == (answer["init_pid"], answer["init_start_time"])
        assert shim.identity == (answer["pid"], answer["start_time"])
        await launching.started()
        events = shim.events()
        told = golden(release, "events")[1]
        assert [await anext(events) for _ in told] == told
        await events.aclose()
        zygote.close()
    assert heard[1:] == [request, golden(release, "start-and-tell")[0]]


@pytest.mark.asyncio
@pytest.mark.parametrize("release", RELEASES)
async def test_an_older_zygote_is_asked_for_shims_alone(tmp_path: Path, release: str) -> None:
    async with old_one(tmp_path / "z.sock", release, "zygote-hello"):
        assert not (await Zygote.connect(tmp_path / "z.sock")).containers


@pytest.mark.asyncio
async def test_a_shim_of_a_later_version_is_named(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = LENGTH.unpack(await reader.readexactly(4))
        await reader.readexactly(length)
        data = json.dumps({"version": 99, "id": "later", "pid": 1}).encode()
        writer.write(LENGTH.pack(len(data)) + data)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "shim.sock"):
        with pytest.raises(RuntimeFault, match=r"speaks version 99.*later"):
            await Shim.connect(tmp_path)


@pytest.mark.asyncio
async def test_a_shim_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Nor one whose queue is full of those who have given up."""
    records.write(str(tmp_path), "shim.json", {"pid": 4711}, durable=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "shim.sock"))
        listener.listen(1)
        for _ in range(4):
            with pytest.raises(ShimSilent, match="its shim, process 4711, does not answer: let it"):
                await Shim.connect(tmp_path, 0.02)
        waiting = asyncio.create_task(Shim.connect(tmp_path, None))
        await asyncio.sleep(0)
    # It has ended.
    with pytest.raises(ShimGone):
        await waiting


@pytest.mark.parametrize("release", RELEASES)
def test_records_of_shims(tmp_path: Path, release: str) -> None:
    for name in ("exit", "shim"):
        (tmp_path / f"{name}.json").write_bytes((GOLDEN / release / f"{name}.record.json").read_bytes())
    ended = exit_record(tmp_path)
    assert ended is not None
    assert (ended["id"], ended["exit_code"], ended["signal"], ended["oom"]) == ("c0ffee", 137, 9, True)
    assert (ended["started_at"], ended["finished_at"]) == (1700000000.25, 1700000009.5)
    shim = records.read(str(tmp_path), "shim.json")
    assert shim is not None
    assert (shim["pid"], shim["start_time"], shim["cgroup"]) == (4711, 817200, "/covey/c0ffee")
