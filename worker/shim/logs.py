"""Which log a container's output goes to: by the ``log`` of the create request. A table, no more.

``log``: {"path", "driver": "json-file" | "local" | "none", "max_size": bytes or None, "max_file", "compress", "attrs",
"ring": bytes of a non-blocking log's ring, or None}; all but path and driver may be left out.
"""

from __future__ import annotations

from worker.kernel.bare import Any
from worker.runtime.errors import RuntimeFault
from worker.shim.jsonlog import JsonLog
from worker.shim.locallog import LocalLog
from worker.shim.logfile import LogFile
from worker.shim.loop import Loop
from worker.shim.ring import Ring

Log = LogFile | Ring
_DRIVERS: dict[str, type[JsonLog] | type[LocalLog]] = {"json-file": JsonLog, "local": LocalLog}


def opened(loop: Loop, wanted: dict[str, Any] | None) -> Log | None:
    """The log, whose file is there, or None for no log. Raises OSError; RuntimeFault for a driver this shim has not."""
    log = _made(wanted)
    if log is None:
        return None
    log.open()
    assert wanted is not None
    return log if wanted.get("ring") is None else Ring(loop, log, wanted["ring"])


def resumed(wanted: dict[str, Any], handed: dict[str, Any]) -> LogFile | None:
    """The same log in another process of the shim (see LogFile.handed); its file is opened, or made, for the next entry."""
    log = _made(wanted)
    if log is not None:
        log.take(handed)
    return log


def is_plain(wanted: dict[str, Any] | None) -> bool:
    """Whether nothing but the log's file is needed, and that not before the first entry."""
    return wanted is None or (wanted.get("driver", "none") in ("none", *_DRIVERS) and wanted.get("ring") is None)


def _made(wanted: dict[str, Any] | None) -> LogFile | None:
    if wanted is None or wanted.get("driver", "none") == "none":
        return None
    driver = _DRIVERS.get(wanted["driver"])
    if driver is None:
        raise RuntimeFault("invalid", f"log driver {wanted['driver']!r} is none of {', '.join(_DRIVERS)}, none", "log")
    return driver(
        wanted["path"],
        wanted.get("max_size"),
        wanted.get("max_file") or 1,
        compress=bool(wanted.get("compress")),
        attrs=wanted.get("attrs"),
    )
