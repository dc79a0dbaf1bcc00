"""Reads a container's raw counters from its cgroup files; it computes no rates and knows no API.

Shape: {"version", "cpu": {"total_ns", "user_ns", "system_ns", "per_cpu_ns", "periods", "throttled_periods",
"throttled_ns"}, "memory": {"usage", "max_usage", "limit", "failures", "cache", "stat"}, "pids": {"current", "limit"},
"blkio": [{"major", "minor", "op", "bytes", "operations"}], "oom_kills"}; bytes and nanoseconds, null where the machine
does not count.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from worker.runtime import cgroups

if TYPE_CHECKING:
    from worker.runtime.cgroups import Cgroup


def collect(group: Cgroup) -> dict[str, Any]:
    files = _Files(group)
    result = _v1(files) if group.version == 1 else _v2(files)
    return {"version": group.version, **result, "oom_kills": group.oom_kills()}


class _Files:
    def __init__(self, group: Cgroup) -> None:
        self._group = group

    def text(self, controller: str, file: str) -> str:
        directory = self._group.directory(controller)
        try:
            return cgroups.read(f"{directory}/{file}") if directory else ""
        except OSError:
            return ""

    def number(self, controller: str, file: str) -> int | None:
        value = self.text(controller, file).strip()
        return int(value) if value.isdigit() else None

    def keyed(self, controller: str, file: str) -> dict[str, int]:
        return cgroups.keyed(self.text(controller, file))


def _v1(files: _Files) -> dict[str, Any]:
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    usage = files.keyed("cpuacct", "cpuacct.stat")
    throttling = files.keyed("cpu", "cpu.stat")
    memory = files.keyed("memory", "memory.stat")
    return {
        "cpu": {
            "total_ns": files.number("cpuacct", "cpuacct.usage"),
            "user_ns": usage.get("user", 0) * tick,
            "system_ns": usage.get("system", 0) * tick,
            "per_cpu_ns": [int(value) for value in files.text("cpuacct", "cpuacct.usage_percpu").split()],
            "periods": throttling.get("nr_periods", 0),
            "throttled_periods": throttling.get("nr_throttled", 0),
            "throttled_ns": throttling.get("throttled_time", 0),
        },
        "memory": {
            "usage": files.number("memory", "memory.usage_in_bytes"),
            "max_usage": files.number("memory", "memory.max_usage_in_bytes"),
            "limit": files.number("memory", "memory.limit_in_bytes"),
            "failures": files.number("memory", "memory.failcnt"),
            "cache": memory.get("total_cache"),
            "stat": memory,
        },
        "pids": {"current": files.number("pids", "pids.current"), "limit": files.number("pids", "pids.max")},
        "blkio": _v1_blkio(files),
    }


def _v1_blkio(files: _Files) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, file in (("bytes", "io_service_bytes"), ("operations", "io_serviced")):
        for line in files.text("blkio", f"blkio.throttle.{file}_recursive").splitlines():
            fields = line.split()
            if len(fields) != 3:
                continue
            major, _, minor = fields[0].partition(":")
            entry = {"major": int(major), "minor": int(minor), "op": fields[1].lower(), "bytes": 0, "operations": 0}
            found.setdefault((fields[0], fields[1]), entry)[key] = int(fields[2])
    return list(found.values())


def _v2(files: _Files) -> dict[str, Any]:
    cpu = files.keyed("cpu", "cpu.stat")
    memory = files.keyed("memory", "memory.stat")
    return {
        "cpu": {
            "total_ns": cpu.get("usage_usec", 0) * 1000,
            "user_ns": cpu.get("user_usec", 0) * 1000,
            "system_ns": cpu.get("system_usec", 0) * 1000,
            "per_cpu_ns": [],
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_ns": cpu.get("throttled_usec", 0) * 1000,
        },
        "memory": {
            "usage": files.number("memory", "memory.current"),
            "max_usage": files.number("memory", "memory.peak"),
            "limit": files.number("memory", "memory.max"),
            "failures": files.keyed("memory", "memory.events").get("max"),
            "cache": memory.get("file"),
            "stat": memory,
        },
        "pids": {"current": files.number("pids", "pids.current"), "limit": files.number("pids", "pids.max")},
        "blkio": _v2_blkio(files),
    }


def _v2_blkio(files: _Files) -> list[dict[str, Any]]:
    result = []
    for line in files.text("io", "io.stat").splitlines():
        device, *pairs = line.split()
        counters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        major, _, minor = device.partition(":")
        for op, size, count in (("read", "rbytes", "rios"), ("write", "wbytes", "wios")):
            result.append(
                {
                    "major": int(major),
                    "minor": int(minor),
                    "op": op,
                    "bytes": int(counters.get(size, 0)),
                    "operations": int(counters.get(count, 0)),
                }
            )
    return result
