"""Times as users give them to ``--since`` and ``--until``: a duration back from now, RFC 3339, or seconds since 1970."""

from __future__ import annotations

import time

from cli.output import moment
from cli.stack.units import nanoseconds
from covey.errors import InvalidArgument


def timestamp(text: str | None, now: float | None = None) -> str | None:
    """Seconds since 1970 as the API takes them; None for no time."""
    if text is None:
        return None
    if text.replace(".", "", 1).isdigit():
        return text
    if (at := moment(text)) is not None:
        return f"{at.astimezone().timestamp():.9f}"
    try:
        back = nanoseconds(text, "time") / 1e9
    except InvalidArgument:
        raise InvalidArgument(f"{text!r} is neither a time such as 2026-01-02T15:04:05 nor a duration such as 10m") from None
    return f"{(time.time() if now is None else now) - back:.9f}"
