"""The session: opened outward, kept by heartbeats, opened again when it breaks; dial-backs carry HTTP with half-close."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from covey import tunnel
from covey.clock import SystemClock
from covey.model.objects import NodeDescription, TaskStatus
from covey.model.task_states import TaskState as S
from covey.wire.messages import (
    Assignments,
    DescriptionUpdate,
    DialBack,
    DialBackOpen,
    Disconnect,
    Heartbeat,
    Refused,
    StatusBatch,
    StatusStored,
)
from worker.agent.session import BACKOFF, Session
from worker.agent.vocabulary import Assigned, SessionDown, SessionUp, Stored

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripted_manager import Authority, Peer, port

AUTHORITY = Authority()
MANAGER = AUTHORITY.identity("m1", "manager")


class Pauses(SystemClock):
    """The machine's clock; pauses between attempts are written down and cut short."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(min(seconds, 0.02))


class Worker:
    """A session with its surroundings: events fed, the description, what answers a dial-back."""

    def __init__(self, *managers: str, clock: SystemClock | None = None) -> None:
        self.events: list[Any] = []
        self.description = NodeDescription(hostname="w1")
        self.learned: list[tuple[str, ...]] = []
        self.session = Session(
            AUTHORITY.identity("w1", "worker"),
            managers,
            clock or SystemClock(),
            software="test",
            describe=self._describe,
            revision=lambda: 42,
            feed=self.events.append,
            serve=self._serve,
            learned=lambda found: self.learned.append(tuple(found)),
            address="10.0.0.9",
        )

    async def _describe(self) -> NodeDescription:
        return self.description

    async def _serve(self) -> tunnel.Duplex:
        """A server that answers only once its input has ended: what it says proves a half-close."""
        near, far = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=near)

        async def shout() -> None:
            writer.write((await reader.read()).upper())
            writer.write_eof()

        self._shouting = asyncio.create_task(shout())
        return await asyncio.open_unix_connection(sock=far)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        run = asyncio.create_task(self.session.run())
        try:
            yield
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


async def wait(condition: Callable[[], bool], what: str, state: Callable[[], Any] = lambda: "") -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited 10 s for {what}: {state()}"
        await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_a_session_says_who_it_is_and_what_it_has_and_feeds_what_it_hears() -> None:
    offers: list[Any] = []
    batches: list[Any] = []

    async def script(peer: Peer) -> None:
        assert peer.hello.purpose == "session"
        assert peer.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        offers.append(await peer.open("s1", managers=("127.0.0.1:1", "127.0.0.1:2")))
        await peer.send(Assignments(complete=True, results_in="a"), StatusStored(sequence=1, refused=(("t", "why"),)))
        batches.extend(message for message in await peer.until_closed() if isinstance(message, StatusBatch))

    async with port(MANAGER, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: bool(worker.of(Stored)), "the answers", worker.session.statistics)
            status = TaskStatus(id="t", node_id="w1", state=S.RUNNING)
            await worker.session.report("s0", StatusBatch(sequence=1, statuses=(status,)))
            await worker.session.report("s1", StatusBatch(sequence=2, statuses=(status,)))
        await wait(lambda: bool(batches), "the batch")
    assert (offers[0].revision, offers[0].address, offers[0].description.hostname) == (42, "10.0.0.9", "w1")
    assert worker.of(SessionUp)[0].session_id == "s1"
    assert worker.of(Assigned)[0].message.results_in == "a"
    assert worker.of(Stored)[0].refused == (("t", "why"),)
    assert worker.learned == [("127.0.0.1:1", "127.0.0.1:2")]
    assert worker.session.managers == ("127.0.0.1:1", "127.0.0.1:2")
    assert [batch.sequence for batch in batches] == [2], "a batch of an older session was sent"


@pytest.mark.asyncio
async def test_heartbeats_carry_a_changed_description_and_take_a_new_period() -> None:
    heard: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.open("s1", heartbeat=0.05)
        while True:
            heard.append(message := await peer.receive())
            if isinstance(message, Heartbeat):
                await peer.send(Heartbeat(period=0.02))

    async with port(MANAGER, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: len(heard) >= 2, "heartbeats")
            worker.description = NodeDescription(hostname="w1 renamed")
            await wait(lambda: any(isinstance(message, DescriptionUpdate) for message in heard), "the new description")


@pytest.mark.asyncio
@pytest.mark.parametrize("ending", ["closed", "silent", "bye", "refused", "reopened"])
async def test_a_session_that_ends_in_any_way_is_opened_again(ending: str) -> None:
    sessions: list[Peer] = []

    async def script(peer: Peer) -> None:
        sessions.append(peer)
        await peer.open(f"s{len(sessions)}", heartbeat=0.05)
        if len(sessions) > 1:
            while True:
                await peer.receive()
                await peer.send(Heartbeat())
        if ending == "bye":
            await peer.send(Disconnect(code="moved", message="another manager"))
        elif ending == "refused":
            await peer.send(Refused(status=503, message="not now"))
        if ending != "closed":
            await peer.until_closed()

    async with port(MANAGER, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: bool(worker.of(SessionUp)), "a session")
            if ending == "reopened":
                worker.session.reopen("an increment does not fit")
            await wait(lambda: len(worker.of(SessionUp)) == 2, "a second session", worker.session.statistics)
            assert [type(event) for event in worker.events[:3]] == [SessionUp, SessionDown, SessionUp]
            assert worker.session.statistics()["opened"] == 2


@pytest.mark.asyncio
async def test_attempts_back_off_to_eight_seconds_and_a_refusal_is_kept_for_people() -> None:
    async def script(peer: Peer) -> None:
        await peer.send(Refused(status=403, message="node w1 was removed from the cluster"))

    clock = Pauses()
    async with port(MANAGER, script) as address:
        worker = Worker(address, clock=clock)
        async with worker.running():
            await wait(lambda: len(clock.pauses) >= 9, "nine attempts")
        assert "node w1 was removed from the cluster" in worker.session.statistics()["fault"]
    for number, pause in enumerate(clock.pauses[:9]):
        most = min(BACKOFF[0] * 2**number, BACKOFF[1])
        assert most / 2 <= pause <= most
    assert not worker.events


@pytest.mark.asyncio
@pytest.mark.parametrize(("identity", "why"), [("stranger", "certificate"), ("worker", "no manager")])
async def test_who_is_no_manager_of_the_cluster_gets_no_word_from_us(identity: str, why: str) -> None:
    said: list[Any] = []

    async def script(peer: Peer) -> None:
        said.append(peer.hello)

    other = AUTHORITY.stranger() if identity == "stranger" else AUTHORITY.identity("w2", "worker")
    async with port(other, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: why in worker.session.statistics()["fault"], "a refusal", worker.session.statistics)
    assert not said


@pytest.mark.asyncio
async def test_a_dial_back_reaches_the_node_s_api_and_half_close_reaches_its_end() -> None:
    answers: list[bytes] = []
    dialed: list[str] = []

    async def script(peer: Peer) -> None:
        if peer.hello.purpose == "session":
            await peer.open("s1")
            await peer.send(DialBack(connection_id="d1"))
            while True:
                await peer.receive()
                await peer.send(Heartbeat())
        await peer.welcome()
        opened = await peer.receive()
        assert isinstance(opened, DialBackOpen)
        dialed.append(opened.connection_id)
        async with tunnel.through((peer.reader, peer.writer)) as (reader, writer):
            writer.write(b"hello, node")
            writer.write_eof()
            answers.append(await reader.read())

    async with port(MANAGER, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: bool(answers), "the answer")
            assert worker.session.statistics()["session"] == "s1"
    assert (dialed, answers) == (["d1"], [b"HELLO, NODE"])


@pytest.mark.asyncio
async def test_a_dial_back_that_is_refused_leaves_the_session_alone() -> None:
    refused: list[str] = []
    beats: list[int] = []

    async def script(peer: Peer) -> None:
        if peer.hello.purpose == "session":
            await peer.open("s1", heartbeat=0.02)
            await peer.send(DialBack(connection_id="late"))
            while True:
                await peer.receive()
                beats.append(len(refused))
                await peer.send(Heartbeat())
        refused.append(peer.hello.purpose)
        await peer.send(Refused(status=404, message="nobody waits for it"))

    async with port(MANAGER, script) as address:
        worker = Worker(address)
        async with worker.running():
            await wait(lambda: sum(beats) > 5, "heartbeats after the refusal")
            assert len(worker.of(SessionUp)) == 1
            assert not worker.of(SessionDown)
