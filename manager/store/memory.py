"""A Store in this process: one client's view of an mvcc.Database, with faults to inject.

It decides nothing about data (mvcc.py does); it adds the clock, waiting and the failures of a connection. Several
MemoryStores on one Database are several managers on one etcd. Without delays no call suspends, so the simulation may
step the coroutines by hand.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from covey.clock import Clock, SystemClock
from manager.store.interface import (
    DEFAULT_PAGE,
    Compare,
    KeyPage,
    KeyRevision,
    KeyValue,
    Lease,
    LeaseLost,
    Operation,
    OutcomeUnknown,
    Page,
    StoreStatus,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
)
from manager.store.mvcc import Database

RENEWALS_PER_TTL = 3
RECONNECT = 0.1
BATCH_REVISIONS = 1000

T = TypeVar("T")


class Fail(enum.Enum):
    """Where a call breaks: before the store saw it, or after it was done and only the answer is lost."""

    NO = "no"
    BEFORE = "before"
    AFTER = "after"


class Verdict(NamedTuple):
    """What the injected callable wants for one call: seconds of delay on the way there and back, and a failure.

    Of a watch batch, either failure is a lost connection: the batch comes again after a reconnect.
    """

    before: float = 0.0
    after: float = 0.0
    fail: Fail = Fail.NO


Faults = Callable[[str, tuple[str, ...]], Verdict]
"""(name of the call: get, range, keys, txn, watch, grant, renew, revoke, revision, compact, status; its keys) → verdict."""

FAULTLESS = Verdict()


def no_faults(call: str, keys: tuple[str, ...]) -> Verdict:
    return FAULTLESS


class MemoryStore:
    """See interface.Store. ``database`` may be shared; ``clock`` ends leases and counts delays."""

    def __init__(self, database: Database | None = None, clock: Clock | None = None, faults: Faults = no_faults) -> None:
        self.database = database or Database()
        self.clock = clock or SystemClock()
        self.faults = faults
        self._calls: dict[str, int] = {}
        self._leases_changed = asyncio.Event()
        self._expiry: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._expiry = asyncio.create_task(self._expire_forever(), name="memory store: lease expiry")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.wait([self._expiry])

    def expire(self) -> None:
        """End the leases whose time is over by the clock; every call does so too."""
        self.database.expire(self.clock.monotonic())

    async def get(self, key: str) -> KeyValue | None:
        return await self._call("get", (key,), lambda: self.database.get(key))

    async def range(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> Page:
        def page() -> Page:
            items, more = self.database.range(prefix, limit, after_key, revision)
            return Page(tuple(items), revision or self.database.revision, more)

        return await self._call("range", (prefix,), page)

    async def keys(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> KeyPage:
        def page() -> KeyPage:
            items, more = self.database.range(prefix, limit, after_key, revision)
            bare = tuple(KeyRevision(item.key, item.mod_revision) for item in items)
            return KeyPage(bare, revision or self.database.revision, more)

        return await self._call("keys", (prefix,), page)

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        touched = tuple(operation[0] for operation in operations)
        return await self._call("txn", touched, lambda: self.database.txn(compares, operations))

    def watch(self, prefixes: Sequence[str], from_revision: int) -> MemoryWatch:
        return MemoryWatch(self, tuple(prefixes), from_revision)

    async def grant(self, ttl: float) -> Lease:
        lease = await self._call("grant", (), lambda: self.database.grant(ttl, self.clock.monotonic()))
        self._leases_changed.set()
        return Lease(lease, ttl)

    def keep_alive(self, lease: Lease) -> AbstractAsyncContextManager[Lease]:
        return self._kept_alive(lease)

    async def renew(self, lease: Lease) -> float:
        try:
            return await self._call("renew", (), lambda: self.database.renew(lease.id, self.clock.monotonic()))
        except LeaseLost:
            lease.lost.set()
            raise

    async def revoke(self, lease: Lease) -> None:
        await self._call("revoke", (), lambda: self.database.revoke(lease.id))
        lease.lost.set()

    async def revision(self) -> int:
        return await self._call("revision", (), lambda: self.database.revision)

    async def compact(self, revision: int) -> None:
        await self._call("compact", (), lambda: self.database.compact(revision))

    async def status(self) -> StoreStatus:
        return await self._call("status", (), lambda: StoreStatus("memory", "memory", self.database.revision, True, 0, ()))

    def statistics(self) -> dict[str, Any]:
        keys, versions, leases = self.database.size()
        return {"calls": dict(self._calls), "keys": keys, "versions": versions, "leases": leases}

    async def disturb(self, verdict: Verdict, call: str, when: Fail) -> None:
        """Delay and break a call as ``verdict`` wants, on its way there (BEFORE) or back (AFTER)."""
        delay = verdict.before if when is Fail.BEFORE else verdict.after
        if delay > 0:
            await self.clock.sleep(delay)
        if verdict.fail is when:
            if when is Fail.AFTER and call == "txn":
                raise OutcomeUnknown("memory store: answer of a transaction lost (injected): read, then decide")
            raise StoreUnavailable(f"memory store does not answer {call} (injected): try again")

    async def _call(self, call: str, keys: tuple[str, ...], apply: Callable[[], T]) -> T:
        self._calls[call] = self._calls.get(call, 0) + 1
        verdict = self.faults(call, keys)
        await self.disturb(verdict, call, Fail.BEFORE)
        self.expire()
        result = apply()
        await self.disturb(verdict, call, Fail.AFTER)
        return result

    async def _expire_forever(self) -> None:
        while True:
            self.expire()
            self._leases_changed.clear()
            deadline = self.database.next_expiry()
            if deadline is None:
                await self._leases_changed.wait()
            else:
                await self.clock.sleep(max(deadline - self.clock.monotonic(), 0.001))

    @asynccontextmanager
    async def _kept_alive(self, lease: Lease) -> AsyncIterator[Lease]:
        keeper = asyncio.create_task(self._renew_forever(lease), name=f"memory store: lease {lease.id:x}")
        try:
            yield lease
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])

    async def _renew_forever(self, lease: Lease) -> None:
        sure_until = self.clock.monotonic() + lease.ttl
        while not lease.lost.is_set():
            sent = self.clock.monotonic()
            if sent >= sure_until:
                lease.lost.set()
                return
            try:
                sure_until = sent + await self.renew(lease)
            except LeaseLost:
                return
            except StoreUnavailable:
                await self.clock.sleep(min(RECONNECT, lease.ttl / RENEWALS_PER_TTL))
            else:
                await self.clock.sleep(lease.ttl / RENEWALS_PER_TTL)


class MemoryWatch:
    """See interface.Watch. It holds a place in the database's history and nothing else."""

    def __init__(self, store: MemoryStore, prefixes: tuple[str, ...], from_revision: int) -> None:
        self._store = store
        self._prefixes = prefixes
        self._next = from_revision
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._store.database.changed.append(self._wake.set)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.database.changed.remove(self._wake.set)

    def __aiter__(self) -> Self:
        return self

    def ask_progress(self) -> None:
        """Nothing to do: every revision makes a batch."""

    async def __anext__(self) -> WatchBatch:
        while True:
            self._wake.clear()
            batch = self._take()
            if batch is None:
                await self._wake.wait()
                continue
            verdict = self._store.faults("watch", self._prefixes)
            try:
                await self._store.disturb(verdict, "watch", Fail.BEFORE)
                await self._store.disturb(verdict, "watch", Fail.AFTER)
            except StoreUnavailable:
                await self._store.clock.sleep(RECONNECT)
                continue
            self._next = batch.revision + 1
            return batch

    def _take(self) -> WatchBatch | None:
        passed = self._store.database.history(self._prefixes, self._next, BATCH_REVISIONS)
        if not passed:
            return None
        return WatchBatch(passed[-1][0], tuple(event for _, events in passed for event in events))
