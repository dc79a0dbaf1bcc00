"""PURE: which runtime a container is run by, and a bundle's config in the words that any OCI runtime understands.

``covey`` is our own. Others are programs by path (``--add-runtime NAME=PATH``), driven by worker.shim.foreign.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument

OWN = "covey"
#: What Docker's clients call the ordinary runtime; ours, unless a program of that name was added.
ORDINARY = ("runc", "io.containerd.runc.v2")
#: Which no runtime refuses; crun 1.8 knows no later one than 1.0.
VERSION = "1.0.2"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Name → path, of ``NAME=PATH``. Raises InvalidArgument."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not _NAME.fullmatch(name) or not path.startswith("/"):
            raise InvalidArgument(f"--add-runtime {text!r}: give NAME=PATH with the absolute path of an OCI runtime")
        if name == OWN:
            raise InvalidArgument(f"--add-runtime {text!r}: runtime name '{OWN}' is reserved")
        if name in found:
            raise InvalidArgument(f"--add-runtime {text!r}: the name is given twice")
        found[name] = path
    return found


def check_default(name: str, added: Collection[str]) -> str:
    """The default runtime's name. Raises InvalidArgument."""
    if name not in (OWN, *added):
        raise InvalidArgument(f"--default-runtime {name!r} does not exist: add it with --add-runtime {name}=PATH")
    return name


def chosen(wanted: str, added: Collection[str], default: str) -> str:
    """The name that inspect shows. Raises InvalidArgument in Docker's words."""
    if wanted in added:
        return wanted
    if not wanted:
        return default
    if wanted == OWN or wanted in ORDINARY:
        return OWN
    raise InvalidArgument(f"unknown or invalid runtime name: {wanted}")


def shown(added: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Runtimes of /info."""
    return {OWN: {"path": OWN}, **{name: {"path": path} for name, path in added.items()}}


def foreign(config: Mapping[str, Any], profile: Mapping[str, Any] | None, machine: str, release: str) -> dict[str, Any]:
    """``config`` without what only our runtime reads, its seccomp filter spelled out.

    ``profile``: Docker's form of it, None for unconfined; ``machine`` and ``release``: of uname.
    """
    out = {**{key: value for key, value in config.items() if key != "covey"}, "ociVersion": VERSION}
    if profile is not None:
        held = ((config.get("process") or {}).get("capabilities") or {}).get("bounding") or ()
        out["linux"] = {**config["linux"], "seccomp": seccomp(profile, held, machine, release)}
    return out


def seccomp(profile: Mapping[str, Any], held: Collection[str], machine: str, release: str) -> dict[str, Any]:
    """OCI linux.seccomp of a profile: what of it applies to these capabilities on this machine."""
    architectures = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == f"SCMP_ARCH_{machine.upper()}":
            architectures += [entry["architecture"], *(entry.get("subArchitectures") or [])]
    rules = []
    for rule in profile.get("syscalls") or []:
        if _applies(rule, held, _ARCHITECTURES.get(machine, machine), release):
            kept = {key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key) is not None}
            rules.append({"names": list(rule.get("names") or [rule.get("name")]), **kept})
    out: dict[str, Any] = {"defaultAction": profile["defaultAction"], "syscalls": rules}
    if architectures:
        out["architectures"] = architectures
    if profile.get("defaultErrnoRet") is not None:
        out["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return out


def _applies(rule: Mapping[str, Any], held: Collection[str], architecture: str, release: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    now = _version(release)
    refusals = (
        any(capability in held for capability in excludes.get("caps") or []),
        architecture in (excludes.get("arches") or []),
        bool(includes.get("arches")) and architecture not in includes["arches"],
        bool(includes.get("minKernel")) and now < _version(str(includes.get("minKernel"))),
        bool(excludes.get("minKernel")) and now >= _version(str(excludes.get("minKernel"))),
        not all(capability in held for capability in includes.get("caps") or []),
    )
    return not any(refusals)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])
