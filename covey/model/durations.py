"""Durations as people write them in labels: ``90s``, ``1m30s``, ``500ms``; ``0`` is none. Pure."""

from __future__ import annotations

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def seconds(text: str) -> float:
    """``text`` in seconds; ValueError says what a duration looks like."""
    parts = _PART.findall(text)
    if text.strip() == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 10s, 1m30s or 500ms")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
