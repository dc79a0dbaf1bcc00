"""The agent's link to a manager: opens a session, keeps it alive, opens another when it breaks. Outward only.

It decides which manager to try and when (back-off 100 ms to 8 s with jitter). What assignments mean is the machine's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, Protocol, TypeVar

from covey import tunnel
from covey.clock import Clock
from covey.errors import CoveyError, from_status
from covey.model.objects import NodeDescription
from covey.tls import Identity, client_context, require_manager
from covey.wire.frames import FrameReader, ProtocolError, encode
from covey.wire.messages import (
    IMAGES,
    VERSION,
    AnyMessage,
    Assignments,
    BlobSource,
    DescriptionUpdate,
    DialBack,
    DialBackOpen,
    Disconnect,
    Heartbeat,
    Hello,
    ImageNews,
    ImageOffer,
    LoginsGiven,
    OpenSession,
    Refused,
    SessionOpened,
    StatusBatch,
    StatusStored,
    Welcome,
)
from worker.agent.vocabulary import AnyEvent, Assigned, SessionDown, SessionUp, Stored

log = logging.getLogger(__name__)

Expected = TypeVar("Expected", bound=AnyMessage)

BACKOFF = (0.1, 8.0)
DIAL_TIMEOUT = 5.0
#: Without a word from the manager for this many heartbeats the link counts as dead.
MISSED = 3


def _leaf(group: ExceptionGroup[Exception]) -> Exception:
    """The one fault that ended a session."""
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, ExceptionGroup) else first


class Images(Protocol):
    """What is said of images over a session."""

    @property
    def blob_port(self) -> int:
        """Where this node gives its blobs to others; 0: nowhere."""

    async def converse(self, send: Callable[[AnyMessage], Awaitable[None]], manager: str, context: ssl.SSLContext) -> None:
        """The node's side of the conversation with the manager at that address; until cancelled."""

    async def heard(self, message: ImageNews) -> None:
        """The manager's side."""


class Logins(Protocol):
    """What is asked of logins to registries over a session."""

    def session(self, send: Callable[[AnyMessage], Awaitable[None]]) -> AbstractAsyncContextManager[None]:
        """A session that can be asked is open inside."""

    def heard(self, message: LoginsGiven) -> None:
        """The manager's answer."""


class Connection:
    """One framed connection to a manager's cluster port; ``version`` is the protocol that the manager speaks."""

    version = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._ready: list[AnyMessage] = []

    @classmethod
    async def dial(cls, address: str, context: ssl.SSLContext, purpose: str, software: str) -> Connection:
        """Connect to ``address`` (host:port), say Hello and take the Welcome. Raises OSError or CoveyError."""
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(DIAL_TIMEOUT):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
            connection = cls(reader, writer)
            try:
                require_manager(writer.get_extra_info("peercert"))
                await connection.send(Hello(version=VERSION, purpose=purpose, software=software))
                connection.version = (await connection.expect(Welcome)).version
            except BaseException:
                writer.close()
                raise
            return connection

    async def send(self, message: AnyMessage) -> None:
        """Write one message."""
        self._writer.write(encode(message))
        await self._writer.drain()

    async def receive(self) -> AnyMessage:
        """The next message. Raises ConnectionError at the end, ProtocolError for nonsense."""
        while not self._ready:
            data = await self._reader.read(256 * 1024)
            if not data:
                raise ConnectionError("the manager closed the connection")
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def expect(self, kind: type[Expected]) -> Expected:
        """The next message, which must be a ``kind``. Raises what a Refused says, ProtocolError for another message."""
        message = await self.receive()
        if isinstance(message, Refused):
            raise from_status(message.status, message.message)
        if not isinstance(message, kind):
            raise ProtocolError(f"the manager sent {type(message).__name__} where {kind.__name__} was due")
        return message

    def release(self) -> tunnel.Duplex:
        """The bare stream, for a connection that changes its protocol before anything more is received."""
        return self._reader, self._writer

    async def close(self) -> None:
        """Close; a peer that is gone already is no error."""
        self._writer.close()
        with suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


class Session:
    """Keeps a session open while ``run`` runs. ``feed`` takes the agent's events, ``revision`` is asked at each opening.

    ``serve`` is called with a plain stream for each dial-back: it answers HTTP on it until it ends.
    """

    def __init__(
        self,
        identity: Identity,
        managers: Sequence[str],
        clock: Clock,
        *,
        software: str,
        describe: Callable[[], Awaitable[NodeDescription]],
        revision: Callable[[], int],
        feed: Callable[[AnyEvent], None],
        serve: Callable[[], Awaitable[tunnel.Duplex]],
        learned: Callable[[Sequence[str]], None] = lambda managers: None,
        address: str = "",
        images: Images | None = None,
        logins: Logins | None = None,
    ) -> None:
        self._identity = identity
        self._managers = list(managers)
        self._clock = clock
        self._software = software
        self._describe = describe
        self._revision = revision
        self._feed = feed
        self._serve = serve
        self._learned = learned
        self._address = address
        self._images = images
        self._logins = logins
        self._connection: Connection | None = None
        self._session_id = ""
        self._manager = ""
        self._period = 5.0
        self._heard = 0.0
        self._fault = "no manager tried yet"
        self._opened = 0

    @property
    def managers(self) -> tuple[str, ...]:
        """Addresses of managers, those last heard of."""
        return tuple(self._managers)

    def statistics(self) -> dict[str, Any]:
        """Where the session is, or why there is none."""
        return {"session": self._session_id, "manager": self._manager, "opened": self._opened, "fault": self._fault}

    async def run(self) -> None:
        """Until cancelled."""
        pause = BACKOFF[0]
        while True:
            for address in random.sample(self._managers, len(self._managers)):
                opened = self._opened
                try:
                    await self._live(address)
                except (OSError, EOFError, TimeoutError, ProtocolError, CoveyError, ssl.SSLError) as fault:
                    self._note(address, fault)
                if self._opened > opened:
                    pause = BACKOFF[0]
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, BACKOFF[1])

    def _note(self, address: str, fault: BaseException) -> None:
        text = f"manager {address}: {fault or type(fault).__name__}"
        if text != self._fault:
            log.warning("no session with %s; containers go on, trying again", text)
        self._fault = text

    async def _live(self, address: str) -> None:
        """One session, from dialing to its end."""
        context = client_context(self._identity)
        connection = await Connection.dial(address, context, "session", self._software)
        try:
            description = await self._describe()
            await connection.send(self._offer(description))
            async with asyncio.timeout(DIAL_TIMEOUT * 2):
                opened = await connection.expect(SessionOpened)
            self._begin(connection, address, opened)
            try:
                # In a task of its own: Python before 3.11.3 leaves a task in which a TaskGroup failed marked as cancelled,
                # and no timeout works in it any more.
                await asyncio.create_task(self._converse(connection, context, address, description), name="session")
            except ExceptionGroup as faults:
                raise _leaf(faults) from None
        finally:
            if self._connection is connection:
                self._connection, self._session_id = None, ""
                self._feed(SessionDown(cause=f"session with {address} ended"))
            await connection.close()

    def _offer(self, description: NodeDescription) -> OpenSession:
        port = self._images.blob_port if self._images is not None else 0
        return OpenSession(description=description, address=self._address, revision=self._revision(), blob_port=port)

    async def _converse(
        self, connection: Connection, context: ssl.SSLContext, address: str, description: NodeDescription
    ) -> None:
        """Heartbeats up, everything else down, until one of them fails."""
        async with AsyncExitStack() as stack:
            if self._logins is not None and connection.version >= IMAGES:
                await stack.enter_async_context(self._logins.session(connection.send))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            group.create_task(self._beat(connection, description), name="session: heartbeat")
            group.create_task(self._listen(connection, context, address, group), name="session: listen")
            if self._images is not None and connection.version >= IMAGES:
                group.create_task(self._images.converse(connection.send, address, context), name="session: images")

    def _begin(self, connection: Connection, address: str, opened: SessionOpened) -> None:
        self._connection, self._session_id, self._manager = connection, opened.session_id, address
        self._period, self._heard, self._fault = opened.heartbeat, self._clock.monotonic(), ""
        self._opened += 1
        if opened.managers and set(opened.managers) != set(self._managers):
            self._managers = list(opened.managers)
            self._learned(self._managers)
        log.info("session %s with manager %s", opened.session_id, address)
        self._feed(SessionUp(session_id=opened.session_id, cause=f"session with {address}"))

    async def _beat(self, connection: Connection, described: NodeDescription) -> None:
        while True:
            await self._clock.sleep(self._period * random.uniform(0.9, 1.0))
            if self._clock.monotonic() - self._heard > self._period * MISSED:
                raise ConnectionError(f"nothing heard for {MISSED} heartbeats")
            await connection.send(Heartbeat())
            if (description := await self._describe()) != described:
                described = description
                await connection.send(DescriptionUpdate(description=description))

    async def _listen(self, connection: Connection, context: ssl.SSLContext, address: str, group: asyncio.TaskGroup) -> None:
        while True:
            message = await connection.receive()
            self._heard = self._clock.monotonic()
            match message:
                case Assignments():
                    self._feed(Assigned(message=message, cause=message.cause or "assignment"))
                case StatusStored():
                    self._feed(Stored(sequence=message.sequence, refused=message.refused))
                case Heartbeat():
                    self._period = message.period or self._period
                case ImageOffer() | BlobSource() if self._images is not None:
                    await self._images.heard(message)
                case LoginsGiven() if self._logins is not None:
                    self._logins.heard(message)
                case DialBack():
                    group.create_task(self._dial_back(message.connection_id, context, address), name="session: dial-back")
                case Disconnect():
                    raise ConnectionError(f"the manager ended the session ({message.code}): {message.message}")
                case Refused():
                    raise from_status(message.status, message.message)
                case _:
                    raise ProtocolError(f"the manager sent {type(message).__name__} within a session")

    async def _dial_back(self, connection_id: str, context: ssl.SSLContext, address: str) -> None:
        """The manager wants to talk HTTP to this node: connect to it and join that stream with the node's own API."""
        try:
            connection = await Connection.dial(address, context, "dialback", self._software)
            try:
                await connection.send(DialBackOpen(connection_id=connection_id))
                plain = await self._serve()
            except BaseException:
                await connection.close()
                raise
            await tunnel.splice(connection.release(), plain)
        except (OSError, EOFError, TimeoutError, ProtocolError, CoveyError) as fault:
            log.warning("dial-back %s to %s failed: %s", connection_id, address, fault)

    async def report(self, session_id: str, batch: StatusBatch) -> None:
        """Send a batch if the session is still the one named. A link that breaks shows in ``_listen``."""
        if self._connection is not None and session_id == self._session_id:
            with suppress(OSError):
                await self._connection.send(batch)

    def reopen(self, why: str) -> None:
        """Close the session; a new one opens."""
        if self._connection is not None:
            log.info("reopening the session: %s", why)
            self._connection.release()[1].close()
