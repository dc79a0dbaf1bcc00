"""Relays published ports for IPv6 clients of containers without IPv6, and for clients on [::1].

nftables answers everything else; it can neither turn IPv6 into IPv4 nor route [::1] off the loopback link. A relay
accepts on the socket that holds the port (port_ledger), so a restarted daemon serves again as soon as it holds again.
The container sees the bridge's address as the client. Runs on the event loop; which backends answer is told to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

from worker.network.ports import Backend

log = logging.getLogger(__name__)
MakeSocket = Callable[[int, int], Awaitable[socket.socket]]
Datagram = tuple[bytes, list[tuple[int, int, bytes]], tuple[object, ...]]
_BLOCK = 1 << 16
_UDP_IDLE = 60.0
_UDP_CLIENTS = 1024


class Relay:
    """One port. `backends` may be replaced at any time; connections made before stay with theirs."""

    def __init__(self, listening: socket.socket, make_socket: MakeSocket) -> None:
        self.backends: Sequence[Backend] = ()
        self._socket = listening
        self._make_socket = make_socket
        self._turn = itertools.count()
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Accepts from now on; the socket is a duplicate it owns."""
        self._socket.setblocking(False)
        serve = self._accept if self._socket.type == socket.SOCK_STREAM else self._datagrams
        self._accepting = asyncio.create_task(serve())

    @property
    def busy(self) -> bool:
        """True while connections live."""
        return bool(self._connections)

    def stop_accepting(self) -> None:
        """New clients are refused; those connected stay."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._accepting is not None:
            self._accepting.cancel()
        self._socket.close()

    async def close(self) -> None:
        self.stop_accepting()
        running = [*self._connections, *([self._accepting] if self._accepting else [])]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _choose(self) -> Backend | None:
        """The next backend, IPv4 ones first of all."""
        backends = [one for one in self.backends if one[0].version == 4] or list(self.backends)
        return backends[next(self._turn) % len(backends)] if backends else None

    async def _connect(self, kind: int) -> socket.socket | None:
        """A socket connected to a backend that takes it; each is tried once."""
        loop = asyncio.get_running_loop()
        for _ in range(len(self.backends)):
            backend = self._choose()
            if backend is None:
                return None
            outgoing = await self._make_socket(socket.AF_INET if backend[0].version == 4 else socket.AF_INET6, kind)
            outgoing.setblocking(False)
            try:
                async with asyncio.timeout(5):
                    await loop.sock_connect(outgoing, (str(backend[0]), backend[1]))
                return outgoing
            except (OSError, TimeoutError):
                outgoing.close()
        return None

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                log.warning("relay of port %s cannot accept: %s", self._socket.getsockname()[1], error)
                await asyncio.sleep(0.1)
                continue
            work = asyncio.create_task(self._splice(client))
            self._connections.add(work)
            work.add_done_callback(self._connections.discard)

    async def _splice(self, client: socket.socket) -> None:
        """Copies both ways; the end of one direction is passed on, a reset ends both."""
        backend = None
        with client:
            try:
                backend = await self._connect(socket.SOCK_STREAM)
                if backend is None:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(client, backend))
                    both.create_task(_copy(backend, client))
            except* OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            finally:
                if backend is not None:
                    backend.close()

    async def _datagrams(self) -> None:
        """One socket to a backend for each client, given up after a minute of silence."""
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        loop = asyncio.get_running_loop()
        flows: dict[tuple[object, ...], asyncio.Queue[bytes]] = {}
        ready = asyncio.Event()
        loop.add_reader(self._socket.fileno(), ready.set)
        while True:
            await ready.wait()
            ready.clear()
            for data, ancillary, address in _drain(self._socket):
                if address not in flows and len(flows) < _UDP_CLIENTS:
                    flows[address] = asyncio.Queue(64)
                    work = asyncio.create_task(self._flow(flows[address], ancillary, address))
                    self._connections.add(work)
                    work.add_done_callback(self._connections.discard)
                    work.add_done_callback(functools.partial(_forget, flows, address))
                if address in flows:
                    with contextlib.suppress(asyncio.QueueFull):
                        flows[address].put_nowait(data)

    async def _flow(
        self, waiting: asyncio.Queue[bytes], ancillary: list[tuple[int, int, bytes]], address: tuple[object, ...]
    ) -> None:
        loop = asyncio.get_running_loop()
        backend = await self._connect(socket.SOCK_DGRAM)
        if backend is None:
            return

        async def forth() -> None:
            while True:
                async with asyncio.timeout(_UDP_IDLE):
                    data = await waiting.get()
                await loop.sock_sendall(backend, data)

        async def back() -> None:
            while True:
                data = await loop.sock_recv(backend, _BLOCK)
                self._socket.sendmsg([data], ancillary, 0, address)

        with backend:
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(forth())
                    both.create_task(back())
            except* (OSError, TimeoutError):
                pass


def _forget(flows: dict[tuple[object, ...], asyncio.Queue[bytes]], address: tuple[object, ...], _: object) -> None:
    flows.pop(address, None)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _BLOCK):
        await loop.sock_sendall(target, data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _drain(receiving: socket.socket) -> list[Datagram]:
    """All datagrams that wait, each with the local address it was sent to (as the reply must say)."""
    found: list[Datagram] = []
    while True:
        try:
            data, ancillary, _flags, address = receiving.recvmsg(_BLOCK, socket.CMSG_SPACE(20))
        except OSError:
            return found
        found.append((data, ancillary, address))
