"""The leader's loops as a table, and the one runner: wait → snapshot → decide → commit.

It decides when each decision is made, never what. A decision is synchronous; what it holds the event loop for, and how late
the loop itself was, shows in ``statistics()``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from covey.clock import Clock
from covey.errors import CoveyError
from manager.committer import Committer
from manager.lateness import Lateness
from manager.leader import Deposed
from manager.store.mirror import Mirror
from scheduler import allocate, liveness, reap
from scheduler.placement import place
from scheduler.plan import Plan
from scheduler.reconcile import decide as reconcile
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

log = logging.getLogger(__name__)

Decide = Callable[[Snapshot, float, Settings], Plan]

#: A pass this long is logged: the event loop served nobody meanwhile (rule 15).
LONG_PASS = 0.05

FIRST_RETRY = 0.005
LAST_RETRY = 1.0

#: Changes that follow each other closely are decided on together.
BREATH = 0.001


@dataclass(frozen=True, slots=True)
class Loop:
    """One row: ``decide`` runs when one of ``kinds`` changed or when its last plan said to wake it."""

    name: str
    kinds: Collection[str]
    decide: Decide


def table(late: Callable[[], float]) -> tuple[Loop, ...]:
    """The loops; ``late`` says by how many seconds this process was late of late, which no node is to blame for."""

    def live(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
        return liveness.decide(snapshot, now, settings, late())

    nodes = ("node", "node_info", "node_status", "session")
    tasks = ("task", "task_status")
    return (
        Loop("liveness", (*nodes, *tasks, "leader"), live),
        Loop("reconcile", (*nodes, *tasks, "cluster", "service", "service_status"), reconcile.decide),
        Loop(
            "allocate",
            (*tasks, "cluster", "service", "service_allocation", "network", "network_allocation"),
            allocate.decide,
        ),
        Loop("placement", (*nodes, *tasks, "service"), place.decide),
        Loop("reap", (*nodes, *tasks, "cluster", "service", "service_status"), reap.decide),
    )


class Runner:
    """Runs one row of the table within a term."""

    def __init__(self, loop: Loop, mirror: Mirror, committer: Committer, clock: Clock, settings: Settings) -> None:
        self._loop = loop
        self._mirror = mirror
        self._committer = committer
        self._clock = clock
        self._settings = settings
        self._counts = dict.fromkeys(("passes", "plans", "lost", "long", "faults"), 0)
        self._longest = self._last = 0.0
        self._vain = 0

    async def run(self) -> None:
        """Decide now, then whenever there is reason to, until cancelled or deposed."""
        with self._mirror.changes(self._loop.kinds) as changed:
            while True:
                changed.take()
                wake_at = await self._guarded_pass()
                # A loop that is always told of changes still takes no more than half of the process.
                await self._clock.sleep(max(BREATH, self._last))
                if wake_at is None:
                    await changed.wait()
                elif (left := wake_at - self._clock.now()) > 0:
                    await self._wait(changed.wait(), left)

    def statistics(self) -> dict[str, Any]:
        """Counters, and the longest time a pass held the event loop, in seconds."""
        return {**self._counts, "longest_pass": round(self._longest, 4)}

    async def _guarded_pass(self) -> float | None:
        """As ``_pass``; a fault of this decision is told and does not end the others'."""
        try:
            return await self._pass()
        except Deposed:
            raise
        except CoveyError as error:
            log.error("%s could not be committed: %s", self._loop.name, error.message)
        except Exception:
            self._counts["faults"] += 1
            log.exception("%s failed: deciding again in %.0f s", self._loop.name, LAST_RETRY)
        return self._clock.now() + LAST_RETRY

    async def _pass(self) -> float | None:
        """Decide and commit once; when to decide again without any change."""
        started = self._clock.monotonic()
        now = self._clock.now()
        plan = self._loop.decide(self._mirror.snapshot(), now, self._settings)
        self._measure(self._clock.monotonic() - started)
        if not plan:
            return plan.wake_at
        self._counts["plans"] += 1
        outcome = await self._committer.commit(plan)
        self._counts["lost"] += outcome.lost
        if outcome.lost or outcome.refused:
            # Decided on what was no longer so: again, from what is, but never in a hurry that starves the others.
            self._vain += not outcome.applied
            return now + min(FIRST_RETRY * float(1 << min(self._vain, 10)), LAST_RETRY)
        self._vain = 0
        return now if outcome.more else plan.wake_at

    def _measure(self, seconds: float) -> None:
        self._counts["passes"] += 1
        self._last = seconds
        self._longest = max(self._longest, seconds)
        if seconds > LONG_PASS:
            self._counts["long"] += 1
            log.info("a pass of %s held the event loop for %.0f ms", self._loop.name, seconds * 1000)

    async def _wait(self, change: Any, seconds: float) -> None:
        waiting = asyncio.ensure_future(change)
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({waiting, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (waiting, sleeping):
                one.cancel()
            await asyncio.gather(waiting, sleeping, return_exceptions=True)


class Office:
    """Everything a leader does, in one TaskGroup: ``lead`` returns only by being cancelled or deposed."""

    def __init__(self, committer: Committer, mirror: Mirror, clock: Clock, settings: Settings, lateness: Lateness) -> None:
        self._committer = committer
        self._runners = {loop.name: Runner(loop, mirror, committer, clock, settings) for loop in table(lateness.recent)}

    async def lead(self) -> None:
        """Run every loop until cancelled. Raises an ExceptionGroup of Deposed."""
        async with asyncio.TaskGroup() as group:
            for name, runner in self._runners.items():
                group.create_task(runner.run(), name=f"leader: {name}")

    def statistics(self) -> dict[str, Any]:
        """Of the committer and of each loop."""
        return {
            "committer": self._committer.statistics(),
            "loops": {name: runner.statistics() for name, runner in self._runners.items()},
        }
