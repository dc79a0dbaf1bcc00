"""Cron expressions: when the next run is, in a time zone given as data. Pure.

Five fields (minute, hour, day of month, month, day of week; lists, ranges, steps, names) or @hourly, @daily, @weekly, @monthly,
@yearly. As in cron, a day matches either of its two fields when both are restricted. Zone rules are a table of (since, offset):
from that second of the epoch on, local time is so many seconds ahead of UTC. Where clocks go forward, a run of the hour that
does not exist is at the moment of the change; where they go back, one of the hour that comes twice is at its first coming.
Schedules with any hour run through both.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

Offsets = Sequence[tuple[int, int]]
UTC: Offsets = ((0, 0),)

_EPOCH = date(1970, 1, 1)
_DAY = 86400
_LONGEST = 366 * 9
"""Days within which every day that ever comes has come: a 29th of February may be eight years away."""

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _WEEKDAYS),
)


class Schedule(NamedTuple):
    """The values each field allows; ``weekdays`` count from Sunday, 0. A restricted day field is one that is not ``*``."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_hour: bool
    any_day: bool
    any_weekday: bool

    def on(self, day: date) -> bool:
        """Whether it runs on ``day`` at all."""
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday


def parse_schedule(text: str) -> Schedule:
    """A cron expression. Raises ValueError that names the field."""
    words = _ALIASES.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"schedule {text!r} has {len(words)} fields, not minute hour day month weekday, as in '*/5 * * * *'")
    minutes, hours, days, months, weekdays = (_values(word, *field) for word, field in zip(words, _FIELDS, strict=True))
    schedule = Schedule(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(day % 7 for day in weekdays),
        any_hour=words[1].startswith("*"),
        any_day=words[2].startswith("*"),
        any_weekday=words[4].startswith("*"),
    )
    if schedule.any_weekday and not any(min(schedule.days) <= monthrange(2000, month)[1] for month in schedule.months):
        raise ValueError(f"schedule {text!r} never comes: no such day in its months")
    return schedule


def _values(word: str, name: str, first: int, last: int, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, name, 1, last, ()) if slash else 1
        begin, dash, end = span.partition("-")
        if span == "*":
            low, high = first, last
        else:
            low = _number(begin, name, first, last, names)
            high = _number(end, name, first, last, names) if dash else (last if slash else low)
        if high < low:
            raise ValueError(f"{name} {part!r}: the range ends before it begins")
        found.update(range(low, high + 1, step))
    return found


def _number(text: str, name: str, first: int, last: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + first
    if not text.isdecimal() or not first <= int(text) <= last:
        raise ValueError(f"{name} {text!r} is not from {first} to {last}")
    return int(text)


def next_after(schedule: Schedule, after: float, offsets: Offsets = UTC) -> float | None:
    """The first run later than ``after`` (seconds of the epoch), or None if none ever comes."""
    day = _EPOCH + timedelta(seconds=after + _offset(offsets, after)) - timedelta(days=1)
    for _ in range(_LONGEST):
        if schedule.on(day):
            runs = [run for run in _runs(schedule, day, offsets) if run > after]
            if runs:
                return float(min(runs))
        day += timedelta(days=1)
    return None


def _runs(schedule: Schedule, day: date, offsets: Offsets) -> Iterator[int]:
    midnight = (day - _EPOCH).days * _DAY
    for hour in schedule.hours:
        for minute in schedule.minutes:
            yield from _moments(midnight + hour * 3600 + minute * 60, offsets, both=schedule.any_hour)


def _moments(local: int, offsets: Offsets, *, both: bool) -> list[int]:
    """The seconds of the epoch at which clocks show ``local``; of an hour that is left out, the moment of the change."""
    near = {offset for _, offset in _near(offsets, local)}
    found = sorted(local - offset for offset in near if _offset(offsets, local - offset) == offset)
    if found:
        return found if both else found[:1]
    return [] if both else [since for since, offset in _near(offsets, local) if since <= local - min(near)][-1:]


def _near(offsets: Offsets, local: int) -> Sequence[tuple[int, int]]:
    """What may be in force around ``local``: offsets are less than a day."""
    low = max(bisect_right(offsets, local - _DAY, key=lambda entry: entry[0]) - 1, 0)
    return offsets[low : max(bisect_right(offsets, local + _DAY, key=lambda entry: entry[0]), low + 1)]


def _offset(offsets: Offsets, at: float) -> int:
    """Before the table begins, what it begins with."""
    return offsets[max(bisect_right(offsets, at, key=lambda entry: entry[0]) - 1, 0)][1]
