"""What the memory store has beyond the contract: one database for several clients, a clock it is told, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from manager.store.interface import LeaseLost, OutcomeUnknown, Put, StoreUnavailable, absent
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mvcc import Database

T = TypeVar("T")


class SetClock:
    """A clock that stands until told."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def step(call: Coroutine[Any, Any, T]) -> T:
    """Run a call that must not suspend."""
    try:
        call.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("the call suspended")


def test_without_delays_no_call_suspends() -> None:
    database, clock = Database(), SetClock()
    one, other = MemoryStore(database, clock), MemoryStore(database, clock)
    assert step(one.txn([absent("/a")], [Put("/a", b"1")])) == (True, 2)
    assert step(other.txn([absent("/a")], [Put("/a", b"2")])) == (False, 2)
    item = step(other.get("/a"))
    assert item is not None
    assert item.value == b"1"
    watch = one.watch(["/"], 1)
    assert [event.item.key for event in step(watch.__anext__()).events] == ["/a"]
    assert step(one.revision()) == 2


def test_leases_end_by_the_clock_alone() -> None:
    clock = SetClock()
    store = MemoryStore(clock=clock)
    lease = step(store.grant(10))
    step(store.txn([], [Put("/l", b"", lease.id)]))
    clock.time += 9.9
    assert step(store.renew(lease)) == 10
    clock.time += 9.9
    assert step(store.get("/l")) is not None
    clock.time += 0.1
    assert step(store.get("/l")) is None
    with pytest.raises(LeaseLost):
        step(store.renew(lease))


def test_faults_before_and_after() -> None:
    verdicts: list[Verdict] = []
    store = MemoryStore(clock=SetClock(), faults=lambda call, keys: verdicts.pop() if verdicts else Verdict())
    verdicts.append(Verdict(fail=Fail.BEFORE))
    with pytest.raises(StoreUnavailable):
        step(store.txn([], [Put("/a", b"")]))
    assert step(store.get("/a")) is None
    verdicts.append(Verdict(fail=Fail.AFTER))
    with pytest.raises(OutcomeUnknown):
        step(store.txn([], [Put("/a", b"")]))
    assert step(store.get("/a")) is not None


def test_a_watch_that_breaks_gives_nothing_twice_and_loses_nothing() -> None:
    verdicts = [Verdict(fail=Fail.AFTER), Verdict(before=5, fail=Fail.BEFORE), Verdict()]
    clock = SetClock()
    store = MemoryStore(clock=clock, faults=lambda call, keys: verdicts.pop(0) if call == "watch" else Verdict())
    step(store.txn([], [Put("/a", b"")]))
    batch = step(store.watch(["/"], 1).__anext__())
    assert [event.item.key for event in batch.events] == ["/a"]
    assert clock.time > 105


@pytest.mark.asyncio
async def test_a_keeper_that_hears_nothing_gives_up_in_time() -> None:
    cut = False
    store = MemoryStore(faults=lambda call, keys: Verdict(fail=Fail.BEFORE) if cut else Verdict())
    async with store:
        lease = await store.grant(0.3)
        async with store.keep_alive(lease):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lease.lost.wait(), 0.5)
            cut = True
            await asyncio.wait_for(lease.lost.wait(), 0.6)
