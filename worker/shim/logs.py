"""Which log a container's output goes to: by the ``log`` of the create request. A table, no more.

``log``: {"path", "driver": "json-file" | "local" | "none", "max_size": bytes or None, "max_file", "compress", "attrs",
"ring": bytes of a non-blocking log's ring, or None}; all but path and driver may be left out.
"""

from __future__ import annotations

from typing import Any

from worker.runtime.errors import RuntimeFault
from worker.shim.jsonlog import JsonLog
from worker.shim.locallog import LocalLog
from worker.shim.logfile import LogFile
from worker.shim.loop import Loop
from worker.shim.ring import Ring

Log = LogFile | Ring
_DRIVERS: dict[str, type[JsonLog] | type[LocalLog]] = {"json-file": JsonLog, "local": LocalLog}


def opened(loop: Loop, wanted: dict[str, Any] | None) -> Log | None:
    """The log, open, or None for no log. Raises RuntimeFault for a driver this shim has not."""
    if wanted is None or wanted.get("driver", "none") == "none":
        return None
    driver = _DRIVERS.get(wanted["driver"])
    if driver is None:
        raise RuntimeFault("invalid", f"log driver {wanted['driver']!r} is none of {', '.join(_DRIVERS)}, none", "log")
    log = driver(
        wanted["path"],
        wanted.get("max_size"),
        wanted.get("max_file") or 1,
        compress=bool(wanted.get("compress")),
        attrs=wanted.get("attrs"),
    )
    return log if wanted.get("ring") is None else Ring(loop, log, wanted["ring"])
