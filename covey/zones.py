"""Time zones as tables of offsets: what a decision may read, made where reading files is allowed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

YEARS = 20
_DAY = 86400


def zone_of(name: str) -> ZoneInfo:
    """The zone of a name. Raises ValueError when there is none."""
    try:
        return ZoneInfo(name)
    except Exception:
        raise ValueError(f"time zone {name!r} is unknown: use a name such as Europe/Berlin or UTC") from None


def offsets(name: str, since: float) -> tuple[tuple[int, int], ...]:
    """(since, seconds ahead of UTC) from ``since`` (seconds of the epoch) on, for YEARS. Raises ValueError: no such zone."""
    zone = zone_of(name)

    def offset(at: int) -> int:
        ahead = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
        return int((ahead or timedelta()).total_seconds())

    at = int(since) - _DAY
    table = [(at, offset(at))]
    for day in range(at, at + YEARS * 366 * _DAY, _DAY):
        if offset(day + _DAY) != table[-1][1]:
            low, high = day, day + _DAY
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == table[-1][1] else (low, middle)
            table.append((high, offset(high)))
    return tuple(table)
