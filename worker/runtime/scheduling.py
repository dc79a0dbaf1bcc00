"""How a process is scheduled and what it appears to run on: policy, nice, I/O priority, processors, memory, personality.

Checks are pure and name the field (OCI config.md, "Linux Process"; config-linux.md, "Personality", "Memory Policy");
the steps make one call each, before privileges are dropped. Values: include/uapi/linux/{sched,ioprio,mempolicy,
personality}.h.
"""

from __future__ import annotations

import errno
import os

from worker.kernel import syscalls
from worker.kernel.bare import Any
from worker.runtime.errors import RuntimeFault, SpecFault

POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6,
}  # fmt: skip
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
_REAL_TIME = ("SCHED_FIFO", "SCHED_RR")
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_IOPRIO_CLASS_SHIFT, _IOPRIO_WHO_PROCESS = 13, 1
MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
_MOST_NUMBER = 1023


def numbers(text: str, field: str) -> set[int]:
    """The numbers of a list such as ``0-3,7``. Raises SpecFault."""
    result: set[int] = set()
    for part in filter(None, (entry.strip() for entry in text.split(","))):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.strip().isdecimal() and last.strip().isdecimal()) or int(first) > int(last) or int(last) > _MOST_NUMBER:
            raise SpecFault(field, f"{text!r} is not a list of numbers such as 0-3,7")
        result.update(range(int(first), int(last) + 1))
    return result


def check_process(process: dict[str, Any], field: str) -> None:
    """Raise SpecFault for scheduler, ioPriority or execCPUAffinity that cannot be."""
    scheduler = process.get("scheduler")
    if scheduler:
        _check_scheduler(scheduler, f"{field}.scheduler")
    priority = process.get("ioPriority")
    if priority:
        if priority.get("class") not in IO_CLASSES:
            raise SpecFault(f"{field}.ioPriority.class", f"{priority.get('class')!r} is not one of {', '.join(IO_CLASSES)}")
        if not 0 <= int(priority.get("priority") or 0) <= 7:
            raise SpecFault(f"{field}.ioPriority.priority", f"{priority['priority']} is not within 0 (highest) to 7")
    for key, value in (process.get("execCPUAffinity") or {}).items():
        if key in ("initial", "final"):
            numbers(value, f"{field}.execCPUAffinity.{key}")


def _check_scheduler(scheduler: dict[str, Any], field: str) -> None:
    policy = scheduler.get("policy")
    if policy not in POLICIES:
        raise SpecFault(f"{field}.policy", f"{policy!r} is not one of {', '.join(POLICIES)}")
    for flag in scheduler.get("flags") or []:
        if flag not in FLAGS:
            raise SpecFault(f"{field}.flags", f"{flag!r} is not one of {', '.join(FLAGS)}")
    if not -20 <= int(scheduler.get("nice") or 0) <= 19:
        raise SpecFault(f"{field}.nice", f"{scheduler['nice']} is not within -20 to 19")
    if scheduler.get("priority") and policy not in _REAL_TIME:
        raise SpecFault(f"{field}.priority", f"has a meaning only with {' and '.join(_REAL_TIME)}")
    times = [key for key in ("runtime", "deadline", "period") if scheduler.get(key)]
    if times and policy != "SCHED_DEADLINE":
        raise SpecFault(f"{field}.{times[0]}", "has a meaning only with SCHED_DEADLINE")


def check_linux(linux: dict[str, Any]) -> None:
    """Raise SpecFault for linux.personality or linux.memoryPolicy that cannot be."""
    personality = linux.get("personality")
    if personality:
        if personality.get("domain") not in PERSONALITIES:
            known = " and ".join(PERSONALITIES)
            raise SpecFault("linux.personality.domain", f"{personality.get('domain')!r} is not one of {known}")
        if personality.get("flags"):
            raise SpecFault("linux.personality.flags", "the specification knows none yet")
    policy = linux.get("memoryPolicy")
    if policy:
        if policy.get("mode") not in MEMORY_MODES:
            raise SpecFault("linux.memoryPolicy.mode", f"{policy.get('mode')!r} is not one of {', '.join(MEMORY_MODES)}")
        for flag in policy.get("flags") or []:
            if flag not in MEMORY_FLAGS:
                raise SpecFault("linux.memoryPolicy.flags", f"{flag!r} is not one of {', '.join(MEMORY_FLAGS)}")
        numbers(policy.get("nodes") or "", "linux.memoryPolicy.nodes")


def steps(process: dict[str, Any], linux: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of the steps a process needs; none by default."""
    result: list[tuple[str, dict[str, Any]]] = []
    entry = process.get("scheduler")
    if entry:
        flags = 0
        for flag in entry.get("flags") or []:
            flags |= FLAGS[flag]
        numbers_ = {key: int(entry.get(key) or 0) for key in ("nice", "priority", "runtime", "deadline", "period")}
        result.append(("scheduler", {"policy": POLICIES[entry["policy"]], "flags": flags, **numbers_}))
    entry = process.get("ioPriority")
    if entry:
        value = IO_CLASSES[entry["class"]] << _IOPRIO_CLASS_SHIFT | int(entry.get("priority") or 0)
        result.append(("io_priority", {"value": value}))
    entry = linux.get("memoryPolicy")
    if entry:
        mode = MEMORY_MODES[entry["mode"]]
        for flag in entry.get("flags") or []:
            mode |= MEMORY_FLAGS[flag]
        nodes = sum(1 << number for number in numbers(entry.get("nodes") or "", "linux.memoryPolicy.nodes"))
        result.append(("memory_policy", {"mode": mode, "nodes": nodes}))
    entry = linux.get("personality")
    if entry:
        result.append(("personality", {"persona": PERSONALITIES[entry["domain"]]}))
    return result


def _call(field: str, call: Any, *arguments: int) -> None:
    try:
        call(*arguments)
    except OSError as error:
        raise RuntimeFault("kernel", f"{field}: {error.strerror}") from None


def scheduler(init: Any, policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int) -> None:
    try:
        syscalls.sched_setattr(policy, flags, nice, priority, runtime, deadline, period)
    except OSError as error:
        hint = ""
        if error.errno == errno.EPERM and policy in (POLICIES["SCHED_FIFO"], POLICIES["SCHED_RR"]):
            hint = ": on cgroup v1 a real-time policy needs linux.resources.cpu.realtimeRuntime"
        raise RuntimeFault("kernel", f"process.scheduler: {error.strerror}{hint}") from None


def io_priority(init: Any, value: int) -> None:
    _call("process.ioPriority", syscalls.ioprio_set, _IOPRIO_WHO_PROCESS, 0, value)


def memory_policy(init: Any, mode: int, nodes: int) -> None:
    _call("linux.memoryPolicy", syscalls.set_mempolicy, mode, nodes)


def personality(init: Any, persona: int) -> None:
    _call("linux.personality", syscalls.personality, persona)


def affinity(init: Any, field: str, processors: list[int]) -> None:
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:
        raise RuntimeFault("kernel", f"{field}: processors {processors}: {error.strerror}") from None


SCHEDULING_STEPS: dict[str, Any] = {
    "affinity": affinity,
    "io_priority": io_priority,
    "memory_policy": memory_policy,
    "personality": personality,
    "scheduler": scheduler,
}
