"""The clock of a simulated process: the loop's time, and a wall clock that is off by the machine's skew."""

from __future__ import annotations

import asyncio

from tests.sim.loop import SimLoop

EPOCH = 1_800_000_000.0


class SimClock:
    def __init__(self, loop: SimLoop, skew: float = 0.0) -> None:
        self._loop = loop
        self._skew = skew

    def now(self) -> float:
        return EPOCH + self._loop.time() + self._skew

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
