"""Durations, sizes and truths as compose files write them. Pure."""

from __future__ import annotations

import re
from typing import Any

from covey.errors import InvalidArgument

_NANO = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*$", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def nanoseconds(value: Any, path: str) -> int:
    """``1m30s`` → nanoseconds; a bare number is seconds, as compose has it."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value * 10**9)
    text = str(value).strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(f"{path}: {value!r} is not a duration such as 10s, 1m30s or 500ms")
    return int(sum(float(number) * _NANO[unit] for number, unit in parts))


def size(value: Any, path: str) -> int:
    """``64M`` → bytes, by powers of 1024."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.match(str(value))
    if match is None:
        raise InvalidArgument(f"{path}: {value!r} is not a size such as 64M, 1.5g or 1048576")
    return int(float(match[1]) * 1024 ** _POWER[match[2].lower()])


def nano_cpus(value: Any, path: str) -> int:
    """``"0.5"`` → 500,000,000."""
    try:
        cpus = float(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{path}: {value!r} is not a number of CPUs such as 0.5") from None
    if not 0 <= cpus < 10**6:
        raise InvalidArgument(f"{path}: {value!r} is not a number of CPUs such as 0.5")
    return round(cpus * 10**9)


def truth(value: Any, path: str) -> bool:
    """A YAML truth, or its text."""
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "yes", "on", "1"):
        return True
    if str(value).lower() in ("false", "no", "off", "0", ""):
        return False
    raise InvalidArgument(f"{path}: {value!r} is neither true nor false")


def integer(value: Any, path: str) -> int:
    """A whole number, or its text."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{path}: {value!r} is not a whole number") from None
