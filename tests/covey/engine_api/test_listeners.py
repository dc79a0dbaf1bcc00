"""Who may connect: modes, stale and living sockets, loopback, client certificates."""

import asyncio
import os
import socket
import ssl
import stat

import pytest

from covey.engine_api import aio
from covey.engine_api.light import Client
from covey.engine_api.listeners import listen_plain, listen_tls, listen_unix, tls_context
from covey.engine_api.proxy import connect_unix
from covey.engine_api.server import Server
from covey.errors import Conflict, InvalidArgument, Unavailable


async def info(call):
    certificate = call.peer.certificate or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return {"kind": call.peer.kind, "names": names}


SERVER = {"system_info": info}


@pytest.mark.asyncio
async def test_socket_has_its_mode_and_goes_with_its_listener(socket_path):
    async with listen_unix(Server(SERVER), socket_path):
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o660
    with pytest.raises(FileNotFoundError):
        os.stat(socket_path)
    async with listen_unix(Server(SERVER), socket_path, mode=0o600):
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


@pytest.mark.asyncio
async def test_socket_of_a_dead_process_is_replaced(socket_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
    async with listen_unix(Server(SERVER), socket_path):
        assert (await aio.Client(connect_unix(socket_path)).call("system_info"))["kind"] == "unix"


@pytest.mark.asyncio
async def test_socket_of_a_living_process_is_refused_and_kept(socket_path):
    async with listen_unix(Server(SERVER), socket_path):
        with pytest.raises(Conflict, match="another process listens on"):
            async with listen_unix(Server(SERVER), socket_path):
                pass
        assert (await aio.Client(connect_unix(socket_path)).call("system_info"))["kind"] == "unix"


@pytest.mark.asyncio
async def test_other_files_and_long_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(Conflict, match="not a socket"):
        async with listen_unix(Server(SERVER), tmp_path / "file"):
            pass
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(InvalidArgument, match="107 bytes"):
        async with listen_unix(Server(SERVER), tmp_path / ("x" * 108)):
            pass


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("host", "insecure", "words"),
    [("127.0.0.1", False, "--insecure"), ("0.0.0.0", True, "loopback"), ("example.test", True, "loopback")],
)
async def test_plain_tcp_is_for_loopback_and_by_wish_only(host, insecure, words):
    with pytest.raises(InvalidArgument, match=words):
        async with listen_plain(Server(SERVER), host, 0, insecure):
            pass


@pytest.mark.asyncio
async def test_plain_tcp_and_a_taken_port():
    async with listen_plain(Server(SERVER), "127.0.0.1", 0, insecure=True) as port:
        client = Client(f"tcp://127.0.0.1:{port}", environ={})
        assert (await asyncio.to_thread(client.get, "/info"))["kind"] == "tcp"
        client.close()
        with pytest.raises(Conflict, match="choose another"):
            async with listen_plain(Server(SERVER), "127.0.0.1", port, insecure=True):
                pass


@pytest.mark.asyncio
async def test_tls_shows_the_certificate_and_refuses_clients_without(certificates):
    context = tls_context(*(certificates / name for name in ("cert.pem", "key.pem", "ca.pem")))
    environ = {"COVEY_TLS_VERIFY": "1", "COVEY_CERT_PATH": str(certificates)}
    async with listen_tls(Server(SERVER), "127.0.0.1", 0, context) as port:

        def twice():
            with Client(f"tcp://127.0.0.1:{port}", environ=environ) as client:
                return [client.get("/info"), client.get("/info")]

        assert await asyncio.to_thread(twice) == [{"kind": "tls", "names": ["client-1"]}] * 2

        def stranger():
            anyone = ssl.create_default_context(cafile=certificates / "ca.pem")
            with socket.create_connection(("127.0.0.1", port)) as sock:
                with anyone.wrap_socket(sock, server_hostname="127.0.0.1") as secured:
                    secured.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
                    return secured.recv(100)

        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            await asyncio.to_thread(stranger)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            await asyncio.to_thread(Client(f"tcp://127.0.0.1:{port}", environ={}).get, "/info")


@pytest.mark.asyncio
async def test_tls_listener_demands_client_certificates():
    with pytest.raises(InvalidArgument, match="client certificates"):
        async with listen_tls(Server(SERVER), "127.0.0.1", 0, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)):
            pass


@pytest.mark.asyncio
async def test_tls_listener_ends_with_clients_connected(certificates):
    context = tls_context(*(certificates / name for name in ("cert.pem", "key.pem", "ca.pem")))
    environ = {"COVEY_TLS_VERIFY": "1", "COVEY_CERT_PATH": str(certificates)}
    async with asyncio.timeout(10):
        async with listen_tls(Server(SERVER), "127.0.0.1", 0, context) as port:
            client = Client(f"tcp://127.0.0.1:{port}", environ=environ)
            await asyncio.to_thread(client.get, "/info")
        client.close()
