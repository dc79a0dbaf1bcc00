"""Which system calls a container may make: the profile chosen by its security options, as OCI's linux.seccomp.

Pure but for reading the shipped profile. The shipped default is Docker's, as data (seccomp-default.json; origin moby,
Apache-2.0); its rules depend on architecture, capabilities and kernel, which is resolved here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from covey.errors import InvalidArgument

DEFAULT_FILE = Path(__file__).with_name("seccomp-default.json")

#: uname -m → (Go's name, libseccomp's name)
_MACHINES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


@cache
def default_text() -> str:
    """The shipped profile."""
    return DEFAULT_FILE.read_text(encoding="utf-8")


def kernel_version(release: str) -> tuple[int, int]:
    """``6.18.3-cloud`` → (6, 18)."""
    numbers = []
    for part in release.split(".")[:2]:
        digits = ""
        for character in part:
            if not character.isdigit():
                break
            digits += character
        numbers.append(int(digits or 0))
    return numbers[0], numbers[1] if len(numbers) > 1 else 0


def _applies(rule: Mapping[str, Any], arch: str, capabilities: Collection[str], kernel: tuple[int, int]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if excludes.get("arches") and arch in excludes["arches"]:
        return False
    if any(name in capabilities for name in excludes.get("caps") or ()):
        return False
    if excludes.get("minKernel") and kernel >= kernel_version(excludes["minKernel"]):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if not all(name in capabilities for name in includes.get("caps") or ()):
        return False
    return not (includes.get("minKernel") and kernel < kernel_version(includes["minKernel"]))


def to_oci(profile: Mapping[str, Any], capabilities: Collection[str], machine: str, release: str) -> dict[str, Any]:
    """A profile in Docker's form as linux.seccomp, for this machine (``uname -m``), kernel and bounding set."""
    if machine not in _MACHINES:
        raise InvalidArgument(f"seccomp profiles are not known for {machine}: use --security-opt seccomp=unconfined")
    arch, name = _MACHINES[machine]
    kernel = kernel_version(release)
    architectures = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == name:
            architectures = [name, *(entry.get("subArchitectures") or [])]
    out: dict[str, Any] = {"defaultAction": profile.get("defaultAction"), "architectures": architectures, "syscalls": []}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if profile.get(key) is not None:
            out[key] = profile[key]
    if not out["defaultAction"]:
        raise InvalidArgument("seccomp profile has no defaultAction")
    for rule in profile.get("syscalls") or []:
        if not _applies(rule, arch, capabilities, kernel):
            continue
        names = list(rule.get("names") or ([rule["name"]] if rule.get("name") else []))
        entry = {"names": names, "action": rule["action"]}
        if rule.get("errnoRet") is not None:
            entry["errnoRet"] = rule["errnoRet"]
        if rule.get("args"):
            entry["args"] = rule["args"]
        out["syscalls"].append(entry)
    return out


def chosen(security_options: Collection[str], privileged: bool) -> str | None:
    """The profile's JSON text that ``--security-opt`` and ``--privileged`` ask for; None is unconfined.

    The CLI sends the text of a profile's file, not its path. Raises InvalidArgument for other text.
    """
    wanted = ""
    for option in security_options:
        key, _, value = option.partition("=")
        if not value:
            key, _, value = option.partition(":")
        if key == "seccomp":
            wanted = value
    if wanted == "unconfined" or (privileged and not wanted):
        return None
    if wanted in ("", "builtin", "default"):
        return default_text()
    try:
        json.loads(wanted)
    except ValueError as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}: send the profile's JSON text") from None
    return wanted
