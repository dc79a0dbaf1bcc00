"""The leader's loops as a table, and the one runner: wait → snapshot → pass → commit.

It decides when each decision is made, never what. A pass is done step by step (scheduler/passes.py); each step is synchronous,
and what it holds the event loop for shows in ``statistics()``. The mirror stands still from a pass's first step to its last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from covey.clock import Clock
from covey.errors import CoveyError
from manager.committer import Committer
from manager.lateness import Lateness
from manager.leader import Deposed
from manager.store.mirror import Mirror
from scheduler import liveness, reap
from scheduler.passes import TASKS, Pass, Stage
from scheduler.plan import Plan
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

log = logging.getLogger(__name__)

#: A step this long is logged: the event loop served nobody meanwhile (rule 15).
LONG_PASS = 0.05

FIRST_RETRY = 0.005
LAST_RETRY = 1.0

#: Changes that follow each other closely are decided on together.
BREATH = 0.001

#: A loop that is always told of changes and finds nothing to do takes no more than this part of the process.
VAIN_SHARE = 0.2
LONGEST_BREATH = 0.5


@dataclass(frozen=True, slots=True)
class Loop:
    """One row: a pass of ``stages`` runs when one of ``kinds`` changed or when the last one said to wake it."""

    name: str
    kinds: Collection[str]
    stages: Sequence[Stage]


def table(late: Callable[[], float]) -> tuple[Loop, ...]:
    """The loops; ``late`` says by how many seconds this process was late of late, which no node is to blame for."""

    def live(snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
        return liveness.parts(snapshot, now, settings, late())

    nodes = ("node", "node_info", "node_status", "session")
    tasks = ("task", "task_status")
    given = ("network", "network_allocation", "service_allocation")
    return (
        Loop("liveness", (*nodes, *tasks, "leader"), (Stage("liveness", live),)),
        Loop("tasks", (*nodes, *tasks, *given, "cluster", "service", "service_status"), TASKS),
        Loop("reap", (*nodes, *tasks, "cluster", "service", "service_status"), (Stage("reap", reap.parts),)),
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
        self._seconds: dict[str, float] = {}
        self._longest = self._breath = 0.0
        self._vain = 0

    async def run(self) -> None:
        """Decide now, then whenever there is reason to, until cancelled or deposed."""
        with self._mirror.changes(self._loop.kinds) as changed:
            while True:
                changed.take()
                wake_at = await self._guarded_pass()
                await self._clock.sleep(max(BREATH, self._breath))
                if wake_at is None:
                    await changed.wait()
                elif (left := wake_at - self._clock.now()) > 0:
                    await self._wait(changed.wait(), left)

    def statistics(self) -> dict[str, Any]:
        """Counters, and in seconds the longest step of a pass and what each kind of step took in all."""
        seconds = {name: round(spent, 4) for name, spent in self._seconds.items()}
        return {**self._counts, "longest_step": round(self._longest, 4), "seconds": seconds}

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
        async with self._mirror.lend() as snapshot:
            now = self._clock.now()
            work = Pass(snapshot, now, self._settings, self._loop.stages)
            took = await self._do(work)
        self._counts["passes"] += 1
        if not work:
            self._breath = min(took * (1 / VAIN_SHARE - 1), LONGEST_BREATH)
            return work.wake_at
        self._breath = 0.0 if work.more or (work.wake_at or now) < now else min(took, LONGEST_BREATH)
        self._counts["plans"] += 1
        outcome = await self._committer.commit(work)
        self._counts["lost"] += outcome.lost
        if outcome.lost or outcome.refused:
            # Decided on what was no longer so: again, from what is, but never in a hurry that starves the others.
            self._vain += not outcome.applied
            return now + min(FIRST_RETRY * float(1 << min(self._vain, 10)), LAST_RETRY)
        self._vain = 0
        return now if work.more else work.wake_at

    async def _do(self, work: Pass) -> float:
        """Every step of a pass, others having their turn between two; seconds that the steps took."""
        took, began = 0.0, self._clock.monotonic()
        for step in work.steps():
            spent = self._clock.monotonic() - began
            self._measure(step, spent)
            took += spent
            await asyncio.sleep(0)
            began = self._clock.monotonic()
        return took

    def _measure(self, step: str, seconds: float) -> None:
        self._seconds[step] = self._seconds.get(step, 0.0) + seconds
        self._longest = max(self._longest, seconds)
        if seconds > LONG_PASS:
            self._counts["long"] += 1
            log.info("%s of %s held the event loop for %.0f ms", step, self._loop.name, seconds * 1000)

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
