"""How long to wait before asking a registry again. Pure: the jitter is handed in."""

from __future__ import annotations

import datetime
import email.utils

from worker.images.registry.endpoints import Timing


def delay(attempt: int, timing: Timing, jitter: float, retry_after: float | None = None) -> float:
    """Seconds before attempt ``attempt`` + 1 (the first attempt is 1); ``jitter`` in [0, 1).

    What the registry asked for counts where it is longer, but never beyond ``timing.longest_wait``.
    """
    planned = timing.backoff * 2.0 ** (attempt - 1) * (0.5 + jitter)
    return min(max(planned, retry_after or 0.0), timing.longest_wait)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a ``Retry-After`` field, a number or a date; None when there is none to make sense of."""
    if not value:
        return None
    text = value.strip()
    if text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return max(0.0, at.timestamp() - now)
