"""The only writer of decisions: a plan is verified, cut into fenced transactions, and brought to the store.

It decides what becomes of a plan that lost: nothing, the loop that made it decides again from a newer snapshot. It must not
know what a plan is about.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

from covey.clock import Clock
from manager.leader import Deposed
from manager.store.interface import OutcomeUnknown, Store, StoreUnavailable
from manager.store.keys import Keys
from manager.store.mirror import Mirror
from manager.transactions import Txn, fence, transactions
from scheduler.plan import Plan
from scheduler.settings import Settings
from scheduler.verify import verify
from scheduler.writes import groups

log = logging.getLogger(__name__)

IN_FLIGHT = 8

#: What one pass writes at the most; the rest is decided anew by the next, so that no pass holds the loop for long.
MAX_GROUPS = 2000

RETRY_SECONDS = 0.2


class Outcome(NamedTuple):
    """What became of a plan: transactions applied and lost, rows refused; ``more``: it was longer than one pass writes."""

    applied: int
    lost: int
    refused: int
    more: bool


class Committer:
    """Commits the plans of one term."""

    def __init__(
        self, store: Store, mirror: Mirror, keys: Keys, clock: Clock, settings: Settings, create_revision: int
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._settings = settings
        self._revision = create_revision
        self._fence = fence(keys, create_revision)
        self._flight = asyncio.Semaphore(IN_FLIGHT)
        self._counts = dict.fromkeys(("plans", "groups", "transactions", "lost", "unknown", "refused"), 0)

    async def commit(self, plan: Plan) -> Outcome:
        """Write ``plan``, which was made from the mirror's snapshot in this same step of the event loop.

        Returns once the mirror shows what was written. Raises Deposed when a newer leader stands in the way.
        """
        snapshot = self._mirror.snapshot()
        accepted, refusals = verify(plan, snapshot, self._settings)
        for refusal in refusals:
            log.warning("%s of %s in plan %r is not written: %s", refusal.change, refusal.id, plan.cause, refusal.why)
        # Drawn here and now: after the first await the snapshot is not ours any more.
        drawn = list(itertools.islice(groups(accepted, snapshot, self._clock.now()), MAX_GROUPS + 1))
        more = len(drawn) > MAX_GROUPS
        del drawn[MAX_GROUPS:]
        self._count(plans=1, groups=len(drawn), refused=len(refusals))
        applied, lost, reached = await self._run(transactions(drawn, self._fence, self._keys))
        if lost:
            reached = max(reached, await self._current())
        if reached:
            await self._wait_seen(reached)
        if lost:
            self._check_fence()
        return Outcome(applied, lost, len(refusals), more)

    def statistics(self) -> dict[str, Any]:
        """Counters since the term began."""
        return dict(self._counts)

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number

    async def _run(self, txns: Iterable[Txn]) -> tuple[int, int, int]:
        """(applied, lost, newest revision) after every transaction has an outcome."""
        running: list[asyncio.Task[int]] = []
        async with asyncio.TaskGroup() as group:
            for txn in txns:
                await self._flight.acquire()
                running.append(group.create_task(self._send(txn)))
        revisions = [task.result() for task in running]
        lost = sum(1 for revision in revisions if not revision)
        return len(revisions) - lost, lost, max(revisions, default=0)

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
        finally:
            self._flight.release()
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
