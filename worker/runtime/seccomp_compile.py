"""Compiles a seccomp profile to the bytes worker.runtime.seccomp loads; the daemon does so beside the start path.

A profile is OCI linux.seccomp or Docker's form of it (archMap; includes and excludes by capability, architecture and
kernel). Numbers come from our own table (syscall_numbers.json): names it does not know are left out, as Docker does;
anything else that cannot be expressed is SpecFault. Where the profile closes by default, a call newer than the newest it
names answers ENOSYS, as runc has it: a program then takes its older way, which EPERM would not tell it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from worker.runtime.errors import SpecFault
from worker.runtime.seccomp_bpf import Comparison, Intervals, Outcome, Rule, assemble

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = 2
_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_FAMILIES: dict[str, dict[str, int]] = {
    "x86_64": {"X86_64": 0xC000003E, "X86": 0x40000003, "X32": 0xC000003E},
    "aarch64": {"AARCH64": 0xC00000B7, "ARM": 0x40000028},
}
"""Machine → what its kernel may run, its own first, with AUDIT_ARCH_* (linux/audit.h). X32 has a bit in the number."""
_ELSEWHERE = frozenset(
    (
        "X86_64", "X86", "X32", "ARM", "AARCH64", "LOONGARCH64", "M68K", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64",
        "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "SH", "SHEB", "PARISC", "PARISC64", "RISCV64",
    )
)  # fmt: skip
_NARROW = ("X86", "X32", "ARM")
_X32_BIT = 0x40000000
_NO_CALL = 0xFFFFFFFF  # A tracer skips a call by this number.

OPERATORS = {f"SCMP_CMP_{name}": name for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")}
ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_TRAP": 0x00030000,
}
"""SECCOMP_RET_* (linux/seccomp.h)."""
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": "tsync",
    "SECCOMP_FILTER_FLAG_LOG": "log",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": "spec_allow",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": "wait_killable_recv",
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPEN = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_KILL_THREAD, _ERRNO = ACTIONS["SCMP_ACT_KILL_THREAD"], ACTIONS["SCMP_ACT_ERRNO"]
_EPERM, _ENOSYS, _MAX_ERRNO = 1, 38, 4095

_MULTIPLEXED = {
    "socketcall": {
        "socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7,
        "socketpair": 8, "send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14,
        "getsockopt": 15, "sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
    },
    "ipc": {
        "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
        "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
    },
}  # fmt: skip
"""i386: calls that are also reached through another, by its first argument (linux/net.h, linux/ipc.h)."""
_INTEGERS = {"personality": (0,), "socket": (0, 1, 2), "socketpair": (0, 1, 2)}
"""Arguments of which the kernel reads 32 bits only: what stands above must not make 40 another number than 40."""


@cache
def numbers() -> dict[str, dict[str, int]]:
    """Architecture → name → number."""
    with open(os.path.join(os.path.dirname(__file__), "syscall_numbers.json"), encoding="utf-8") as file:
        tables: dict[str, dict[str, int]] = {name: table for name, table in json.load(file).items() if name != "origin"}
    return tables


def compile(profile: dict[str, Any], capabilities: Iterable[str], arch: str) -> bytes:
    """The filter (an array of struct sock_filter) for a process with ``capabilities`` on ``arch`` (uname -m)."""
    if arch not in _FAMILIES:
        raise SpecFault("linux.seccomp", f"no table of system calls is known for machine {arch}")
    held = frozenset(capabilities)
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"), "defaultAction")
    notifies(profile)
    newer = default
    if profile["defaultAction"] not in _OPEN:
        newer = _ERRNO | _ENOSYS
    rules = []
    for index, rule in enumerate(profile.get("syscalls") or []):
        field = f"linux.seccomp.syscalls[{index}]"
        _check_rule(rule, field)
        action = _action(rule.get("action"), rule.get("errnoRet"), f"{field.rpartition('.')[2]}.action")
        # One that says what the default says is left out, as in runc: it may not hide others of the same call.
        if action != default and _applies(rule, held, _DOCKER_ARCH[arch]):
            rules.append((rule, action))
    result: dict[int, Intervals] = {}
    for name in _architectures(profile, arch):
        intervals = _intervals(name, profile, rules, default, newer)
        known = result.get(_FAMILIES[arch][name])
        if name == "X32":
            # It shares its architecture's word with X86_64, whose numbers lie below the bit.
            assert known is not None
            intervals = [entry for entry in known if entry[0] < _X32_BIT] + intervals
        result[_FAMILIES[arch][name]] = intervals
    return assemble(result, _KILL_THREAD)


def compiled_file(cache: Path, profile: dict[str, Any], capabilities: Iterable[str], arch: str) -> Path:
    """The file with the compiled filter in directory ``cache``, made on first use; name it in covey.seccomp.path."""
    # For a daemon. A process that compiles for itself alone is on a container's way, and need not load these.
    import hashlib
    import tempfile

    held = sorted(set(capabilities))
    key = json.dumps([_FORMAT, profile, held, arch, os.uname().release], sort_keys=True)
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.bpf"
    if not path.exists():
        if notifies(profile):
            raise SpecFault("linux.seccomp.syscalls", "SCMP_ACT_NOTIFY needs a listenerPath, which only a bundle can name")
        instructions = compile(profile, held, arch)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(instructions)
        os.rename(file.name, path)
    return path


def flags(profile: dict[str, Any]) -> tuple[str, ...]:
    """The profile's flags as worker.runtime.seccomp names them; without the property SPEC_ALLOW, as runc has it."""
    wanted = profile.get("flags")
    if wanted is None:
        return ("spec_allow",)
    for flag in wanted:
        if flag not in FLAGS:
            raise SpecFault("linux.seccomp.flags", f"{flag!r} is not one of {', '.join(FLAGS)}")
    return tuple(FLAGS[flag] for flag in wanted)


def architectures(machine: str) -> tuple[str, ...]:
    """What a machine's kernel may run and filters can speak of, without SCMP_ARCH_; its own first."""
    return tuple(_FAMILIES.get(machine, ()))


def notifies(profile: dict[str, Any]) -> bool:
    """Whether a supervisor is asked about calls. Raises SpecFault where that could never begin."""
    asked = [rule for rule in profile.get("syscalls") or [] if rule.get("action") == "SCMP_ACT_NOTIFY"]
    if profile.get("defaultAction") == "SCMP_ACT_NOTIFY":
        raise SpecFault("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be the default: who would tell the supervisor?")
    if any("write" in rule["names"] for rule in asked):
        raise SpecFault("linux.seccomp.syscalls", "SCMP_ACT_NOTIFY is not possible for write, which tells of the listener")
    return bool(asked)


def _architectures(profile: dict[str, Any], arch: str) -> list[str]:
    """The machine's own and those of the profile that its kernel may run; others can make no call here."""
    names = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == f"SCMP_ARCH_{arch.upper()}":
            names += entry.get("subArchitectures") or []
    wanted = {name.removeprefix("SCMP_ARCH_") for name in names} - {"NATIVE"}
    for name in sorted(wanted - _ELSEWHERE):
        raise SpecFault("linux.seccomp.architectures", f"SCMP_ARCH_{name} is unknown")
    own, *others = _FAMILIES[arch]
    return [own, *(name for name in others if name in wanted)]


def _action(name: str | None, errno_value: int | None, field: str) -> int:
    if name not in ACTIONS:
        raise SpecFault(f"linux.seccomp.{field}", f"{name!r} is not one of {', '.join(ACTIONS)}")
    if name not in _WITH_ERRNO:
        if errno_value is not None:
            raise SpecFault(f"linux.seccomp.{field}", f"{name} answers no errno, yet {errno_value} is given")
        return ACTIONS[name]
    value = _EPERM if errno_value is None else errno_value
    if not 0 <= value <= _MAX_ERRNO:
        raise SpecFault(f"linux.seccomp.{field}", f"errno {value} is not within 0 to {_MAX_ERRNO}")
    return ACTIONS[name] | value


def _applies(rule: dict[str, Any], held: frozenset[str], arch: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if any(cap in held for cap in excludes.get("caps") or []) or arch in (excludes.get("arches") or []):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if includes.get("minKernel") and _kernel(os.uname().release) < _kernel(includes["minKernel"]):
        return False
    if excludes.get("minKernel") and _kernel(os.uname().release) >= _kernel(excludes["minKernel"]):
        return False
    return all(cap in held for cap in includes.get("caps") or [])


def _kernel(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())


def _check_rule(rule: dict[str, Any], field: str) -> None:
    for entry in rule.get("args") or []:
        if entry.get("op") not in OPERATORS:
            raise SpecFault(f"{field}.args.op", f"{entry.get('op')!r} is not one of {', '.join(OPERATORS)}")
        if entry.get("index") not in range(6):
            raise SpecFault(f"{field}.args.index", f"{entry.get('index')!r} is not within 0 to 5")
        for key in ("value", "valueTwo"):
            if not isinstance(entry.get(key) or 0, int) or not 0 <= (entry.get(key) or 0) < 2**64:
                raise SpecFault(f"{field}.args.{key}", f"{entry.get(key)!r} is not a number of 64 bits")


def _comparisons(rule: dict[str, Any], name: str, architecture: str) -> list[tuple[Comparison, ...]]:
    """Alternatives of comparisons that must all hold. Several of one argument are alternatives, as in runc."""
    result: list[Comparison] = []
    for entry in rule.get("args") or []:
        index = entry["index"]
        bits = 32 if architecture in _NARROW or index in _INTEGERS.get(name, ()) else 64
        result.append((index, OPERATORS[entry["op"]], entry.get("value") or 0, entry.get("valueTwo") or 0, bits))
    if len({comparison[0] for comparison in result}) < len(result):
        return [(comparison,) for comparison in result]
    return [tuple(result)]


def _intervals(
    architecture: str, profile: dict[str, Any], rules: list[tuple[dict[str, Any], int]], default: int, newer: int
) -> Intervals:
    """What happens to each number of an architecture. A rule without comparisons beats those with, as in libseccomp."""
    table = numbers()[architecture]
    by_number: dict[int, list[Rule]] = {}
    for rule, action in rules:
        for name in rule["names"]:
            alternatives = _comparisons(rule, name, architecture)
            if name in table:
                by_number.setdefault(table[name], []).extend((action, entry) for entry in alternatives)
            if architecture == "X86" and alternatives == [()]:
                for through, calls in _MULTIPLEXED.items():
                    if name in calls:
                        only: Comparison = (0, "EQ", calls[name], 0, 32)
                        by_number.setdefault(table[through], []).append((action, (only,)))
    # What the profile knows of, whether or not it holds here.
    named = {name for rule in profile.get("syscalls") or [] for name in rule.get("names") or []}
    last = max((table[name] for name in named if name in table), default=None)
    base = _X32_BIT if architecture == "X32" else 0
    result: Intervals = []
    _append(result, base, ((default, ()),))
    for number, found in sorted(by_number.items()):
        _append(result, base + number, _outcome(found, default))
        _append(result, base + number + 1, ((default, ()),))
    if last is not None:
        _append(result, base + last + 1, ((newer, ()),))
    if architecture == "X86_64":
        _append(result, _X32_BIT, ((_KILL_THREAD, ()),))
    _append(result, _NO_CALL, ((default, ()),))
    return result


def _outcome(found: list[Rule], default: int) -> Outcome:
    for action, comparisons in found:
        if not comparisons:
            return ((action, ()),)
    return (*found, (default, ()))


def _append(intervals: Intervals, start: int, outcome: Outcome) -> None:
    """Begin an interval; one that begins where the last did takes its place, one like the last is part of it."""
    if intervals and intervals[-1][0] == start:
        intervals.pop()
    if not intervals or intervals[-1][1] != outcome:
        intervals.append((start, outcome))
