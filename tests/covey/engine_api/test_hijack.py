"""Taken-over connections: half-close in both directions, straight, over TLS, and through the forwarder."""

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager

import docker
import pytest

from covey.engine_api import aio, framing, listeners
from covey.engine_api.answers import Empty, Stream, Taken, created
from covey.engine_api.light import Client
from covey.engine_api.listeners import listen_tls, listen_unix
from covey.engine_api.proxy import connect_unix, forward, node_path
from covey.engine_api.server import Server
from covey.errors import NotFound, Unavailable

DEADLINE = 20


async def reverse(call):
    """Answers only once stdin has ended, so that an answer proves the half-close arrived."""
    request = await call.json(required=False)
    if request.get("Detach"):
        return Empty(200)
    if call.params["id"] == "none":
        raise NotFound("No such exec instance: none")
    reader, writer = await call.hijack()
    data = await reader.read()
    writer.write(data[::-1])
    return Taken()


async def echo(call):
    reader, writer = await call.hijack()
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    return Taken()


HANDLERS = {"exec_start": reverse, "container_attach": echo}


@asynccontextmanager
async def served(kind, socket_path, certificates):
    """The arguments of a light client for an endpoint reached in the way ``kind`` says."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listen_unix(Server(HANDLERS), socket_path))
        if kind == "unix":
            yield f"unix://{socket_path}", {}
            return

        async def through(call):
            path = node_path(call) if call.route.name == "node_forward" else None
            return await forward(call, connect_unix(socket_path), path)

        front = Server({}, dict.fromkeys(("node", "cluster", "merged"), through))
        if kind == "proxy":
            await stack.enter_async_context(listen_unix(front, socket_path + "2"))
            yield f"unix://{socket_path}2", {}
            return
        if kind == "prefix":
            port = await stack.enter_async_context(listeners.listen_plain(front, "127.0.0.1", 0, insecure=True))
            yield f"tcp://127.0.0.1:{port}/_node/w1", {}
            return
        context = listeners.tls_context(*(certificates / name for name in ("cert.pem", "key.pem", "ca.pem")))
        server = Server(HANDLERS) if kind == "tls" else front
        port = await stack.enter_async_context(listen_tls(server, "127.0.0.1", 0, context))
        yield f"tcp://127.0.0.1:{port}", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}


KINDS = ("unix", "proxy", "prefix", "tls", "tls proxy")


def drain(connection):
    parts = []
    while data := connection.receive():
        parts.append(data)
    return b"".join(parts)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS)
async def test_half_close_reaches_the_handler_and_its_answer_comes_back(kind, socket_path, certificates):
    data = os.urandom(1_500_000)

    def use(host, environ):
        with Client(host, environ=environ) as client:
            connection = client.hijack("/exec/x/start", json={"Detach": False})
            connection.send(data)
            connection.close_write()
            answer = drain(connection)
            connection.close()
            with pytest.raises(NotFound, match="No such exec instance"):
                client.hijack("/exec/none/start", json={})
            assert client.post("/exec/x/start", json={"Detach": True}) is None
            return answer

    async with asyncio.timeout(DEADLINE), served(kind, socket_path, certificates) as (host, environ):
        assert await asyncio.to_thread(use, host, environ) == data[::-1]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS)
async def test_both_directions_interleave(kind, socket_path, certificates):
    def use(host, environ):
        with Client(host, environ=environ) as client:
            connection = client.hijack("/containers/x/attach")
        for number in range(20):
            message = f"line {number}\n".encode()
            connection.send(message)
            got = b""
            while len(got) < len(message):
                got += connection.receive()
            assert got == message
        connection.close_write()
        assert connection.receive() == b""
        connection.close()

    async with asyncio.timeout(DEADLINE), served(kind, socket_path, certificates) as (host, environ):
        await asyncio.to_thread(use, host, environ)


@pytest.mark.asyncio
async def test_heads_of_new_and_old_clients(socket_path):
    async def head(*fields):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        writer.write("\r\n".join(["POST /v1.42/containers/x/attach HTTP/1.1", "Host: x", *fields, "", ""]).encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(b"raw")
        assert await reader.readexactly(3) == b"raw"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        return answer

    async with asyncio.timeout(DEADLINE), listen_unix(Server(HANDLERS), socket_path):
        new = await head("Connection: Upgrade", "Upgrade: tcp")
        assert new.startswith("HTTP/1.1 101 UPGRADED\r\n")
        assert "Connection: Upgrade\r\nUpgrade: tcp\r\n" in new
        assert "Content-Type: application/vnd.docker.multiplexed-stream\r\n" in new
        assert (await head()).startswith("HTTP/1.1 200 OK\r\n")


@pytest.mark.asyncio
async def test_aio_client_hijacks(socket_path):
    async with asyncio.timeout(DEADLINE), listen_unix(Server(HANDLERS), socket_path):
        client = aio.Client(connect_unix(socket_path))
        async with client.hijack("exec_start", {"id": "x"}, json={}) as (reader, writer):
            writer.write(b"abc")
            writer.write_eof()
            assert await reader.read() == b"cba"
        with pytest.raises(NotFound, match="No such exec"):
            async with client.hijack("exec_start", {"id": "none"}, json={}):
                pass


@pytest.mark.asyncio
async def test_nothing_is_left_of_a_taken_connection(socket_path):
    async with asyncio.timeout(DEADLINE), listen_unix(Server(HANDLERS), socket_path):
        before = asyncio.all_tasks()
        client = aio.Client(connect_unix(socket_path))
        for _ in range(3):
            async with client.hijack("container_attach", {"id": "x"}) as (reader, writer):
                writer.write(b"a")
                assert await reader.read(1) == b"a"
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


@pytest.mark.asyncio
async def test_unreachable_manager_is_503_in_dockers_words(socket_path):
    async def through(call):
        return await forward(call, connect_unix(socket_path + ".absent"))

    async with listen_unix(Server({}, {"cluster": through}), socket_path):
        with pytest.raises(Unavailable, match=r'This node is not a swarm manager\. Use "docker swarm init"'):
            await aio.Client(connect_unix(socket_path)).call("node_list")


@pytest.mark.asyncio
async def test_forwarder_keeps_status_body_and_pressure(socket_path):
    sent = 0

    async def archive(call):
        async def chunks():
            nonlocal sent
            for _ in range(400):
                sent += 65536
                yield b"x" * 65536

        return Stream(chunks(), "application/x-tar", headers={"X-Docker-Container-Path-Stat": "e30="})

    async def put(call):
        return [sum([len(chunk) async for chunk in call.chunks])]

    async def through(call):
        return await forward(call, connect_unix(socket_path))

    async def upload():
        for _ in range(50):
            yield b"y" * 65536

    target = Server({"container_archive_get": archive, "container_archive_put": put})
    async with asyncio.timeout(DEADLINE), listen_unix(target, socket_path):
        async with listen_unix(Server({}, {"merged": through}), socket_path + "2"):
            client = aio.Client(connect_unix(socket_path + "2"))
            async with client.stream("container_archive_get", {"id": "x"}) as response:
                assert response.headers["x-docker-container-path-stat"] == "e30="
                assert response.headers["content-type"] == "application/x-tar"
                held = -1
                while held != sent:
                    held = sent
                    await asyncio.sleep(0.05)
                assert held < 20 * 1024 * 1024, "the forwarder takes what the client does not read"
                assert len(await response.read()) == 400 * 65536
            async with client.stream("container_archive_put", {"id": "x"}, body=upload()) as response:
                assert await response.read() == b"[%d]\n" % (50 * 65536)


@pytest.mark.asyncio
async def test_a_client_that_leaves_ends_the_forwarded_call_too(socket_path):
    started, ended = asyncio.Event(), asyncio.Event()

    async def events(call):
        async def chunks():
            try:
                yield b"{}\n"
                started.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

        return Stream(chunks())

    async def through(call):
        return await forward(call, connect_unix(socket_path))

    async with asyncio.timeout(DEADLINE), listen_unix(Server({"system_events": events}), socket_path):
        async with listen_unix(Server({}, {"merged": through}), socket_path + "2"):
            async with aio.Client(connect_unix(socket_path + "2")).stream("system_events"):
                await started.wait()
            await ended.wait()


@pytest.mark.asyncio
@pytest.mark.parametrize("version", ["1.41", "1.52"])
async def test_docker_sdk_runs_a_command_and_follows_a_log(socket_path, version):
    async def inspect(call):
        return {"Id": "x" * 64, "Name": "/x", "Config": {"Tty": False}}

    async def create(call):
        return created({"Id": (await call.json())["Cmd"][0]})

    async def start(call):
        assert (await call.json())["Detach"] is False
        _, writer = await call.hijack()
        writer.write(framing.encode(framing.STDOUT, b"out") + framing.encode(framing.STDERR, b"err"))
        return Taken()

    async def state(call):
        return {"ID": call.params["id"], "ExitCode": 3, "Running": False}

    async def logs(call):
        async def chunks():
            yield framing.encode(framing.STDOUT, b"one\n")
            yield framing.encode(framing.STDERR, b"two\n")

        return Stream(chunks(), framing.content_type(call.version, tty=False))

    handlers = {
        "container_inspect": inspect,
        "exec_create": create,
        "exec_start": start,
        "exec_inspect": state,
        "container_logs": logs,
    }

    def use():
        client = docker.DockerClient(base_url=f"unix://{socket_path}", version=version)
        try:
            container = client.containers.get("x")
            done = container.exec_run(["ls"], demux=True)
            return done.exit_code, done.output, container.logs(), list(container.logs(stream=True, follow=True))
        finally:
            client.close()

    async with asyncio.timeout(DEADLINE), listen_unix(Server(handlers), socket_path):
        assert await asyncio.to_thread(use) == (3, (b"out", b"err"), b"one\ntwo\n", [b"one\n", b"two\n"])
