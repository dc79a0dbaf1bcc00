"""The chassis served for real on a Unix socket, spoken to by our clients, the docker SDK and raw bytes."""

import asyncio
import logging

import docker
import pytest

from covey.engine_api import aio
from covey.engine_api.answers import Empty, Stream, created
from covey.engine_api.framing import Lines, line
from covey.engine_api.light import Client
from covey.engine_api.listeners import listen_unix
from covey.engine_api.proxy import connect_unix
from covey.engine_api.server import Server
from covey.errors import Conflict, NotFound, NotModified

DEADLINE = 10


async def raw(path, request, until_close=True):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    data = await asyncio.wait_for(reader.read() if until_close else reader.readuntil(b"\r\n\r\n"), DEADLINE)
    writer.close()
    return data


def get(target, *headers, method="GET"):
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


@pytest.mark.asyncio
async def test_docker_sdk_pings_and_negotiates(socket_path):
    async def version(call):
        return {"ApiVersion": "1.52", "Version": "0.1.0"}

    async def listing(call):
        assert call.version != "1.24"
        return []

    def use():
        client = docker.DockerClient(base_url=f"unix://{socket_path}", version="auto")
        try:
            return client.ping(), client.containers.list(all=True)
        finally:
            client.close()

    async with listen_unix(Server({"system_version": version, "container_list": listing}), socket_path):
        assert await asyncio.to_thread(use) == (True, [])


@pytest.mark.asyncio
async def test_identity_headers_are_on_every_answer(socket_path):
    async with listen_unix(Server({}, release="9.9"), socket_path):
        for target in ("/_ping", "/nope", "/v1.99/info", "/info"):
            head = (await raw(socket_path, get(target))).decode().lower()
            for field in ("api-version: 1.52", "ostype: linux", "docker-experimental: false", "covey/9.9 (linux)"):
                assert field in head, (target, field)


@pytest.mark.asyncio
async def test_ping_by_head_has_no_body(socket_path):
    async with listen_unix(Server({}), socket_path):
        data = await raw(socket_path, get("/_ping", method="HEAD"))
        assert data.startswith(b"HTTP/1.1 200")
        assert data.endswith(b"\r\n\r\n")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/nope", 404, "page not found"),
        ("PATCH", "/nodes/x", 405, "use DELETE, GET"),
        ("GET", "/v1.60/info", 400, "client version 1.60 is too new. Maximum supported API version is 1.52"),
        ("GET", "/v1.24/configs", 400, "requires minimum API version 1.30"),
        ("GET", "/info", 501, "system_info"),
        ("POST", "/covey/bootstrap", 404, "page not found"),
        ("GET", "/nodes/x", 404, "node x not found"),
        ("DELETE", "/networks/x", 409, "in use"),
    ],
)
async def test_error_bodies(socket_path, method, target, status, words):
    async def missing(call):
        raise NotFound(f"node {call.params['id']} not found")

    async def busy(call):
        raise Conflict("network is in use")

    async with listen_unix(Server({"node_inspect": missing, "network_delete": busy}), socket_path):
        head, _, body = (await raw(socket_path, get(target, method=method))).partition(b"\r\n\r\n")
        assert head.split()[1] == str(status).encode()
        assert words in body.decode()
        assert body.startswith(b'{"message":"')


@pytest.mark.asyncio
async def test_a_fault_is_500_with_a_number_that_the_log_has_once(socket_path, caplog):
    async def broken(call):
        raise ZeroDivisionError("secret detail")

    with caplog.at_level(logging.ERROR, "covey.engine_api.server"):
        async with listen_unix(Server({"system_info": broken}), socket_path):
            answer = (await raw(socket_path, get("/info"))).decode()
    number = answer.partition("internal error ")[2][:8]
    assert answer.startswith("HTTP/1.1 500")
    assert "secret detail" not in answer
    assert [record for record in caplog.records if number in record.getMessage() and record.exc_info]
    assert len(caplog.records) == 1


@pytest.mark.asyncio
async def test_clients_and_answers(socket_path):
    async def create(call):
        return created({"ID": (await call.json())["Name"], "Warnings": [call.text("x")]})

    async def start(call):
        raise NotModified("container is running")

    async def remove(call):
        return Empty(204 if call.boolean("force") else 200)

    handlers = {"service_create": create, "container_start": start, "container_delete": remove}

    def use_light():
        with Client(f"unix://{socket_path}", environ={}) as client:
            assert client.version == "1.52"
            assert client.post("/services/create", {"x": "a b/ä"}, {"Name": "web"}) == {"ID": "web", "Warnings": ["a b/ä"]}
            assert client.post("/containers/x/start") is None
            assert client.delete("/containers/x", {"force": True}) is None
            with pytest.raises(NotFound, match="page not found"):
                client.get("/nope")

    async with listen_unix(Server(handlers), socket_path):
        await asyncio.to_thread(use_light)
        client = aio.Client(connect_unix(socket_path))
        assert await client.call("service_create", json={"Name": "db"}) == {"ID": "db", "Warnings": [""]}
        assert await client.call("container_start", {"id": "x"}) is None
        assert await client.call("container_delete", {"id": "x"}) is None
        with pytest.raises(Exception, match="node_list") as error:
            await client.call("node_list")
        assert error.value.status == 501


@pytest.mark.asyncio
async def test_stream_sends_its_head_and_each_chunk_at_once(socket_path):
    released = asyncio.Event()

    async def events(call):
        async def chunks():
            await released.wait()
            yield line({"n": 1})
            yield line({"n": 2})

        return Stream(chunks())

    async with listen_unix(Server({"system_events": events}), socket_path):
        client = aio.Client(connect_unix(socket_path))
        async with asyncio.timeout(DEADLINE), client.stream("system_events") as response:
            assert response.status == 200
            released.set()
            assert [value async for value in response.lines()] == [{"n": 1}, {"n": 2}]
        released.set()

        def use():
            with Client(f"unix://{socket_path}", environ={}) as light:
                return list(light.lines("GET", "/events"))

        values = await asyncio.to_thread(use)
        assert values == [{"n": 1}, {"n": 2}]


@pytest.mark.asyncio
async def test_an_error_within_a_stream_cuts_the_connection(socket_path, caplog):
    async def events(call):
        async def chunks():
            yield b"{}\n"
            raise ZeroDivisionError

        return Stream(chunks())

    async with listen_unix(Server({"system_events": events}), socket_path):
        client = aio.Client(connect_unix(socket_path))
        with pytest.raises(Exception, match="lost the connection"):
            async with client.stream("system_events") as response:
                await response.read()
    assert "fault" in caplog.text


@pytest.mark.asyncio
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_leaves_cancels_the_handler(socket_path, streaming):
    started, ended = asyncio.Event(), asyncio.Event()

    async def forever():
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def events(call):
        async def chunks():
            await forever()
            yield b""

        return Stream(chunks()) if streaming else await forever()

    async with listen_unix(Server({"system_events": events}), socket_path):
        _, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(get("/events"))
        await asyncio.wait_for(started.wait(), DEADLINE)
        writer.close()
        await asyncio.wait_for(ended.wait(), DEADLINE)


@pytest.mark.asyncio
async def test_upload_streams_and_expect_is_answered(socket_path):
    async def load(call):
        sizes = [len(chunk) async for chunk in call.chunks]

        async def chunks():
            yield line({"size": sum(sizes), "most": max(sizes)})

        return Stream(chunks())

    piece = b"x" * 100_000

    def use():
        with Client(f"unix://{socket_path}", environ={}) as client:
            return list(client.lines("POST", "/images/load", body=iter([piece] * 80)))

    async with listen_unix(Server({"image_load": load}), socket_path):
        (value,) = await asyncio.to_thread(use)
        assert value["size"] == 8_000_000
        assert value["most"] <= 1_000_000
        request = get("/images/load", "Expect: 100-continue", "Content-Length: 1", method="POST")
        assert b"100 Continue" in await raw(socket_path, request, until_close=False)


@pytest.mark.asyncio
async def test_refused_upload_still_shows_its_reason(socket_path):
    def use():
        with Client(f"unix://{socket_path}", environ={}) as client:
            client.post("/images/load", body=(b"x" * 65536 for _ in range(400)))

    async with listen_unix(Server({}), socket_path):
        with pytest.raises(Exception, match="image_load"):
            await asyncio.wait_for(asyncio.to_thread(use), DEADLINE)


@pytest.mark.asyncio
async def test_peer_is_the_kernels_word(socket_path):
    import os

    async def info(call):
        return {"uid": call.peer.uid, "pid": call.peer.pid, "kind": call.peer.kind}

    async with listen_unix(Server({"system_info": info}), socket_path):
        lines = Lines()
        body = (await raw(socket_path, get("/info"))).partition(b"\r\n\r\n")[2]
        assert lines.feed(body) == [{"uid": os.getuid(), "pid": os.getpid(), "kind": "unix"}]
