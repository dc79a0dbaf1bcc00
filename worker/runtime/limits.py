"""PURE: OCI linux.resources → the cgroup files to write, in order, for v1 and for v2.

The order is the meaning where the kernel couples files (period before quota, memory before memory+swap). Sources: OCI
config-linux.md, the kernel's cgroup-v1 and cgroup-v2 documents.
"""

from __future__ import annotations

from typing import Any

from worker.runtime import devices
from worker.runtime.errors import SpecFault


class Write:
    """One file to write. ``optional``: a kernel without that file is no error. ``field``: where it came from."""

    __slots__ = ("controller", "field", "file", "optional", "value")

    def __init__(self, controller: str, file: str, value: str, field: str, optional: bool = False) -> None:
        self.controller = controller
        self.file = file
        self.value = value
        self.field = field
        self.optional = optional

    def __repr__(self) -> str:
        return f"{self.file}={self.value}"


_V1 = (
    ("cpu", "shares", "cpu.shares"),
    ("cpu", "period", "cpu.cfs_period_us"),
    ("cpu", "quota", "cpu.cfs_quota_us"),
    ("cpu", "burst", "cpu.cfs_burst_us"),
    ("cpu", "realtimePeriod", "cpu.rt_period_us"),
    ("cpu", "realtimeRuntime", "cpu.rt_runtime_us"),
    ("cpu", "idle", "cpu.idle"),
)
_CPUSET = (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))
_THROTTLE = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)
Current = tuple[int | None, int | None]


def writes(resources: dict[str, Any], version: int, current: Current = (None, None), *, devices: bool = True) -> list[Write]:
    """``current``: (memory limit, memory+swap limit) of a v1 group in use, which decide the order. Raises SpecFault."""
    result = _v1(resources, current) if version == 1 else _v2(resources)
    if devices and version == 1:
        result = _devices(resources.get("devices") or []) + result
    return result


def _devices(rules: list[dict[str, Any]]) -> list[Write]:
    return [
        Write("devices", "devices.allow" if entry.get("allow") else "devices.deny", devices.rule(entry), "devices")
        for entry in device_rules(rules)
    ]


def device_rules(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules in their order, as a later one overrules an earlier one; what default devices need follows "deny all"."""
    result: list[dict[str, Any]] = []
    for entry in rules:
        result.append(entry)
        if not entry.get("allow") and devices.rule(entry) == "a":
            result += devices.ALWAYS_ALLOWED
    return result


def _pids(resources: dict[str, Any]) -> list[Write]:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return []
    return [Write("pids", "pids.max", str(limit) if limit > 0 else "max", "pids.limit")]


def _v1(resources: dict[str, Any], current: Current) -> list[Write]:
    result = []
    cpu = resources.get("cpu") or {}
    for controller, key, file in _V1:
        if cpu.get(key):
            result.append(Write(controller, file, str(cpu[key]), f"cpu.{key}"))
    for key, file in _CPUSET:
        if cpu.get(key):
            result.append(Write("cpuset", file, cpu[key], f"cpu.{key}"))
    result += _v1_memory(resources.get("memory") or {}, current) + _pids(resources)
    block = resources.get("blockIO") or {}
    if block.get("weight"):
        result.append(Write("blkio", "blkio.weight", str(block["weight"]), "blockIO.weight", optional=True))
    for key, file, _ in _THROTTLE:
        for entry in block.get(key) or []:
            value = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            result.append(Write("blkio", file, value, f"blockIO.{key}"))
    for entry in resources.get("hugepageLimits") or []:
        file = f"hugetlb.{entry['pageSize']}.limit_in_bytes"
        result.append(Write("hugetlb", file, str(entry["limit"]), "hugepageLimits"))
    return result


def _v1_memory(memory: dict[str, Any], current: Current) -> list[Write]:
    limit, swap = memory.get("limit"), memory.get("swap")
    result = []
    if limit:
        result.append(Write("memory", "memory.limit_in_bytes", str(limit), "memory.limit"))
    if swap:
        if swap > 0 and limit and limit > 0 and swap < limit:
            raise SpecFault("linux.resources.memory.swap", f"{swap} is below memory.limit {limit}, which it includes")
        both = Write("memory", "memory.memsw.limit_in_bytes", str(swap), "memory.swap")
        # The kernel keeps memory <= memory+swap at every moment: when growing, the sum goes first.
        grows = current[1] is not None and (swap < 0 or swap > current[1])
        result.insert(0 if grows else len(result), both)
    for key, file in (("reservation", "memory.soft_limit_in_bytes"), ("swappiness", "memory.swappiness")):
        if memory.get(key) is not None and (memory[key] or key == "swappiness"):
            result.append(Write("memory", file, str(memory[key]), f"memory.{key}"))
    if memory.get("disableOOMKiller"):
        result.append(Write("memory", "memory.oom_control", "1", "memory.disableOOMKiller"))
    return result


def _v2(resources: dict[str, Any]) -> list[Write]:
    result = []
    cpu = resources.get("cpu") or {}
    if cpu.get("shares"):
        weight = 1 + (max(cpu["shares"], 2) - 2) * 9999 // 262142
        result.append(Write("cpu", "cpu.weight", str(weight), "cpu.shares"))
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        value = f"{quota if quota > 0 else 'max'} {cpu.get('period') or 100000}"
        result.append(Write("cpu", "cpu.max", value, "cpu.quota"))
    if cpu.get("burst"):
        result.append(Write("cpu", "cpu.max.burst", str(cpu["burst"]), "cpu.burst"))
    if cpu.get("idle"):
        result.append(Write("cpu", "cpu.idle", str(cpu["idle"]), "cpu.idle"))
    for key, file in _CPUSET:
        if cpu.get(key):
            result.append(Write("cpuset", file, cpu[key], f"cpu.{key}"))
    result += _v2_memory(resources.get("memory") or {}) + _pids(resources)
    block = resources.get("blockIO") or {}
    if block.get("weight"):
        result.append(Write("io", "io.bfq.weight", str(block["weight"]), "blockIO.weight", optional=True))
    for key, _, name in _THROTTLE:
        for entry in block.get(key) or []:
            value = f"{entry['major']}:{entry['minor']} {name}={entry['rate']}"
            result.append(Write("io", "io.max", value, f"blockIO.{key}"))
    for entry in resources.get("hugepageLimits") or []:
        result.append(Write("hugetlb", f"hugetlb.{entry['pageSize']}.max", str(entry["limit"]), "hugepageLimits"))
    for file, value in (resources.get("unified") or {}).items():
        result.append(Write(file.split(".")[0], file, value, f"unified.{file}"))
    return result


def _v2_memory(memory: dict[str, Any]) -> list[Write]:
    limit, swap = memory.get("limit"), memory.get("swap")
    result = []
    if swap:
        if swap > 0:
            if not limit or limit < 0:
                raise SpecFault("linux.resources.memory.swap", "needs memory.limit, which it includes")
            if swap < limit:
                raise SpecFault("linux.resources.memory.swap", f"{swap} is below memory.limit {limit}, which it includes")
        value = str(swap - limit) if swap > 0 else "max"
        result.append(Write("memory", "memory.swap.max", value, "memory.swap", optional=True))
    if limit:
        result.append(Write("memory", "memory.max", str(limit) if limit > 0 else "max", "memory.limit"))
    if memory.get("reservation"):
        result.append(Write("memory", "memory.low", str(memory["reservation"]), "memory.reservation"))
    return result
