"""Leases, election and lateness: who leads, when it ends, and what a stall is blamed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from covey.clock import SystemClock
from manager.lateness import Lateness
from manager.leader import Candidate, Deposed, Term
from manager.lease import Claim
from manager.store.interface import Delete
from manager.store.keys import Keys
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mirror import Mirror
from manager.store.mvcc import Database

KEYS = Keys()


class Contender:
    """One manager's lease and candidacy; ``cut`` loses every call of its to the store."""

    def __init__(self, database: Database, name: str, ttl: float = 0.4) -> None:
        self.name = name
        self.ttl = ttl
        self.cut = False
        self.store = MemoryStore(database, faults=self._faults)
        self.terms: list[Term] = []
        self.leading = asyncio.Event()
        self.ended: list[str] = []
        self.fault: Exception | None = None

    def _faults(self, call: str, keys: tuple[str, ...]) -> Verdict:
        return Verdict(fail=Fail.BEFORE if self.cut else Fail.NO)

    async def __aenter__(self) -> Contender:
        await self.store.__aenter__()
        self.mirror = Mirror(self.store, KEYS)
        await self.mirror.__aenter__()
        await self.mirror.wait_listed()
        self.claim = Claim(self.store, self.ttl, SystemClock())
        self.candidate = Candidate(self.store, self.mirror, self.claim, KEYS, SystemClock(), self.name, "", self._lead)
        self.tasks = [asyncio.create_task(self.claim.hold()), asyncio.create_task(self.candidate.campaign())]
        return self

    async def __aexit__(self, *fault: Any) -> None:
        for task in reversed(self.tasks):
            task.cancel()
            await asyncio.wait([task])
        await self.mirror.__aexit__(None, None, None)
        await self.store.__aexit__(None, None, None)

    async def _lead(self, term: Term) -> None:
        self.terms.append(term)
        self.leading.set()
        try:
            while self.fault is None:
                await asyncio.sleep(0.01)
            raise self.fault
        finally:
            self.leading.clear()
            self.ended.append("ended")


async def leads(contender: Contender, seconds: float = 4.0) -> None:
    async with asyncio.timeout(seconds):
        await contender.leading.wait()


@pytest.mark.asyncio
async def test_one_leads_and_resigning_makes_room_at_once() -> None:
    database = Database()
    async with Contender(database, "m1") as first:
        await leads(first)
        async with Contender(database, "m2") as second:
            await asyncio.sleep(0.1)
            assert not second.leading.is_set()
            for task in reversed(first.tasks):
                task.cancel()
                await asyncio.wait([task])
            await leads(second)
            assert second.terms[0].fence > first.terms[0].fence
            held = database.get("/covey/leader")
            assert held is not None
            assert held.create_revision == second.terms[0].fence


@pytest.mark.asyncio
async def test_a_leader_cut_from_the_store_stops_leading_when_another_begins() -> None:
    database = Database()
    async with Contender(database, "m1") as first, Contender(database, "m2") as second:
        await asyncio.wait(
            [asyncio.create_task(first.leading.wait()), asyncio.create_task(second.leading.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        old, new = (first, second) if first.leading.is_set() else (second, first)
        old.cut = True
        await leads(new)
        # A lease that could not be renewed is given up within a renewal's retry; until then the fence keeps the peace.
        async with asyncio.timeout(0.3):
            while old.leading.is_set():
                await asyncio.sleep(0.01)
        assert old.ended == ["ended"]
        old.cut = False


@pytest.mark.asyncio
async def test_a_leader_whose_key_vanishes_is_deposed_and_campaigns_again() -> None:
    database = Database()
    async with Contender(database, "m1") as only:
        await leads(only)
        database.txn([], [Delete("/covey/leader")])
        async with asyncio.timeout(4):
            while len(only.terms) < 2:
                await asyncio.sleep(0.01)
        assert only.terms[1].fence > only.terms[0].fence


@pytest.mark.asyncio
async def test_a_deposed_transaction_ends_the_term_and_a_fault_ends_the_campaign() -> None:
    database = Database()
    async with Contender(database, "m1") as only:
        await leads(only)
        only.fault = Deposed("a newer one")
        async with asyncio.timeout(4):
            while not only.ended:
                await asyncio.sleep(0.01)
        only.fault = None
        await leads(only)
        only.fault = ZeroDivisionError("a bug in a decision")
        async with asyncio.timeout(4):
            await asyncio.wait([only.tasks[1]])
        assert isinstance(only.tasks[1].exception(), ZeroDivisionError)


@pytest.mark.asyncio
async def test_a_successor_of_the_same_node_does_not_wait_for_the_lease_of_the_dead() -> None:
    database = Database()
    async with Contender(database, "m1", ttl=60.0) as former:
        await leads(former)
        former.cut = True  # as after SIGKILL: nothing is resigned, nothing revoked
        for task in reversed(former.tasks):
            task.cancel()
            await asyncio.wait([task])
        held = database.get("/covey/leader")
        assert held is not None
        async with Contender(database, "m2") as stranger, Contender(database, "m1") as successor:
            await leads(successor, 2.0)
            assert successor.terms[0].fence > former.terms[0].fence
            assert not stranger.terms


class StalledClock:
    """A clock that a test moves; sleeping waits for it."""

    def __init__(self) -> None:
        self.at = 100.0
        self.moved = asyncio.Event()

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        until = self.at + seconds
        while self.at < until:
            await self.moved.wait()
            self.moved.clear()

    def move(self, seconds: float) -> None:
        self.at += seconds
        self.moved.set()


@pytest.mark.asyncio
async def test_a_stall_counts_before_and_after_it_is_noticed_and_is_forgotten() -> None:
    clock = StalledClock()
    lateness = Lateness(clock, 0.1, memory=5.0)
    watching = asyncio.create_task(lateness.watch())
    await asyncio.sleep(0)
    clock.move(0.1)
    await asyncio.sleep(0)
    assert lateness.recent() == 0.0
    clock.move(10.1)
    assert lateness.recent() == pytest.approx(10.0), "asked before the watcher had its turn"
    for _ in range(3):
        await asyncio.sleep(0)
    assert lateness.recent() == pytest.approx(10.0)
    for _ in range(60):
        clock.move(0.1)
        for _ in range(3):
            await asyncio.sleep(0)
    assert lateness.recent() == 0.0
    assert lateness.statistics()["worst"] == pytest.approx(10.0)
    watching.cancel()
