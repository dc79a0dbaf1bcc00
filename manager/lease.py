"""This manager's claim on its place in the cluster: one lease, renewed in the background, replaced when it was lost.

The leader key and the session records hang on it. It decides when a new lease is needed; what hangs on a lease is put
there again by its owner, who waits in ``wait_change``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from covey.clock import Clock
from covey.errors import CoveyError
from manager.store.interface import Lease, Store

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5


class Claim:
    """Run it in a TaskGroup with ``hold``; ``lease`` is None while there is none."""

    def __init__(self, store: Store, ttl: float, clock: Clock) -> None:
        self._store = store
        self._ttl = ttl
        self._clock = clock
        self._changed = asyncio.Event()
        self.lease: Lease | None = None
        self.granted = 0

    async def hold(self) -> None:
        """Hold a lease until cancelled; then it is revoked and what hung on it is gone at once."""
        try:
            while True:
                lease = await self._grant()
                async with self._store.keep_alive(lease):
                    self._set(lease)
                    await lease.lost.wait()
                    self._set(None)
                    log.warning("the lease of this manager was lost: sessions are put on a new one")
        finally:
            held, self.lease = self.lease, None
            if held is not None:
                await self._give_up(held)

    async def wait_lease(self) -> Lease:
        """A lease that is held now."""
        while self.lease is None:
            await self.wait_change()
        return self.lease

    async def wait_change(self) -> None:
        """Return when the lease was lost or a new one is held."""
        await self._changed.wait()

    def statistics(self) -> dict[str, Any]:
        """How many leases there have been, and the one held."""
        return {"granted": self.granted, "lease": self.lease.id if self.lease else 0}

    async def _grant(self) -> Lease:
        said = False
        while True:
            try:
                return await self._store.grant(self._ttl)
            except CoveyError as error:
                if not said:
                    log.warning("no lease from the store: %s; trying until there is one", error.message)
                said = True
                await self._clock.sleep(RETRY_SECONDS)

    def _set(self, lease: Lease | None) -> None:
        self.lease = lease
        self.granted += lease is not None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _give_up(self, lease: Lease) -> None:
        try:
            async with asyncio.timeout(2.0):
                await self._store.revoke(lease)
        except (CoveyError, TimeoutError) as error:
            why = str(error) or "no answer"
            log.info("the lease was not revoked (%s): it ends by itself within %.0f s", why, lease.ttl)
