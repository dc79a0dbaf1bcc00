"""Reads a bundle's config.json and says, by field, what in it cannot be run.

Checks follow the OCI runtime specification 1.x (config.md, config-linux.md). Unknown fields are let through, as the
specification asks; what is known and cannot be met is refused. It makes nothing and asks the kernel nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from worker.runtime import compact_json
from worker.runtime.errors import SpecFault

_NOT_MET = (
    "hooks",
    "process.apparmorProfile",
    "process.selinuxLabel",
    "process.scheduler",
    "process.ioPriority",
    "linux.intelRdt",
    "linux.mountLabel",
    "linux.personality",
    "linux.timeOffsets",
    "linux.resources.network",
    "linux.resources.rdma",
)
"""Known fields that mean something and cannot be met yet: refused, never dropped in silence."""

Config = dict[str, Any]

NAMESPACE_TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup")
_VERSION = re.compile(r"^1\.\d+\.\d+(-[0-9A-Za-z.-]+)?$")
_RLIMITS = frozenset(
    (
        "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS",
        "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
    )
)  # fmt: skip
"""getrlimit(2)"""

_TYPES: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    ("root", dict),
    ("root.path", str),
    ("root.readonly", bool),
    ("hostname", str),
    ("domainname", str),
    ("mounts", list),
    ("process", dict),
    ("process.terminal", bool),
    ("process.cwd", str),
    ("process.args", list),
    ("process.env", list),
    ("process.user", dict),
    ("process.capabilities", dict),
    ("process.rlimits", list),
    ("process.noNewPrivileges", bool),
    ("process.oomScoreAdj", int),
    ("linux", dict),
    ("linux.namespaces", list),
    ("linux.devices", list),
    ("linux.cgroupsPath", str),
    ("linux.resources", dict),
    ("linux.sysctl", dict),
    ("linux.maskedPaths", list),
    ("linux.readonlyPaths", list),
    ("linux.rootfsPropagation", str),
    ("annotations", dict),
    ("covey", dict),
)


def load(bundle: str) -> Config:
    """The checked config of a bundle directory; root.path is made absolute. Raises SpecFault."""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb", buffering=0) as file:
            config = compact_json.loads(file.readall())
    except FileNotFoundError:
        raise SpecFault("config.json", f"there is none in bundle {bundle}") from None
    except ValueError as error:
        raise SpecFault("config.json", f"is not JSON: {error}") from None
    check(config)
    config["root"]["path"] = os.path.join(bundle, config["root"]["path"])
    return dict(config)


def lookup(config: Config, path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def check(config: object) -> None:
    """Raise SpecFault for the first field that cannot be run."""
    if not isinstance(config, dict):
        raise SpecFault("config.json", "must be an object")
    version = config.get("ociVersion")
    if not isinstance(version, str) or not _VERSION.match(version):
        raise SpecFault("ociVersion", f"{version!r} is not a 1.x version of the specification")
    for path, kind in _TYPES:
        value = lookup(config, path)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise SpecFault(path, f"has the wrong type {type(value).__name__}")
    for path in _NOT_MET:
        if lookup(config, path):
            raise SpecFault(path, "cannot be met by this runtime yet")
    if not lookup(config, "root.path"):
        raise SpecFault("root.path", "is required")
    if config.get("process") is None:
        raise SpecFault("process", "is required")
    check_process(config["process"], "process")
    _check_mounts(config.get("mounts") or [])
    _check_linux(config.get("linux") or {})
    if lookup(config, "linux.seccomp") and not lookup(config, "covey.seccomp"):
        raise SpecFault("linux.seccomp", "must come compiled: put worker.runtime.seccomp_compile's file in covey.seccomp.path")
    if config.get("hostname") and "uts" not in _namespace_types(config):
        raise SpecFault("hostname", "needs a uts namespace in linux.namespaces")


def check_process(process: object, field: str) -> None:
    """Raise SpecFault when ``process`` (an OCI process object) cannot be run."""
    if not isinstance(process, dict):
        raise SpecFault(field, "must be an object")
    args = process.get("args")
    if not args or not all(isinstance(arg, str) for arg in args):
        raise SpecFault(f"{field}.args", "must be a list of strings with at least one")
    if any("\0" in arg for arg in args):
        raise SpecFault(f"{field}.args", "must not contain NUL")
    if not str(process.get("cwd", "")).startswith("/"):
        raise SpecFault(f"{field}.cwd", f"{process.get('cwd')!r} is not an absolute path")
    for index, entry in enumerate(process.get("env") or []):
        if not isinstance(entry, str) or entry.find("=") < 1 or "\0" in entry:
            raise SpecFault(f"{field}.env[{index}]", f"{entry!r} is not NAME=value")
    for index, limit in enumerate(process.get("rlimits") or []):
        name = str(limit.get("type", ""))
        if name.removeprefix("RLIMIT_") not in _RLIMITS or not name.startswith("RLIMIT_"):
            raise SpecFault(f"{field}.rlimits[{index}].type", f"{name!r} is unknown")
        if not isinstance(limit.get("soft"), int) or not isinstance(limit.get("hard"), int):
            raise SpecFault(f"{field}.rlimits[{index}]", "soft and hard must be numbers")
        if limit["soft"] > limit["hard"] >= 0:
            raise SpecFault(f"{field}.rlimits[{index}].soft", f"{limit['soft']} is above hard {limit['hard']}")
    user = process.get("user") or {}
    for key in ("uid", "gid", "umask"):
        if not _is_id(user.get(key, 0)):
            raise SpecFault(f"{field}.user.{key}", f"{user.get(key)!r} is not a number of an id")
    if not all(_is_id(gid) for gid in user.get("additionalGids") or []):
        raise SpecFault(f"{field}.user.additionalGids", "must be numbers")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1


def _check_mounts(mounts: list[Any]) -> None:
    for index, mount in enumerate(mounts):
        field = f"mounts[{index}]"
        if not isinstance(mount, dict):
            raise SpecFault(field, "must be an object")
        destination = mount.get("destination")
        if not isinstance(destination, str) or not destination:
            raise SpecFault(f"{field}.destination", "is required")
        if not set(destination.split("/")) - {"", "."}:
            raise SpecFault(f"{field}.destination", f"{destination!r} is the root itself, which root.path gives")
        options = mount.get("options") or []
        if not all(isinstance(option, str) for option in options):
            raise SpecFault(f"{field}.options", "must be strings")
        bind = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        if bind and not mount.get("source"):
            raise SpecFault(f"{field}.source", f"is required for the bind at {destination}")
        if not bind and not mount.get("type"):
            raise SpecFault(f"{field}.type", f"is required for the mount at {destination}")


def _namespace_types(config: Config) -> list[str]:
    return [str(entry.get("type")) for entry in lookup(config, "linux.namespaces") or []]


def _check_linux(linux: Config) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(linux.get("namespaces") or []):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind not in NAMESPACE_TYPES:
            raise SpecFault(f"linux.namespaces[{index}].type", f"{kind!r} is not one of {', '.join(NAMESPACE_TYPES)}")
        if kind in seen:
            raise SpecFault(f"linux.namespaces[{index}].type", f"{kind} is named twice")
        seen.add(kind)
    if "mount" not in seen:
        raise SpecFault("linux.namespaces", "must name mount: a container always has its own mounts")
    if not str(linux.get("cgroupsPath", "")).startswith("/"):
        raise SpecFault("linux.cgroupsPath", f"{linux.get('cgroupsPath')!r} is not an absolute path")
    if "/../" in f"{linux['cgroupsPath']}/":
        raise SpecFault("linux.cgroupsPath", "must not contain ..")
    if not set(linux["cgroupsPath"].split("/")) - {"", "."}:
        raise SpecFault("linux.cgroupsPath", "is the root of all cgroups, in which everything of the machine runs")
    for key, value in (linux.get("sysctl") or {}).items():
        if not isinstance(value, str):
            raise SpecFault(f"linux.sysctl.{key}", "must be a string")
        _check_sysctl(key, seen)
    for index, device in enumerate(linux.get("devices") or []):
        if not str(device.get("path", "")).startswith("/"):
            raise SpecFault(f"linux.devices[{index}].path", "must be absolute")
        if device.get("type") not in ("c", "b", "u", "p"):
            raise SpecFault(f"linux.devices[{index}].type", f"{device.get('type')!r} is not one of c, b, u, p")


_SYSCTL_NAMESPACE: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.startswith("net."), "network"),
    (lambda key: key.startswith("fs.mqueue."), "ipc"),
    (lambda key: re.fullmatch(r"kernel\.(msg(max|mnb|mni)|sem|shm(all|max|mni|_rmid_forced))", key) is not None, "ipc"),
    (lambda key: key in ("kernel.hostname", "kernel.domainname"), "uts"),
)


def _check_sysctl(key: str, namespaces: set[str]) -> None:
    """A sysctl of the whole machine is refused: one container must not set it for all (namespaces(7))."""
    if ".." in key or "/.." in key:
        raise SpecFault(f"linux.sysctl.{key}", "is not the name of a sysctl")
    for matches, namespace in _SYSCTL_NAMESPACE:
        if matches(key.replace("/", ".")):
            if namespace not in namespaces:
                raise SpecFault(f"linux.sysctl.{key}", f"needs a {namespace} namespace of the container's own")
            return
    raise SpecFault(f"linux.sysctl.{key}", "belongs to the whole machine, not to a namespace")
