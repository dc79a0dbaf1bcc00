"""A manager's cluster port that does what a test tells it: real TLS 1.3 on loopback, certificates by manager.ca, no store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from covey.tls import Identity, ca_digest, server_context
from covey.wire.frames import FrameReader, encode
from covey.wire.messages import VERSION, AnyMessage, Hello, OpenSession, SessionOpened, Welcome
from manager.ca.authority import make_identity, make_root, sign_node

CLUSTER = "c1"


class Peer:
    """A connection as the manager sees it; ``hello`` has been read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.hello: Hello
        self._frames = FrameReader()
        self._ready: list[AnyMessage] = []

    async def receive(self) -> Any:
        while not self._ready:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def send(self, *messages: AnyMessage) -> None:
        for message in messages:
            self.writer.write(encode(message))
        await self.writer.drain()

    async def welcome(self, ca_pem: str = "") -> None:
        await self.send(Welcome(version=VERSION, cluster_id=CLUSTER, manager_id="m1", ca_pem=ca_pem))

    async def open(self, session_id: str, heartbeat: float = 0.1, managers: tuple[str, ...] = ()) -> OpenSession:
        """Take the session the worker offers."""
        await self.welcome()
        offer = await self.receive()
        await self.send(SessionOpened(session_id=session_id, heartbeat=heartbeat, managers=managers))
        assert isinstance(offer, OpenSession)
        return offer

    async def until_closed(self) -> list[AnyMessage]:
        """What the worker still sends."""
        seen: list[AnyMessage] = []
        with suppress(EOFError, OSError):
            while True:
                seen.append(await self.receive())
        return seen


Script = Callable[[Peer], Awaitable[None]]


class Authority:
    """A cluster's root, and certificates of it."""

    def __init__(self) -> None:
        self.key, self.certificate = make_root(time.time())

    @property
    def token(self) -> str:
        return f"SWMTKN-1-{ca_digest(self.certificate)}-{'x' * 25}"

    def identity(self, node_id: str, role: str) -> Identity:
        return make_identity(self.key, self.certificate, node_id, role, CLUSTER, time.time())

    def sign(self, request_pem: str, node_id: str) -> str:
        return sign_node(self.key, self.certificate, request_pem, node_id, "worker", CLUSTER, time.time())

    def stranger(self) -> Identity:
        """A manager of another cluster that calls itself the same."""
        other_key, other = make_root(time.time())
        return make_identity(other_key, other, "m1", "manager", CLUSTER, time.time())


@asynccontextmanager
async def port(identity: Identity, script: Script) -> AsyncIterator[str]:
    """``host:port`` where ``script`` is run on each connection after its Hello. A script that fails fails the test."""
    faults: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            peer.hello = await peer.receive()
            await script(peer)
        except (EOFError, OSError):
            pass
        except Exception as fault:
            faults.append(fault)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(identity))
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        assert not faults, faults
