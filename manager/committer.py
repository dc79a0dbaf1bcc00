"""The only writer of decisions: what a pass wants is cut into fenced transactions and brought to the store.

It decides what becomes of what lost: nothing, the loop that wanted it decides again from a newer snapshot. It must not know
what a pass is about. Transactions are made as others are on their way, so that no long work holds the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from covey.clock import Clock
from manager.leader import Deposed
from manager.store.interface import OutcomeUnknown, Store, StoreUnavailable
from manager.store.keys import Keys
from manager.store.mirror import Mirror
from manager.transactions import Txn, fence, transactions
from scheduler.passes import Pass

log = logging.getLogger(__name__)

IN_FLIGHT = 8

RETRY_SECONDS = 0.2


class Outcome(NamedTuple):
    """What became of a pass: transactions applied and lost, rows refused."""

    applied: int
    lost: int
    refused: int


class Committer:
    """Commits what is decided in one term."""

    def __init__(self, store: Store, mirror: Mirror, keys: Keys, clock: Clock, create_revision: int) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._revision = create_revision
        self._fence = fence(keys, create_revision)
        self._flight = asyncio.Semaphore(IN_FLIGHT)
        self._counts = dict.fromkeys(("plans", "groups", "transactions", "lost", "unknown", "refused"), 0)
        self._seconds = dict.fromkeys(("encode", "store", "seen"), 0.0)

    async def commit(self, work: Pass) -> Outcome:
        """Write what ``work``, which is done, wants.

        Returns once the mirror shows what was written. Raises Deposed when a newer leader stands in the way.
        """
        for refusal in work.refusals:
            log.warning("%s of %s in %s is not written: %s", refusal.change, refusal.id, work.causes, refusal.why)
        wanted = work.groups
        self._count(plans=len(work.causes), groups=len(wanted), refused=len(work.refusals))
        began = self._clock.monotonic()
        applied, lost, reached = await self._run(transactions(wanted, self._fence, self._keys))
        if lost:
            reached = max(reached, await self._current())
        written = self._clock.monotonic()
        if reached:
            await self._wait_seen(reached)
        self._seconds["store"] += written - began
        self._seconds["seen"] += self._clock.monotonic() - written
        if lost:
            self._check_fence()
        return Outcome(applied, lost, len(work.refusals))

    def statistics(self) -> dict[str, Any]:
        """Counters since the term began, and seconds: ``encode`` on the event loop, ``store`` until every transaction of a
        pass had its outcome (encoding included), ``seen`` until the mirror had it too."""
        return {**self._counts, **{f"{name}_seconds": round(spent, 4) for name, spent in self._seconds.items()}}

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number

    async def _run(self, txns: Iterable[Txn]) -> tuple[int, int, int]:
        """(applied, lost, newest revision) after every transaction has an outcome."""
        running: list[asyncio.Task[int]] = []
        async with asyncio.TaskGroup() as group:
            for txn in self._timed(txns):
                await self._flight.acquire()
                sending = group.create_task(self._send(txn))
                # Also when it is cancelled before it has begun.
                sending.add_done_callback(lambda _: self._flight.release())
                running.append(sending)
        revisions = [task.result() for task in running]
        lost = sum(1 for revision in revisions if not revision)
        return len(revisions) - lost, lost, max(revisions, default=0)

    def _timed(self, txns: Iterable[Txn]) -> Iterator[Txn]:
        drawn = iter(txns)
        while True:
            began = self._clock.monotonic()
            txn = next(drawn, None)
            self._seconds["encode"] += self._clock.monotonic() - began
            if txn is None:
                return
            yield txn

    async def _send(self, txn: Txn) -> int:
        """The revision at which ``txn`` was applied, 0 when it was not or may not have been."""
        try:
            result = await self._store.txn(txn.compares, txn.operations)
        except OutcomeUnknown as error:
            log.warning("outcome of %r unknown (%s): reading, then deciding again", txn.cause, error.message)
            self._count(unknown=1)
            return 0
        except StoreUnavailable as error:
            log.warning("could not write %r: %s", txn.cause, error.message)
            await self._clock.sleep(RETRY_SECONDS)
            return 0
        self._count(**{"transactions" if result.ok else "lost": 1})
        return result.revision if result.ok else 0

    async def _current(self) -> int:
        """The store's revision, however long it takes to learn it: who lost must see what beat it."""
        while True:
            try:
                return await self._store.revision()
            except StoreUnavailable:
                await self._clock.sleep(RETRY_SECONDS)

    async def _wait_seen(self, revision: int) -> None:
        while True:
            try:
                return await self._mirror.wait_revision(revision)
            except StoreUnavailable as error:
                log.warning("waiting for the mirror: %s", error.message)

    def _check_fence(self) -> None:
        leader = self._mirror.objects("leader").get("leader")
        if leader is None or leader.version != self._revision:
            raise Deposed(f"the leader key is not of revision {self._revision} any more")
