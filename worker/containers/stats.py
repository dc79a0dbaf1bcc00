"""PURE: the shim's raw counters as Docker's stats object, and how a stream of them is made up of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covey.clock import rfc3339
from worker.containers.record import Container

NO_TIME = "0001-01-01T00:00:00Z"
_UNCOUNTED = (
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)


def cpu(raw: Mapping[str, Any], system_ns: int, cpus: int) -> dict[str, Any]:
    """ContainerCPUStats."""
    return {
        "cpu_usage": {
            "total_usage": raw.get("total_ns") or 0,
            "percpu_usage": raw.get("per_cpu_ns") or None,
            "usage_in_kernelmode": raw.get("system_ns") or 0,
            "usage_in_usermode": raw.get("user_ns") or 0,
        },
        "system_cpu_usage": system_ns,
        "online_cpus": cpus,
        "throttling_data": {
            "periods": raw.get("periods") or 0,
            "throttled_periods": raw.get("throttled_periods") or 0,
            "throttled_time": raw.get("throttled_ns") or 0,
        },
    }


def _memory(raw: Mapping[str, Any], machine: int) -> dict[str, Any]:
    limit = raw.get("limit")
    return {
        "usage": raw.get("usage") or 0,
        "max_usage": raw.get("max_usage") or 0,
        "stats": raw.get("stat") or {},
        "failcnt": raw.get("failures") or 0,
        # Without a limit the kernel gives a huge number; Docker shows the machine's memory.
        "limit": machine if limit is None or limit > machine else limit,
    }


def _blkio(raw: list[Mapping[str, Any]]) -> dict[str, Any]:
    def rows(key: str) -> list[dict[str, Any]]:
        return [{"major": one["major"], "minor": one["minor"], "op": one["op"], "value": one[key]} for one in raw]

    empty: dict[str, Any] = dict.fromkeys(_UNCOUNTED)
    return {"io_service_bytes_recursive": rows("bytes"), "io_serviced_recursive": rows("operations"), **empty}


def sample(
    container: Container,
    raw: Mapping[str, Any] | None,
    networks: Mapping[str, Mapping[str, int]],
    *,
    now: float,
    system_ns: int,
    cpus: int,
    machine: int,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """ContainerStatsResponse. ``raw``: of worker.runtime.cgroup_stats, None when nothing runs. ``before``: the last sample."""
    out: dict[str, Any] = {
        "id": container.id,
        "name": f"/{container.name}",
        "os_type": "linux",
        "read": rfc3339(now) if raw else NO_TIME,
        "preread": before["read"] if before else NO_TIME,
        "pids_stats": {},
        "blkio_stats": _blkio([]),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}, "throttling_data": {}},
        "precpu_stats": before["cpu_stats"] if before else cpu({}, 0, 0),
        "memory_stats": {},
    }
    if raw is None:
        return out
    out["cpu_stats"] = cpu(raw.get("cpu") or {}, system_ns, cpus)
    out["memory_stats"] = _memory(raw.get("memory") or {}, machine)
    pids = raw.get("pids") or {}
    out["pids_stats"] = {"current": pids.get("current") or 0}
    if pids.get("limit"):
        out["pids_stats"]["limit"] = pids["limit"]
    out["blkio_stats"] = _blkio(raw.get("blkio") or [])
    if raw.get("log"):
        # Ours: what a full ring (mode non-blocking) or a full disk has cost.
        out["log_stats"] = dict(raw["log"])
    if networks:
        out["networks"] = {name: dict(counters) for name, counters in networks.items()}
    return out


def system_time(proc_stat: str, ticks: int) -> int:
    """CPU time of the whole machine in ns from /proc/stat's first line; ``ticks`` a second."""
    fields = proc_stat.split("\n", 1)[0].split()[1:8]
    return sum(int(field) for field in fields) * 1_000_000_000 // ticks
