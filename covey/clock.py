"""Clocks. Decisions take ``now`` as a number; only the edges hold one of these.

Times are seconds since the epoch as float (wall) and monotonic seconds for intervals.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """What an effect may ask of time; the simulation has its own."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def rfc3339(at: float) -> str:
    """``at`` (seconds since the epoch) as Docker prints it: UTC with nanosecond digits and a Z.

    The zero time is Go's zero time, which clients test for.
    """
    if at <= 0:
        return "0001-01-01T00:00:00Z"
    whole = int(at)
    nanos = round((at - whole) * 1e9)
    if nanos >= 1_000_000_000:
        whole, nanos = whole + 1, 0
    stamp = datetime.datetime.fromtimestamp(whole, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{nanos:09d}".rstrip("0")
    return f"{stamp}.{digits}Z" if digits else f"{stamp}Z"


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 stamp with up to nanosecond digits; ValueError when it is none."""
    if text.startswith("0001-01-01"):
        return 0.0
    head, frac, zone = text, "", "+00:00"
    for mark in ("Z", "z"):
        head = head.replace(mark, "+00:00")
    if len(head) > 6 and head[-6] in "+-" and head[-3] == ":":
        head, zone = head[:-6], head[-6:]
    if "." in head:
        head, frac = head.split(".", 1)
        if not frac.isdigit():
            raise ValueError(f"not an RFC 3339 time: {text!r}")
    base = datetime.datetime.fromisoformat(head + zone).timestamp()
    return base + (float("0." + frac) if frac else 0.0)
