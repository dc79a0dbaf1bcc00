"""How late this process is: a stalled manager (SIGSTOP, a long pass, a busy machine) must blame itself, not its nodes.

It measures by sleeping a known time and looking at the clock. It decides nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from covey.clock import Clock


class Lateness:
    """Run ``watch`` in a TaskGroup; ``recent`` may be asked any time, also before ``watch`` has had its turn."""

    def __init__(self, clock: Clock, period: float, memory: float) -> None:
        self._clock = clock
        self._period = period
        self._memory = memory
        self._expected = clock.monotonic() + period
        self._late: deque[tuple[float, float]] = deque()
        self.worst = 0.0

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            self._expected = self._clock.monotonic() + self._period
            await self._clock.sleep(self._period)
            now = self._clock.monotonic()
            late = max(0.0, now - self._expected)
            self.worst = max(self.worst, late)
            if late > self._period:
                self._late.append((now, late))

    def recent(self) -> float:
        """Seconds by which this process was late within the last ``memory`` seconds, the present stall included."""
        now = self._clock.monotonic()
        while self._late and self._late[0][0] < now - self._memory:
            self._late.popleft()
        late = max(0.0, now - self._expected)
        return sum(late for _, late in self._late) + (late if late > self._period else 0.0)

    def statistics(self) -> dict[str, Any]:
        """Seconds: the worst since the start, and of late."""
        return {"worst": round(self.worst, 4), "recent": round(self.recent(), 4)}
