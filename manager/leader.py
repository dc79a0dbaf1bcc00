"""Who leads: campaign on the leader key with this manager's lease, lead while both are held, resign.

It decides when this manager may write decisions, never which. Everything a leader does runs inside ``lead``, which is
cancelled at once when the lease is lost or the key is another's; the lease is renewed from outside this event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from covey.clock import Clock
from covey.errors import CoveyError
from covey.model.objects import Leader
from manager.lease import Claim
from manager.store.codec import decode, encode
from manager.store.interface import (
    Delete,
    Lease,
    LeaseLost,
    OutcomeUnknown,
    Put,
    Store,
    StoreUnavailable,
    absent,
    created_at,
    mod_is,
)
from manager.store.keys import Keys
from manager.store.mirror import Mirror

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Term(NamedTuple):
    """One time in office: ``fence`` is the leader key's create_revision, ``since`` in seconds since the epoch."""

    fence: int
    since: float


class Deposed(Exception):
    """This manager leads no more; what it was deciding is void."""


class Candidate:
    """Runs for the office until cancelled; calls ``lead(term)`` while in it."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        claim: Claim,
        keys: Keys,
        clock: Clock,
        node_id: str,
        address: str,
        lead: Callable[[Term], Awaitable[None]],
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._claim = claim
        self._key = keys.key("leader")
        self._clock = clock
        self._node_id = node_id
        self._address = address
        self._lead = lead
        self.term: Term | None = None
        self.terms = 0

    async def campaign(self) -> None:
        """Campaign, lead, and again, until cancelled; then resign."""
        while True:
            lease = await self._claim.wait_lease()
            try:
                term = await self._run_for_office(lease)
            except (LeaseLost, OutcomeUnknown):
                await self._clock.sleep(RETRY_SECONDS)
                continue
            except CoveyError as error:
                log.warning("the election did not get through: %s; trying again", error.message)
                await self._clock.sleep(RETRY_SECONDS)
                continue
            if term is None:
                await self._wait_vacancy(lease)
                continue
            await self._hold_office(term, lease)

    def statistics(self) -> dict[str, Any]:
        """Whether this manager leads, since when, how often it was elected."""
        return {"leading": self.term is not None, "since": self.term.since if self.term else 0.0, "terms": self.terms}

    async def _run_for_office(self, lease: Lease) -> Term | None:
        now = self._clock.now()
        value = encode(Leader(node_id=self._node_id, address=self._address, elected_at=now))
        result = await self._store.txn([absent(self._key)], [Put(self._key, value, lease.id)])
        if result.ok:
            return Term(fence=result.revision, since=now)
        held = await self._store.get(self._key)
        if held is not None and held.lease == lease.id:
            # The answer of an earlier attempt was lost: it had won.
            return Term(fence=held.create_revision, since=now)
        if held is not None and getattr(decode(held.value, held.mod_revision), "node_id", "") == self._node_id:
            # Left by this manager's former process, or on its former lease. Whoever still believes in it is fenced off.
            await self._store.txn([mod_is(self._key, held.mod_revision)], [Delete(self._key)])
            return await self._run_for_office(lease)
        return None

    async def _wait_vacancy(self, lease: Lease) -> None:
        with self._mirror.changes(["leader"]) as changed:
            while not lease.lost.is_set() and "leader" in self._mirror.objects("leader"):
                await _first(changed.wait(), lease.lost.wait())
        if not lease.lost.is_set() and await self._store.get(self._key) is not None:
            await self._clock.sleep(RETRY_SECONDS)

    async def _hold_office(self, term: Term, lease: Lease) -> None:
        log.info("elected leader (fence %d)", term.fence)
        self.term, self.terms = term, self.terms + 1
        leading = asyncio.ensure_future(self._lead_from(term))
        ended = asyncio.ensure_future(self._wait_deposed(term, lease))
        try:
            await asyncio.wait({leading, ended}, return_when=asyncio.FIRST_COMPLETED)
            if leading.done() and not leading.cancelled() and (fault := leading.exception()) is not None:
                if not _is_deposed(fault):
                    raise fault
                log.warning("deposed: a transaction met a newer leader")
        finally:
            self.term = None
            for running in (leading, ended):
                running.cancel()
            await asyncio.gather(leading, ended, return_exceptions=True)
            await self._resign(term, lease)

    async def _lead_from(self, term: Term) -> None:
        """Decide nothing from a view that is older than the term, however late the watch is."""
        while True:
            try:
                await self._mirror.wait_revision(term.fence)
                break
            except StoreUnavailable as late:
                log.warning("elected, but the view is older than the term: %s", late.message)
        await self._lead(term)

    async def _wait_deposed(self, term: Term, lease: Lease) -> None:
        await self._mirror.wait_revision(term.fence)
        with self._mirror.changes(["leader"]) as changed:
            while not lease.lost.is_set():
                held = self._mirror.objects("leader").get("leader")
                if held is None or held.version < term.fence or getattr(held, "node_id", "") != self._node_id:
                    log.warning("deposed: the leader key is no longer this manager's")
                    return
                await _first(changed.wait(), lease.lost.wait())
        log.warning("leadership ends: the lease was lost")

    async def _resign(self, term: Term, lease: Lease) -> None:
        if lease.lost.is_set():
            return
        try:
            async with asyncio.timeout(2.0):
                await self._store.txn([created_at(self._key, term.fence)], [Delete(self._key)])
        except (CoveyError, TimeoutError) as error:
            log.info("could not resign (%s): the office is free when the lease ends", str(error) or "no answer")


def _is_deposed(fault: BaseException) -> bool:
    if isinstance(fault, BaseExceptionGroup):
        return fault.split(Deposed)[1] is None
    return isinstance(fault, Deposed)


async def _first(*waits: Any) -> None:
    """Return when the first of ``waits`` does; the others are cancelled."""
    running = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
