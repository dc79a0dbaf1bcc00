"""The embedded resolver's sockets: listens on the bridge address of each user-defined network, UDP and TCP, port 53.

Answers come from dns.py; what it does not know is forwarded raw to the upstream servers of the asker or of the node.
Only addresses of attached containers are served: the node is nobody else's resolver. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from worker.network import dns
from worker.network.text import nameservers

log = logging.getLogger(__name__)
MakeSocket = Callable[[int, int], Awaitable[socket.socket]]
HOST_FILE = Path("/etc/resolv.conf")
UPSTREAM_TIMEOUT = 2.0
FORWARDS_AT_ONCE = 256
_MAX_TCP_CLIENTS = 128


class Resolver:
    """All listeners of a node. ``view`` is replaced whole whenever names change; ``make_socket`` makes outgoing sockets."""

    def __init__(self, make_socket: MakeSocket, host_file: Path = HOST_FILE) -> None:
        self.view = dns.View()
        self._make_socket = make_socket
        self._host_file = host_file
        self._turn = itertools.count()
        self._forwards = asyncio.Semaphore(FORWARDS_AT_ONCE)
        self._servers: dict[str, tuple[asyncio.DatagramTransport, asyncio.Server]] = {}
        self._work: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> set[str]:
        """Where it listens now."""
        return set(self._servers)

    async def listen(self, address: str, udp: socket.socket, tcp: socket.socket) -> None:
        """Serves on two bound sockets, which it owns from now on."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        server = await asyncio.start_server(self._stream, sock=tcp)
        self._servers[address] = (transport, server)

    def ignore(self, address: str) -> None:
        """Stops listening there; nothing if it does not."""
        transport, server = self._servers.pop(address, (None, None))
        if transport is not None and server is not None:
            transport.close()
            server.close()

    async def close(self) -> None:
        for address in list(self._servers):
            self.ignore(address)
        for work in list(self._work):
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def track(self, work: asyncio.Task[None]) -> None:
        """Work that ends with the resolver."""
        self._work.add(work)
        work.add_done_callback(self._work.discard)

    def answer_now(self, data: bytes, client_ip: str) -> bytes | None:
        """The answer if no upstream is needed; b"" is none at all."""
        client = self.view.clients.get(client_ip)
        query = dns.parse(data)
        if client is None:
            return dns.failure(data, dns.REFUSED)
        if query is None:
            return dns.failure(data, dns.FORMAT_ERROR)
        found = dns.answer(query, self.view, client, next(self._turn))
        if found is None and not client.outward:
            return dns.failure(data, dns.SERVER_FAILURE)
        return found

    async def forward(self, data: bytes, client_ip: str, *, stream: bool) -> bytes:
        """The first upstream's answer as it came, SERVFAIL when none answers."""
        client = self.view.clients.get(client_ip)
        exchange = self._exchange_stream if stream else self._exchange_datagram
        if self._forwards.locked():
            return dns.failure(data, dns.SERVER_FAILURE)
        async with self._forwards:
            for server in (client.upstreams if client else ()) or self._upstreams():
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(UPSTREAM_TIMEOUT):
                        return await exchange(data, server)
        return dns.failure(data, dns.SERVER_FAILURE)

    def _upstreams(self) -> tuple[str, ...]:
        try:
            return tuple(nameservers(self._host_file.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            return ()

    async def _connected(self, server: str, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        outgoing = await self._make_socket(family, kind)
        outgoing.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(outgoing, (server, 53))
        except BaseException:
            outgoing.close()
            raise
        return outgoing

    async def _exchange_datagram(self, data: bytes, server: str) -> bytes:
        loop = asyncio.get_running_loop()
        with await self._connected(server, socket.SOCK_DGRAM) as outgoing:
            await loop.sock_sendall(outgoing, data)
            while True:
                reply = await loop.sock_recv(outgoing, 65535)
                if reply[:2] == data[:2]:
                    return reply

    async def _exchange_stream(self, data: bytes, server: str) -> bytes:
        outgoing = await self._connected(server, socket.SOCK_STREAM)
        reader, writer = await asyncio.open_connection(sock=outgoing)
        try:
            writer.write(struct.pack(">H", len(data)) + data)
            await writer.drain()
            (length,) = struct.unpack(">H", await reader.readexactly(2))
            return await reader.readexactly(length)
        finally:
            writer.close()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work = asyncio.current_task()
        if work is not None:
            self.track(work)
        client_ip = writer.get_extra_info("peername")[0]
        try:
            if len(self._work) > _MAX_TCP_CLIENTS + FORWARDS_AT_ONCE:
                return
            while True:
                async with asyncio.timeout(10):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                reply = self.answer_now(data, client_ip)
                if reply is None:
                    reply = await self.forward(data, client_ip, stream=True)
                writer.write(struct.pack(">H", len(reply)) + reply)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """UDP questions: local answers at once, the rest in a task."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        reply = self._resolver.answer_now(data, address[0])
        if reply is None:
            self._resolver.track(asyncio.ensure_future(self._forward(data, address)))
        elif reply:
            self._send(data, reply, address)

    async def _forward(self, data: bytes, address: tuple[str, int]) -> None:
        reply = await self._resolver.forward(data, address[0], stream=False)
        self._send(data, reply, address)

    def _send(self, data: bytes, reply: bytes, address: tuple[str, int]) -> None:
        query = dns.parse(data)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(dns.truncated(query, reply) if query else reply, address)

    def error_received(self, error: Exception) -> None:
        log.debug("resolver socket: %s", error)
