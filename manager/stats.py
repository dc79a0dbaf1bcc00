"""What this manager counts, gathered for people: one object of objects, by part. It measures nothing itself.

Fan-in of containers' statistics from workers is by dial-back (routes/containers.py): nothing is kept here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Report = Callable[[], Mapping[str, Any]]


class Statistics:
    """Parts add how to ask them; ``collect`` asks all."""

    def __init__(self) -> None:
        self._parts: dict[str, Report] = {}
        self._started = time.monotonic()

    def add(self, name: str, report: Report) -> None:
        """``report`` costs nothing and touches no network."""
        self._parts[name] = report

    def collect(self) -> dict[str, Any]:
        """Every part's statistics, and this process's own."""
        process = {"pid": os.getpid(), "uptime": round(time.monotonic() - self._started, 1), "resident_bytes": _resident()}
        return {"process": process, **{name: dict(report()) for name, report in self._parts.items()}}


def _resident() -> int:
    """Bytes of memory this process holds (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
