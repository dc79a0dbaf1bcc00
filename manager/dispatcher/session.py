"""One worker's session, the manager's end: takes its statuses and heartbeats, sends it what it should hold.

It decides the order of what a worker is told; which sessions there are is dispatcher.py's. Heartbeats are never written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol

from covey.errors import InvalidArgument
from covey.model.objects import NodeDescription, TaskStatus
from covey.wire.messages import (
    AnyMessage,
    BlobEnded,
    BlobWanted,
    DescriptionUpdate,
    Disconnect,
    Heartbeat,
    ImageReport,
    ImagesHeld,
    ImageSought,
    ImageWanted,
    LoginsWanted,
    SessionOpened,
    StatusBatch,
    StatusStored,
)
from manager.dispatcher.assignments import NOTHING, Holding, complete, diff
from manager.dispatcher.link import Closed, Link
from manager.dispatcher.status import SessionGone, StatusWriter, fold

log = logging.getLogger(__name__)

#: Changes that come in a rush are sent together.
GATHER_SECONDS = 0.01
GOODBYE_SECONDS = 1.0


class Desk(Protocol):
    """What a session asks of the dispatcher."""

    async def held_by(self, node_id: str, former: Holding) -> Holding: ...

    async def describe(self, session: Session, description: NodeDescription) -> None: ...

    def heard_of_images(self, session: Session, message: ImageReport) -> None: ...

    def logins_wanted(self, session: Session, message: LoginsWanted) -> None: ...


class Ended(Exception):
    """The session is over, and in what words the worker is told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """``record`` is the mod_revision of its record in the store; ``silence`` counts seconds since it was last heard."""

    def __init__(self, session_id: str, node_id: str, address: str, opened_at: float, link: Link) -> None:
        self.id = session_id
        self.node_id = node_id
        self.address = address
        self.opened_at = opened_at
        self.record = 0
        self.silence = 0.0
        self.linked = True
        self._link = link
        self._dirty = asyncio.Event()
        self._cause = "session opened"
        self._statuses: list[TaskStatus] = []
        self._sequence = 0
        self._reported = asyncio.Event()
        self._sending = asyncio.Lock()
        self._posted: asyncio.Queue[AnyMessage] = asyncio.Queue()
        self._over: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def touch(self, cause: str) -> None:
        """What the node should hold may have changed."""
        if not self._dirty.is_set():
            self._cause = cause
            self._dirty.set()

    def end(self, code: str, message: str) -> None:
        """End the session soon; the worker is told if it can be."""
        if not self._over.done():
            self._over.set_result(Ended(code, message))

    async def send(self, message: AnyMessage) -> None:
        """Write one message, whole. Raises Closed."""
        async with self._sending:
            await self._link.send(message)

    def post(self, message: AnyMessage) -> None:
        """Write one message in its turn; whoever posts does not wait for this worker."""
        self._posted.put_nowait(message)

    async def run(self, desk: Desk, writer: StatusWriter, opened: SessionOpened) -> None:
        """Serve until the link breaks (Closed), the session is ended (returns), or something is wrong (CoveyError)."""
        await self.send(opened)
        work = asyncio.create_task(self._work(desk, writer, opened.heartbeat), name=f"session {self.node_id}")
        try:
            either: list[asyncio.Future[Any]] = [work, self._over]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                _raise_first(work)
            elif self._over.done():
                ended = self._over.result()
                await self._say_goodbye(ended)
        except asyncio.CancelledError:
            await self._say_goodbye(Ended("stopping", "the manager stops: go to another or wait"))
            raise
        finally:
            self.linked = False
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, desk: Desk, writer: StatusWriter, heartbeat: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(desk, heartbeat))
            group.create_task(self._assign(desk))
            group.create_task(self._report(writer))
            group.create_task(self._send_posted())

    async def _listen(self, desk: Desk, heartbeat: float) -> None:
        while True:
            message = await self._link.receive()
            self.silence = 0.0
            match message:
                case Heartbeat():
                    await self.send(Heartbeat(period=heartbeat))
                case StatusBatch():
                    self._statuses += message.statuses
                    self._sequence = message.sequence
                    self._reported.set()
                case DescriptionUpdate():
                    await desk.describe(self, message.description)
                case ImagesHeld() | ImageWanted() | ImageSought() | BlobWanted() | BlobEnded():
                    desk.heard_of_images(self, message)
                case LoginsWanted():
                    desk.logins_wanted(self, message)
                case Disconnect():
                    raise Closed(f"the worker ended the session ({message.code}): {message.message}")
                case _:
                    raise InvalidArgument(f"a worker may not send {type(message).__name__} within a session")

    async def _assign(self, desk: Desk) -> None:
        held, sequence, number = await desk.held_by(self.node_id, NOTHING), f"{self.id}.0", 0
        await self.send(complete(held, sequence, self._cause))
        while True:
            await self._dirty.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._dirty.clear()
            new = await desk.held_by(self.node_id, held)
            message = diff(held, new, sequence, f"{self.id}.{number + 1}", self._cause)
            if message is not None:
                await self.send(message)
                held, sequence, number = new, message.results_in, number + 1

    async def _report(self, writer: StatusWriter) -> None:
        while True:
            await self._reported.wait()
            self._reported.clear()
            statuses, self._statuses = fold(self._statuses), []
            sequence = self._sequence
            try:
                refused = await writer.store(self.node_id, lambda: self.record, statuses)
            except SessionGone as gone:
                self.end("superseded", str(gone))
                return
            await self.send(StatusStored(sequence=sequence, refused=tuple(refused)))

    async def _send_posted(self) -> None:
        while True:
            await self.send(await self._posted.get())

    async def _say_goodbye(self, ended: Ended) -> None:
        with contextlib.suppress(Closed, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.send(Disconnect(code=ended.code, message=str(ended)))

    def statistics(self) -> dict[str, Any]:
        """How the session is."""
        return {"session": self.id, "linked": self.linked, "silence": round(self.silence, 2), "unstored": len(self._statuses)}


def _raise_first(work: asyncio.Task[None]) -> None:
    """Raise the one fault of a session's task group."""
    fault = work.exception()
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    if fault is not None:
        raise fault
