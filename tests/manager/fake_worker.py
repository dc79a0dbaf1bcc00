"""A scripted worker: joins with a token, opens a session, says of every task what it is told to say. No containers.

It speaks the real protocol over real TLS, with covey only, so that what the manager serves is what a worker gets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from covey import tunnel
from covey.errors import from_status
from covey.model.objects import NodeDescription, TaskStatus
from covey.model.resources import NANO, Resources
from covey.model.task_states import TaskState, is_terminal
from covey.tls import Identity, check_pin, client_context, make_key_and_request, parse_token, pinning_context, require_manager
from covey.wire.frames import FrameReader, encode
from covey.wire.messages import (
    VERSION,
    AnyMessage,
    AssignedTask,
    Assignments,
    DialBack,
    DialBackOpen,
    Disconnect,
    Heartbeat,
    Hello,
    JoinReply,
    JoinRequest,
    OpenSession,
    Refused,
    SessionOpened,
    StatusBatch,
    StatusStored,
    Welcome,
)

Expected = TypeVar("Expected", bound=AnyMessage)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wire:
    """A framed client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = FrameReader()
        self._ready: list[AnyMessage] = []

    async def send(self, message: AnyMessage) -> None:
        self.writer.write(encode(message))
        await self.writer.drain()

    async def receive(self) -> AnyMessage:
        while not self._ready:
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionError("the manager closed the connection")
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def expect(self, kind: type[Expected]) -> Expected:
        async with asyncio.timeout(10):
            message = await self.receive()
        if isinstance(message, Refused):
            raise from_status(message.status, message.message)
        assert isinstance(message, kind), message
        return message


async def dial(address: str, context: Any, purpose: str) -> tuple[Wire, Welcome]:
    """Connect and be welcomed."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    wire = Wire(reader, writer)
    await wire.send(Hello(version=VERSION, purpose=purpose, software="fake"))
    return wire, await wire.expect(Welcome)


async def join(address: str, token: str, hostname: str = "fake") -> tuple[Identity, JoinReply]:
    """Join a cluster as a real worker does."""
    key, request = make_key_and_request()
    wire, welcome = await dial(address, pinning_context(), "join")
    check_pin(welcome.ca_pem, parse_token(token), wire.writer.get_extra_info("ssl_object").getpeercert(True))
    await wire.send(JoinRequest(token=token, request_pem=request, hostname=hostname))
    reply = await wire.expect(JoinReply)
    wire.writer.close()
    return Identity(key, reply.certificate_pem, reply.ca_pem), reply


class FakeWorker:
    """``async with`` it once joined; ``tasks`` is what it holds. ``final`` maps a task id to a state to report instead."""

    def __init__(self, address: str, identity: Identity, node_id: str, hostname: str = "fake") -> None:
        self.address, self.identity, self.node_id, self.hostname = address, identity, node_id, hostname
        self.tasks: dict[str, AssignedTask] = {}
        self.messages: list[AnyMessage] = []
        self.statuses: dict[str, TaskStatus] = {}
        self.refused: list[tuple[str, str]] = []
        self.assigned = asyncio.Event()
        self.faults: list[str] = []
        self.sessions = 0
        self.silent = False
        self.script: Callable[[AssignedTask], TaskState] = lambda task: TaskState.RUNNING
        self.serve: Serve | None = None
        self.resources = Resources(nano_cpus=4 * NANO, memory_bytes=8 << 30)
        self._sequence = 0
        self._revision = 0
        self._wire: Wire | None = None
        self._running: asyncio.Task[None] | None = None
        self._dials: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeWorker:
        self._running = asyncio.create_task(self._run(), name=f"fake worker {self.hostname}")
        return self

    async def __aexit__(self, *fault: object) -> None:
        assert self._running is not None
        for task in (self._running, *self._dials):
            task.cancel()
        await asyncio.gather(self._running, *self._dials, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except (OSError, ConnectionError, TimeoutError) as fault:
                self.faults.append(str(fault))
            except Exception as fault:
                self.faults.append(repr(fault))
            await asyncio.sleep(0.1)

    async def _session(self) -> None:
        wire, _ = await dial(self.address, client_context(self.identity), "session")
        try:
            require_manager(wire.writer.get_extra_info("peercert"))
            description = NodeDescription(hostname=self.hostname, architecture="x86_64", resources=self.resources)
            await wire.send(OpenSession(description=description, revision=self._revision))
            opened = await wire.expect(SessionOpened)
            self._wire, self._sequence, self.sessions = wire, 0, self.sessions + 1
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(wire, opened.heartbeat))
                await self._listen(wire)
        finally:
            self._wire = None
            wire.writer.close()

    async def _beat(self, wire: Wire, period: float) -> None:
        while True:
            await asyncio.sleep(period * 0.9)
            if not self.silent:
                await wire.send(Heartbeat())

    async def _listen(self, wire: Wire) -> None:
        while True:
            message = await wire.receive()
            self.messages.append(message)
            match message:
                case Assignments():
                    self._take(message)
                    await self.report(wire)
                    self.assigned.set()
                case StatusStored():
                    self.refused += message.refused
                case DialBack():
                    task = asyncio.create_task(self._dial_back(message.connection_id))
                    self._dials.add(task)
                    task.add_done_callback(self._dials.discard)
                case Disconnect():
                    raise ConnectionError(f"told to go: {message.code}")
                case _:
                    pass

    def _take(self, message: Assignments) -> None:
        self._revision = message.revision
        if message.complete:
            self.tasks.clear()
        for assigned in message.tasks:
            self.tasks[assigned.task.id] = assigned
        for kind, object_id in message.removed:
            if kind == "task":
                self.tasks.pop(object_id, None)
                self.statuses.pop(object_id, None)

    async def report(self, wire: Wire | None = None) -> None:
        """Report on every task what the script says."""
        batch = []
        for task_id, assigned in self.tasks.items():
            held = self.statuses.get(task_id)
            if held is not None and is_terminal(held.state):
                new = held
            else:
                state = TaskState.SHUTDOWN if assigned.task.desired >= TaskState.SHUTDOWN else self.script(assigned)
                if state == TaskState.RUNNING and assigned.task.desired < TaskState.RUNNING:
                    state = TaskState.READY
                new = held if held is not None and held.state >= state else self._status(task_id, state)
            if new != held:
                self.statuses[task_id] = new
                batch.append(new)
        if batch:
            await self.say(batch, wire)

    def _status(self, task_id: str, state: TaskState) -> TaskStatus:
        exit_code = 1 if state == TaskState.FAILED else 0 if is_terminal(state) else None
        container = task_id.ljust(64, "0")
        return TaskStatus(id=task_id, node_id=self.node_id, state=state, container_id=container, pid=42, exit_code=exit_code)

    async def say(self, statuses: list[TaskStatus], wire: Wire | None = None) -> None:
        """Send a batch, whatever it says."""
        wire = wire or self._wire
        assert wire is not None, self.faults
        self._sequence += 1
        await wire.send(StatusBatch(sequence=self._sequence, statuses=tuple(statuses)))

    def hang_up(self) -> None:
        """Break the link; another session follows."""
        if self._wire is not None:
            self._wire.writer.transport.abort()

    async def _dial_back(self, connection_id: str) -> None:
        wire, _ = await dial(self.address, client_context(self.identity), "dialback")
        await wire.send(DialBackOpen(connection_id=connection_id))
        async with tunnel.through((wire.reader, wire.writer)) as (reader, writer):
            with contextlib.suppress(OSError):
                if self.serve is not None:
                    await self.serve(reader, writer)
                writer.close()


def with_state(status: TaskStatus, state: TaskState) -> TaskStatus:
    """``status`` in another state."""
    return msgspec.structs.replace(status, state=state)
