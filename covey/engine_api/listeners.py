"""Where the Engine API listens: a Unix socket, TCP with client certificates, plain TCP on loopback.

Each function is an async context: inside it the listener answers, after it the socket is gone. It decides who may
connect (file mode, certificate, loopback) and must not know calls.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from covey.engine_api import tls_pump
from covey.engine_api.call import Duplex, Peer
from covey.engine_api.server import Server
from covey.engine_api.tls import TlsStream
from covey.errors import Conflict, InvalidArgument

log = logging.getLogger(__name__)

# Endless answers (events, followed logs) always use it up; running handlers are cancelled after.
SHUTDOWN_SECONDS = 0.5
BACKLOG = 512


@asynccontextmanager
async def _serving(server: Server, sock: socket.socket) -> AsyncIterator[None]:
    runner = web.ServerRunner(server.protocol_factory(), shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        await runner.setup()
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        yield
    finally:
        await runner.cleanup()
        sock.close()


async def serve_connection(server: Server, wire: Duplex, stream: TlsStream, factory: web.Server | None = None) -> None:
    """Serves one TLS connection until it ends; a worker that dialled its manager does so as TLS client.

    Raises ssl.SSLError, TimeoutError or OSError when the handshake fails. The wire is closed in any case.
    """
    writer = wire[1]
    name = writer.get_extra_info("peername")
    address = f"{name[0]}:{name[1]}" if name else ""
    try:
        early = await tls_pump.handshake(wire, stream)
        protocol = (factory or server.protocol_factory())()
        outer, inner = socket.socketpair()
        for end in (outer, inner):
            end.setblocking(False)
        server.peers[protocol] = Peer("tls", address=address, certificate=stream.peer_certificate())
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, inner)
            # HTTP goes over a plain socket pair, since asyncio's own TLS knows no half-close.
            await tls_pump.pump(wire, stream, outer, early)
        finally:
            del server.peers[protocol]
    finally:
        writer.close()


@asynccontextmanager
async def _serving_tls(server: Server, sock: socket.socket, context: ssl.SSLContext) -> AsyncIterator[None]:
    runner = web.ServerRunner(server.protocol_factory(), shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    factory = runner.server
    assert factory is not None
    clients: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            await serve_connection(server, (reader, writer), TlsStream(context, server_side=True), factory)
        except (ssl.SSLError, OSError) as error:
            log.info("refused a TLS client: %s", error or "the handshake took too long")
        finally:
            clients.discard(task)

    listener = await asyncio.start_server(accept, sock=sock, backlog=BACKLOG, limit=4 * tls_pump.PIECE)
    try:
        yield
    finally:
        listener.close()
        await runner.cleanup()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def _clear_stale(path: Path) -> None:
    """Removes a socket nobody answers on. Raises Conflict for one that lives, or for another kind of file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path} exists and is not a socket: move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(str(path))
    if code not in (errno.ECONNREFUSED, errno.ENOENT):
        raise Conflict(f"another process listens on {path}: stop it or choose another path")
    path.unlink(missing_ok=True)


@asynccontextmanager
async def listen_unix(server: Server, path: str | Path, mode: int = 0o660, group: int | None = None) -> AsyncIterator[None]:
    """Listens on a Unix socket of ``mode`` (and ``group`` id). A dead process's socket is replaced.

    Raises Conflict when another process answers on it; InvalidArgument when the path is too long for the kernel.
    """
    path = Path(path)
    if len(os.fsencode(path)) > 107:
        raise InvalidArgument(f"socket path {path} is longer than the kernel's 107 bytes: choose a shorter one")
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # No window in which others may connect: the mode is set before listen() makes the socket answer.
    sock.bind(str(path))
    os.chmod(path, mode)
    if group is not None:
        os.chown(path, -1, group)
    mine = path.lstat().st_ino
    try:
        async with _serving(server, sock):
            yield
    finally:
        try:
            if path.lstat().st_ino == mine:
                path.unlink()
        except FileNotFoundError:
            pass


async def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidArgument(f"cannot listen on {host}:{port}: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise Conflict(f"cannot listen on {host}:{port}: {error.strerror}: choose another address or port") from None
    return sock


def tls_context(certificate: str | Path, key: str | Path, authority: str | Path) -> ssl.SSLContext:
    """A server context that demands a client certificate of ``authority``; TLS 1.2 is the floor (docker CLI)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context


@asynccontextmanager
async def listen_tls(server: Server, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Listens on TCP for clients with a certificate; yields the port. Raises InvalidArgument for a lax context."""
    if context.verify_mode != ssl.CERT_REQUIRED:
        raise InvalidArgument("a TCP listener must demand client certificates: see listeners.tls_context")
    sock = await _tcp_socket(host, port)
    bound: int = sock.getsockname()[1]
    async with _serving_tls(server, sock, context):
        yield bound


@asynccontextmanager
async def listen_plain(server: Server, host: str, port: int, insecure: bool) -> AsyncIterator[int]:
    """Listens on TCP without any check of who connects; yields the port.

    Raises InvalidArgument unless ``insecure`` is set and ``host`` is a loopback address: whoever connects is root.
    """
    if not insecure:
        raise InvalidArgument(f"plain TCP on {host}:{port} lets anyone be root here: give --insecure, or use TLS")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidArgument(f"plain TCP is for loopback addresses only, not {host}: use 127.0.0.1, ::1, or TLS")
    sock = await _tcp_socket(host, port)
    bound: int = sock.getsockname()[1]
    async with _serving(server, sock):
        yield bound
