"""Compiles a seccomp profile to the bytes worker.runtime.seccomp loads. For the daemon only: it needs libseccomp.

A profile is OCI linux.seccomp or Docker's form of it (archMap; includes and excludes by capability, architecture and
kernel). Names the library does not know are left out, as Docker does; anything else it cannot express is SpecFault.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker.runtime.errors import SpecFault

_FORMAT = 1
_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_OPERATORS = {
    "SCMP_CMP_NE": "NE",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_LE": "LE",
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_GE": "GE",
    "SCMP_CMP_GT": "GT",
    "SCMP_CMP_MASKED_EQ": "MASKED_EQ",
}
_PLAIN_ACTIONS = {
    "SCMP_ACT_ALLOW": "ALLOW",
    "SCMP_ACT_KILL": "KILL_THREAD",
    "SCMP_ACT_KILL_THREAD": "KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS": "KILL_PROCESS",
    "SCMP_ACT_TRAP": "TRAP",
    "SCMP_ACT_LOG": "LOG",
}
_UNKNOWN_SYSCALL = -1
_EPERM = 1


def compile(profile: dict[str, Any], capabilities: Iterable[str], arch: str) -> bytes:
    """The filter (an array of struct sock_filter) for a process with ``capabilities`` on ``arch`` (uname -m)."""
    import pyseccomp

    held = frozenset(capabilities)
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"), "defaultAction")
    try:
        filter_ = pyseccomp.SyscallFilter(default)
        for name in _architectures(profile, arch):
            number = getattr(pyseccomp.Arch, name, None)
            if number is None:
                raise SpecFault("linux.seccomp.architectures", f"SCMP_ARCH_{name} is unknown")
            if number != pyseccomp.system_arch():
                filter_.add_arch(number)
        for index, rule in enumerate(profile.get("syscalls") or []):
            if _applies(rule, held, _DOCKER_ARCH.get(arch, arch)):
                _add(filter_, rule, default, f"linux.seccomp.syscalls[{index}]")
        with tempfile.TemporaryFile() as file:
            filter_.export_bpf(file)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise SpecFault("linux.seccomp", f"libseccomp refuses the profile: {error}") from None


def compiled_file(cache: Path, profile: dict[str, Any], capabilities: Iterable[str], arch: str) -> Path:
    """The file with the compiled filter in directory ``cache``, made on first use; name it in covey.seccomp.path."""
    held = sorted(set(capabilities))
    key = json.dumps([_FORMAT, profile, held, arch, os.uname().release], sort_keys=True)
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.bpf"
    if not path.exists():
        instructions = compile(profile, held, arch)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(instructions)
        os.rename(file.name, path)
    return path


def _architectures(profile: dict[str, Any], arch: str) -> list[str]:
    names = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == f"SCMP_ARCH_{arch.upper()}":
            names += entry.get("subArchitectures") or []
    return [name.removeprefix("SCMP_ARCH_") for name in names]


def _action(name: str | None, errno_value: int | None, field: str) -> int:
    import pyseccomp

    if name in _PLAIN_ACTIONS:
        return int(getattr(pyseccomp, _PLAIN_ACTIONS[name]))
    if name == "SCMP_ACT_ERRNO":
        return int(pyseccomp.ERRNO(_EPERM if errno_value is None else errno_value))
    if name == "SCMP_ACT_TRACE":
        return int(pyseccomp.TRACE(_EPERM if errno_value is None else errno_value))
    raise SpecFault(f"linux.seccomp.{field}", f"{name!r} is not an action that can be met here")


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


def _add(filter_: Any, rule: dict[str, Any], default: int, field: str) -> None:
    import pyseccomp

    action = _action(rule.get("action"), rule.get("errnoRet"), f"{field.rpartition('.')[2]}.action")
    if action == default:
        return
    arguments = [_argument(entry, field) for entry in rule.get("args") or []]
    indexes = [entry["index"] for entry in rule.get("args") or []]
    for name in rule.get("names") or []:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        if number == _UNKNOWN_SYSCALL:
            continue
        if len(set(indexes)) < len(indexes):
            # libseccomp takes one comparison an argument; several of one argument are alternatives, as in runc.
            for argument in arguments:
                filter_.add_rule(action, number, argument)
        else:
            filter_.add_rule(action, number, *arguments)


def _argument(entry: dict[str, Any], field: str) -> Any:
    import pyseccomp

    operator = _OPERATORS.get(entry.get("op", ""))
    if operator is None:
        raise SpecFault(f"{field}.args.op", f"{entry.get('op')!r} is unknown")
    return pyseccomp.Arg(entry["index"], getattr(pyseccomp, operator), entry["value"], entry.get("valueTwo") or 0)
