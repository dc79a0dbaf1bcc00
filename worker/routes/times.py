"""The times clients send: Unix seconds with a fraction, RFC 3339, or a span back from now (``10m``). Pure."""

from __future__ import annotations

import re

from covey.clock import parse_rfc3339
from covey.errors import InvalidArgument

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str, now: float) -> float:
    """Seconds since the epoch; 0 for "" and "0". Raises InvalidArgument."""
    if not text:
        return 0.0
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _SPAN.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return now - sum(float(number) * _UNITS[unit] for number, unit in parts)
    for candidate in (text, f"{text}Z", f"{text}T00:00:00Z"):
        try:
            return parse_rfc3339(candidate)
        except ValueError:
            continue
    raise InvalidArgument(f"invalid time {text!r}: give Unix seconds, an RFC 3339 time, or a span such as 10m")
