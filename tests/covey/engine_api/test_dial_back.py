"""A connection that was dialled the other way round: the dialler serves HTTP, the listener calls it, half-close holds."""

import asyncio
import ssl

import pytest

from covey.engine_api import aio, tls_pump
from covey.engine_api.answers import Taken
from covey.engine_api.listeners import listen_unix, serve_connection, tls_context
from covey.engine_api.proxy import connect_unix, forward
from covey.engine_api.server import Server
from covey.engine_api.tls import TlsStream


async def reverse(call):
    reader, writer = await call.hijack()
    data = await reader.read()
    writer.write(data[::-1])
    return Taken()


async def info(call):
    return {"kind": call.peer.kind, "known": call.peer.certificate is not None}


@pytest.mark.asyncio
async def test_a_worker_that_dialled_back_is_called_through_the_manager(socket_path, certificates):
    files = [certificates / name for name in ("cert.pem", "key.pem", "ca.pem")]
    manager_side = tls_context(*files)
    worker_side = ssl.create_default_context(cafile=files[2])
    worker_side.load_cert_chain(files[0], files[1])
    worker = Server({"exec_start": reverse, "system_info": info})
    dialled: asyncio.Queue[tls_pump.Duplex] = asyncio.Queue()
    pumps = []

    async def accept(reader, writer):
        await dialled.put((reader, writer))

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]

        async def connect():
            """What a manager does: asks the worker, which dials; then TLS as server, HTTP as client."""
            wire = await asyncio.open_connection("127.0.0.1", port)
            group.create_task(serve_connection(worker, wire, TlsStream(worker_side, False, "127.0.0.1")))
            secured = await tls_pump.secure(await dialled.get(), TlsStream(manager_side, True))
            assert secured.certificate
            pumps.append(secured.pump)
            return secured.reader, secured.writer

        async def to_worker(call):
            return await forward(call, connect)

        async with listen_unix(Server({}, {"merged": to_worker}), socket_path):
            client = aio.Client(connect_unix(socket_path))
            assert await client.call("system_info") == {"kind": "tls", "known": True}
            async with client.hijack("exec_start", {"id": "x"}, json={}) as (reader, writer):
                writer.write(b"abc" * 100_000)
                writer.write_eof()
                assert await reader.read() == b"cba" * 100_000
        await asyncio.gather(*pumps)
        listener.close()


@pytest.mark.asyncio
async def test_a_failed_handshake_raises_and_closes(certificates):
    async def accept(reader, writer):
        writer.write(b"this is no TLS\n")
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        wire = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
        with pytest.raises(ssl.SSLError):
            await tls_pump.secure(wire, TlsStream(ssl.create_default_context(), False, "x"))
        assert wire[1].is_closing()


@pytest.mark.suite
@pytest.mark.asyncio
async def test_a_listener_that_ends_closes_taken_connections(socket_path):
    entered = asyncio.Event()

    async def attach(call):
        reader, _ = await call.hijack()
        entered.set()
        await reader.read()
        return Taken()

    async with asyncio.timeout(10):
        async with listen_unix(Server({"container_attach": attach}), socket_path):
            hijacked = aio.Client(connect_unix(socket_path)).hijack("container_attach", {"id": "x"})
            reader, _ = await hijacked.__aenter__()
            await entered.wait()
        assert await reader.read() == b""
        await hijacked.__aexit__(None, None, None)


@pytest.mark.asyncio
async def test_a_request_with_two_lengths_is_not_smuggled_on(socket_path):
    """Whatever the chassis makes of it, the target must see at most one request, and only ours."""
    seen = []

    async def target(reader, writer):
        seen.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def through(call):
        return await forward(call, connect_unix(socket_path + "2"))

    server = await asyncio.start_unix_server(target, socket_path + "2")
    async with asyncio.timeout(10), server, listen_unix(Server({}, {"node": through}), socket_path):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(
            b"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        await reader.read(65536)
        writer.close()
    assert not any(b"smuggled" in data or b"Content-Length" in data for data in seen)
