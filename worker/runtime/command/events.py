"""The verb events: a container's statistics, and its out-of-memory events, as JSON lines in runc's shape.

{"type": "stats", "id", "data": {"cpu", "memory", "pids", "blkio", "hugetlb"}} (nanoseconds, bytes; fields of go-runc's
Stats) and {"type": "oom", "id"}.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from typing import Any

from worker.runtime.cgroups import Cgroup
from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry, Store

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def events(arguments: Arguments, log: Log) -> int:
    interval = _seconds(arguments.options["interval"] or "5s")
    entry = Store(arguments.globals["root"]).find(arguments.operands["id"])
    if entry.status() not in ("created", "running", "paused"):
        raise CommandError(f"container not running: {entry.ident!r} is {entry.status()}")
    group = entry.group()
    if arguments.options["stats"]:
        _tell(entry, "stats", statistics(group))
        return 0
    _follow(entry, group, interval)
    return 0


def _follow(entry: Entry, group: Cgroup, interval: float) -> None:
    """Until init ends."""
    try:
        pidfd = os.pidfd_open(entry.record["pid"])
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    opened = group.open_oom_events()
    if opened is not None:
        poll.register(opened[0], select.POLLPRI if opened[1] else select.POLLIN)
    kills = group.oom_kills()
    due = time.monotonic() + interval
    while entry.alive():
        ready = poll.poll(max(0.0, due - time.monotonic()) * 1000)
        for fd, _ in ready:
            if opened is not None and fd == opened[0]:
                os.read(fd, 4096)
                if opened[1]:
                    os.lseek(fd, 0, os.SEEK_SET)
                if not opened[1] or group.oom_kills() > kills:
                    _tell(entry, "oom", None)
                kills = group.oom_kills()
        if time.monotonic() >= due:
            _tell(entry, "stats", statistics(group))
            due = time.monotonic() + interval


def _tell(entry: Entry, kind: str, data: dict[str, Any] | None) -> None:
    body = {"type": kind, "id": entry.ident, **({} if data is None else {"data": data})}
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


def statistics(group: Cgroup) -> dict[str, Any]:
    """worker.runtime.cgroup_stats's numbers under the names of runc's ``types.Stats``."""
    raw = group.stats()
    cpu, memory, pids = raw["cpu"], raw["memory"], raw["pids"]
    swap = _swap(group)
    return {
        "cpu": {
            "usage": {
                "total": cpu["total_ns"],
                "percpu": cpu["per_cpu_ns"],
                "kernel": cpu["system_ns"],
                "user": cpu["user_ns"],
            },
            "throttling": {
                "periods": cpu["periods"],
                "throttledPeriods": cpu["throttled_periods"],
                "throttledTime": cpu["throttled_ns"],
            },
        },
        "memory": {
            "cache": memory["cache"] or 0,
            "usage": {
                "limit": memory["limit"] or 0,
                "usage": memory["usage"] or 0,
                "max": memory["max_usage"] or 0,
                "failcnt": memory["failures"] or 0,
            },
            "swap": swap,
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": memory["stat"],
        },
        "pids": {"current": pids["current"] or 0, "limit": pids["limit"] or 0},
        "blkio": {
            "ioServiceBytesRecursive": _blkio(raw["blkio"], "bytes"),
            "ioServicedRecursive": _blkio(raw["blkio"], "operations"),
        },
        "hugetlb": {},
    }


def _swap(group: Cgroup) -> dict[str, int]:
    """Memory and swap together, as runc counts on v1."""
    names = {"usage": "usage_in_bytes", "max": "max_usage_in_bytes", "limit": "limit_in_bytes", "failcnt": "failcnt"}
    result = {"limit": 0, "failcnt": 0}
    directory = group.directory("memory")
    if group.version == 2 or directory is None:
        return result
    for name, file in names.items():
        try:
            with open(f"{directory}/memory.memsw.{file}", encoding="ascii") as text:
                result[name] = int(text.read())
        except OSError:
            # Swap is not accounted here.
            continue
    return result


def _blkio(entries: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [
        {"major": entry["major"], "minor": entry["minor"], "op": entry["op"].capitalize(), "value": entry[key]}
        for entry in entries
    ]


def _seconds(word: str) -> float:
    """A duration as Go writes it: 5s, 500ms, 1m30s."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", word)
    if not parts or "".join(number + unit for number, unit in parts) != word or sum(float(n) for n, _ in parts) == 0:
        raise UsageError(f"--interval {word!r} is not a duration such as 5s or 500ms")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
