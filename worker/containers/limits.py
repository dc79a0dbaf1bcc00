"""A container's resources in OCI's words: memory, CPU, pids, block I/O, device rules, rlimits, capabilities. Pure.

The values were checked at create (host_config.py); here they are only translated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from covey.errors import InvalidArgument
from worker.containers import defaults

CPU_PERIOD = 100_000
INFINITY = -1


def capability(name: str, field: str) -> str:
    """``net_admin`` → ``CAP_NET_ADMIN``. Raises InvalidArgument in Docker's words."""
    full = name.upper()
    if full != "ALL" and not full.startswith("CAP_"):
        full = f"CAP_{full}"
    if full != "ALL" and full not in defaults.ALL_CAPABILITIES:
        raise InvalidArgument(f'invalid {field}: unknown capability: "{full}"')
    return full


def capabilities(host_config: Mapping[str, Any]) -> list[str]:
    """The bounding set: Docker's fourteen, with what is added and dropped; everything when privileged."""
    if host_config.get("Privileged"):
        return list(defaults.ALL_CAPABILITIES)
    add = [capability(name, "CapAdd") for name in host_config.get("CapAdd") or []]
    drop = [capability(name, "CapDrop") for name in host_config.get("CapDrop") or []]
    if "ALL" in add:
        base: Collection[str] = defaults.ALL_CAPABILITIES
    elif "ALL" in drop:
        base = ()
    else:
        base = defaults.CAPABILITIES
    kept = [name for name in base if name not in drop] if "ALL" not in drop or "ALL" in add else []
    kept += [name for name in add if name != "ALL" and name not in kept]
    return kept


def capability_sets(names: list[str], uid: int) -> dict[str, list[str]]:
    """The OCI sets: a process that is not root has them in its bounding set only, as after execve."""
    if uid == 0:
        return {"bounding": names, "effective": names, "permitted": names}
    return {"bounding": names}


def _memory(host: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if host.get("Memory"):
        out["limit"] = host["Memory"]
    if host.get("MemoryReservation"):
        out["reservation"] = host["MemoryReservation"]
    if host.get("MemorySwap"):
        out["swap"] = host["MemorySwap"]
    swappiness = host.get("MemorySwappiness")
    if swappiness is not None and swappiness != -1:
        out["swappiness"] = swappiness
    if host.get("OomKillDisable"):
        out["disableOOMKiller"] = True
    return out


def _cpu(host: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if host.get("NanoCpus"):
        out["period"] = CPU_PERIOD
        out["quota"] = host["NanoCpus"] * CPU_PERIOD // 1_000_000_000
    for field, key in (
        ("CpuShares", "shares"),
        ("CpuQuota", "quota"),
        ("CpuPeriod", "period"),
        ("CpuRealtimeRuntime", "realtimeRuntime"),
        ("CpuRealtimePeriod", "realtimePeriod"),
        ("CpusetCpus", "cpus"),
        ("CpusetMems", "mems"),
    ):
        if host.get(field):
            out[key] = host[field]
    return out


def pids_limit(host: Mapping[str, Any]) -> int:
    """The most processes: 4096 unless said otherwise, -1 for no limit."""
    wanted = host.get("PidsLimit") or 0
    return wanted if wanted > 0 else (INFINITY if wanted < 0 else defaults.PIDS_LIMIT)


def changeable(host: Mapping[str, Any]) -> dict[str, Any]:
    """Resources that ``update`` may set on a running container, as linux.resources."""
    out: dict[str, Any] = {"pids": {"limit": pids_limit(host)}}
    memory, cpu = _memory(host), _cpu(host)
    if memory:
        out["memory"] = memory
    if cpu:
        out["cpu"] = cpu
    if host.get("BlkioWeight"):
        out["blockIO"] = {"weight": host["BlkioWeight"]}
    return out


def _rule(text: str) -> dict[str, Any]:
    """``c 1:3 rwm`` of DeviceCgroupRules."""
    parts = text.split()
    numbers = parts[1].split(":") if len(parts) == 3 else []
    fine = len(parts) == 3 and parts[0] in ("a", "b", "c") and len(numbers) == 2 and set(parts[2]) <= set("rwm")
    if not fine or not all(number == "*" or number.isdigit() for number in numbers):
        raise InvalidArgument(f'invalid device cgroup rule format: "{text}"')
    out: dict[str, Any] = {"allow": True, "type": parts[0], "access": parts[2]}
    for key, number in zip(("major", "minor"), numbers, strict=True):
        if number != "*":
            out[key] = int(number)
    return out


def device_rules(host: Mapping[str, Any], devices: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The device rules in order. ``devices``: OCI device nodes with an extra "access"."""
    if host.get("Privileged"):
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in defaults.DEVICE_RULES:
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        if major >= 0:
            rule["major"] = major
        if minor >= 0:
            rule["minor"] = minor
        rules.append(rule)
    for device in devices:
        rules.append(
            {
                "allow": True,
                "type": device["type"],
                "major": device["major"],
                "minor": device["minor"],
                "access": device["access"],
            }
        )
    rules += [_rule(text) for text in host.get("DeviceCgroupRules") or []]
    return rules


def resources(host: Mapping[str, Any], devices: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """linux.resources of a new container."""
    return {**changeable(host), "devices": device_rules(host, devices)}


def rlimits(ulimits: Iterable[Mapping[str, Any]], ceilings: Mapping[str, int]) -> list[dict[str, Any]]:
    """OCI rlimits. None is above its ceiling (``RLIMIT_NOFILE`` → hard limit of this process, -1 none)."""
    out = []
    for one in ulimits:
        name = f"RLIMIT_{str(one.get('Name', '')).upper()}"
        soft, hard = int(one.get("Soft") or 0), int(one.get("Hard") or 0)
        ceiling = ceilings.get(name, INFINITY)
        if ceiling != INFINITY:
            hard = ceiling if hard == INFINITY else min(hard, ceiling)
            soft = hard if soft == INFINITY else min(soft, hard)
        out.append({"type": name, "soft": _unsigned(soft), "hard": _unsigned(hard)})
    return out


def _unsigned(value: int) -> int:
    return 2**64 - 1 if value == INFINITY else value
