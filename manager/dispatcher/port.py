"""The cluster port: TLS 1.3, one Hello a connection, then whatever its purpose is. A table of purposes, no more.

It decides who may ask for what (a certificate of this cluster, but for joining) and how a refusal is said.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from covey.errors import CoveyError, InvalidArgument, Unauthorized, Unavailable
from covey.tls import peer_of
from covey.wire.frames import ProtocolError
from covey.wire.messages import VERSION, Hello, Refused, Welcome
from manager.dispatcher.link import Closed, Link

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 2.0

#: Certificates for a worker's rush after a manager's return take time: the queue holds them.
BACKLOG = 1024


class Purpose(NamedTuple):
    """What a connection can be for: ``certified`` ones need a certificate of the cluster."""

    serve: Callable[[Link], Awaitable[None]]
    certified: bool = True


class TooMany(Unavailable):
    """Come back in ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClusterPort:
    """Serves ``purposes`` by the name that Hello gives."""

    def __init__(self, purposes: Mapping[str, Purpose], cluster_id: str, manager_id: str, ca_pem: str) -> None:
        self._purposes = purposes
        self._cluster_id = cluster_id
        self._manager_id = manager_id
        self._ca_pem = ca_pem
        self._open: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listen(self, sock: socket.socket, context: ssl.SSLContext) -> AsyncIterator[None]:
        """Listen on a bound socket. After it, every connection has ended."""
        server = await asyncio.start_server(
            self._accept, sock=sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS, backlog=BACKLOG
        )
        try:
            yield
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            if self._open:
                await asyncio.wait(self._open, timeout=CLOSE_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            # The port is closing; asyncio's server would report this as a fault of the connection.
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: Link | None = None
        try:
            link = Link(reader, writer, peer_of(writer.get_extra_info("peercert")))
            purpose = await self._greet(link)
            await purpose.serve(link)
        except Closed:
            pass
        except TimeoutError:
            log.info("a client at %s was silent too long", link.address if link else "?")
        except CoveyError as error:
            await self._refuse(link, error)
        except ProtocolError as error:
            await self._refuse(link, InvalidArgument(str(error)))
        except Exception:
            log.exception("fault in a connection of %s", link.address if link else "?")

    async def _greet(self, link: Link) -> Purpose:
        hello = await link.expect(Hello, HELLO_SECONDS)
        if abs(hello.version - VERSION) > 1:
            raise InvalidArgument(f"the client speaks protocol {hello.version}, this manager {VERSION}: upgrade the older one")
        purpose = self._purposes.get(hello.purpose)
        if purpose is None:
            raise InvalidArgument(f"unknown purpose {hello.purpose!r}: one of {', '.join(self._purposes)}")
        if purpose.certified and link.peer is None:
            raise Unauthorized(f"a {hello.purpose} needs a certificate of the cluster: join it first")
        if link.peer is not None and link.peer.cluster_id != self._cluster_id:
            raise Unauthorized(f"node {link.peer.node_id} is of cluster {link.peer.cluster_id}, not of this one: join again")
        ca_pem = "" if purpose.certified else self._ca_pem
        await link.send(Welcome(version=VERSION, cluster_id=self._cluster_id, manager_id=self._manager_id, ca_pem=ca_pem))
        return purpose

    async def _refuse(self, link: Link | None, error: CoveyError) -> None:
        log.info("refused a client at %s: %s", link.address if link else "?", error.message)
        if link is None:
            return
        later = error.retry_after if isinstance(error, TooMany) else 0.0
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await link.send(Refused(status=error.status, message=error.message, retry_after=later))
        except (Closed, TimeoutError):
            pass
