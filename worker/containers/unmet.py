"""PURE: limits a machine cannot keep because it has no such cgroup controller: dropped with Docker's warning, or refused.

Docker's daemon decides so when a container is made or updated, so that what is recorded is what holds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from covey.errors import InvalidArgument

_NOT_MOUNTED = "or the cgroup is not mounted"
_TABLE: tuple[tuple[str, str, Any, str], ...] = (
    ("memory", "Memory", 0, f"memory limit capabilities {_NOT_MOUNTED}. Limitation discarded."),
    ("memory", "MemorySwap", 0, f"swap limit capabilities {_NOT_MOUNTED}. Limitation discarded."),
    ("memory", "MemoryReservation", 0, f"memory soft limit capabilities {_NOT_MOUNTED}. Limitation discarded."),
    ("memory", "MemorySwappiness", None, f"memory swappiness capabilities {_NOT_MOUNTED}. Memory swappiness discarded."),
    ("memory", "OomKillDisable", False, "OomKillDisable. OomKillDisable discarded."),
    ("pids", "PidsLimit", -1, f"PIDs limit capabilities {_NOT_MOUNTED}. PIDs limit discarded."),
    ("cpu", "CpuShares", 0, f"CPU shares {_NOT_MOUNTED}. Shares discarded."),
    ("cpu", "CpuPeriod", 0, f"CPU CFS scheduler {_NOT_MOUNTED}. Period discarded."),
    ("cpu", "CpuQuota", 0, f"CPU CFS scheduler {_NOT_MOUNTED}. Quota discarded."),
    ("cpuset", "CpusetCpus", "", f"cpuset {_NOT_MOUNTED}. Cpuset discarded."),
    ("cpuset", "CpusetMems", "", f"cpuset {_NOT_MOUNTED}. Cpuset discarded."),
    ("blkio", "BlkioWeight", 0, f"Block I/O weight {_NOT_MOUNTED}. Weight discarded."),
)
_SAME_ON_V2 = {"blkio": "io"}


def without(settings: dict[str, Any], controllers: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """(HostConfig with only what can be kept, warnings). Raises InvalidArgument for NanoCpus, as Docker does.

    ``controllers``: those the machine has. The limit of processes that every container gets goes without a word.
    """
    met = {name for name in ("memory", "pids", "cpu", "cpuset", "blkio") if {name, _SAME_ON_V2.get(name)} & {*controllers}}
    if settings.get("NanoCpus") and "cpu" not in met:
        raise InvalidArgument(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
        )
    kept, warnings = dict(settings), []
    for controller, field, value, words in _TABLE:
        if controller in met:
            continue
        if settings.get(field) not in (None, 0, "", False, -1):
            warnings.append(f"Your kernel does not support {words}")
            kept[field] = value
        elif field == "PidsLimit":
            kept[field] = value
    return kept, warnings
