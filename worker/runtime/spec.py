"""Reads a bundle's config.json and says, by field, what in it cannot be run.

Checks follow the OCI runtime specification 1.x (config.md, config-linux.md). Unknown fields are let through, as the
specification asks; what is known and cannot be met is refused. It makes nothing and asks the kernel nothing. What lies
below ``linux`` is worker.runtime.spec_linux's.
"""

from __future__ import annotations

import os

from worker.kernel.bare import Any
from worker.runtime import compact_json, hooks, mount_options, scheduling, spec_linux
from worker.runtime.errors import SpecFault

Config = dict[str, Any]

"""Semantic versions (semver.org, 2.0.0) of the major version that this runtime follows."""
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
    ("process.apparmorProfile", str),
    ("process.selinuxLabel", str),
    ("process.scheduler", dict),
    ("process.ioPriority", dict),
    ("process.execCPUAffinity", dict),
    ("process.consoleSize", dict),
    ("hooks", dict),
    ("linux", dict),
    ("linux.namespaces", list),
    ("linux.devices", list),
    ("linux.cgroupsPath", str),
    ("linux.resources", dict),
    ("linux.sysctl", dict),
    ("linux.maskedPaths", list),
    ("linux.readonlyPaths", list),
    ("linux.rootfsPropagation", str),
    ("linux.uidMappings", list),
    ("linux.gidMappings", list),
    ("linux.timeOffsets", dict),
    ("linux.mountLabel", str),
    ("linux.personality", dict),
    ("linux.memoryPolicy", dict),
    ("linux.intelRdt", dict),
    ("linux.netDevices", dict),
    ("linux.seccomp", dict),
    ("annotations", dict),
    ("covey", dict),
)


_TYPED = tuple((path, path.split("."), kind) for path, kind in _TYPES)


def load(bundle: str, ident: str = "", cgroup_parent: str = "/covey", config_file: str = "") -> Config:
    """The checked config of a bundle directory, with paths made absolute. Raises SpecFault.

    ``ident``, ``cgroup_parent``: what a cgroupsPath that is absent or relative is completed with. ``config_file``: read
    instead of the bundle's own.
    """
    path = config_file or os.path.join(bundle, "config.json")
    try:
        with open(path, "rb", buffering=0) as file:
            config = compact_json.loads(file.readall())
    except FileNotFoundError:
        raise SpecFault("config.json", f"there is none at {path}, the bundle being {bundle}") from None
    except ValueError as error:
        raise SpecFault("config.json", f"is not JSON: {error}") from None
    check(config)
    config["root"]["path"] = os.path.join(bundle, config["root"]["path"])
    for mount in config.get("mounts") or []:
        if mount_options.is_bind(mount):
            mount["source"] = os.path.join(bundle, mount["source"])
    spec_linux.complete_cgroups_path(config["linux"], ident, cgroup_parent)
    return dict(config)


def _is_version(text: str) -> bool:
    """Whether it is a version 1.x.y, perhaps with marks of a pre-release or a build (semver.org 2.0)."""
    text, plus, build = text.partition("+")
    text, minus, early = text.partition("-")
    for mark, words in ((plus, build), (minus, early)):
        if mark and not all(_is_plain(word.replace("-", "0")) for word in words.split(".")):
            return False
    major, *rest = text.split(".")
    return major == "1" and len(rest) == 2 and all(_is_plain(one) and one.isdigit() and one == str(int(one)) for one in rest)


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalnum()


def check(config: object) -> None:
    """Raise SpecFault for the first field that cannot be run."""
    if not isinstance(config, dict):
        raise SpecFault("config.json", "must be an object")
    version = config.get("ociVersion")
    if not isinstance(version, str) or not _is_version(version):
        raise SpecFault("ociVersion", f"{version!r} is not a 1.x version of the specification")
    for path, keys, kind in _TYPED:
        value: Any = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise SpecFault(path, f"has the wrong type {type(value).__name__}")
    if not (config.get("root") or {}).get("path"):
        raise SpecFault("root.path", "is required")
    if config.get("process") is None:
        raise SpecFault("process", "is required")
    check_process(config["process"], "process")
    _check_mounts(config.get("mounts") or [])
    spec_linux.check(config.get("linux") or {})
    hooks.check(config.get("hooks") or {})
    for key, value in (config.get("annotations") or {}).items():
        if not key or not isinstance(value, str):
            raise SpecFault("annotations", f"{key!r}: {value!r} is not a name with a string")
    for field in ("hostname", "domainname"):
        if config.get(field) and "uts" not in spec_linux.namespace_types(config.get("linux") or {}):
            raise SpecFault(field, "needs a uts namespace in linux.namespaces")


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
    seen: set[str] = set()
    for index, limit in enumerate(process.get("rlimits") or []):
        name = str(limit.get("type", ""))
        if name.removeprefix("RLIMIT_") not in _RLIMITS or not name.startswith("RLIMIT_"):
            raise SpecFault(f"{field}.rlimits[{index}].type", f"{name!r} is unknown")
        if not isinstance(limit.get("soft"), int) or not isinstance(limit.get("hard"), int):
            raise SpecFault(f"{field}.rlimits[{index}]", "soft and hard must be numbers")
        if limit["soft"] > limit["hard"] >= 0:
            raise SpecFault(f"{field}.rlimits[{index}].soft", f"{limit['soft']} is above hard {limit['hard']}")
        if name in seen:
            raise SpecFault(f"{field}.rlimits[{index}].type", f"{name} is named twice")
        seen.add(name)
    user = process.get("user") or {}
    for key in ("uid", "gid", "umask"):
        if not _is_id(user.get(key, 0)):
            raise SpecFault(f"{field}.user.{key}", f"{user.get(key)!r} is not a number of an id")
    if not all(_is_id(gid) for gid in user.get("additionalGids") or []):
        raise SpecFault(f"{field}.user.additionalGids", "must be numbers")
    scheduling.check_process(process, field)


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
        bind = mount_options.is_bind(mount)
        if bind and not mount.get("source"):
            raise SpecFault(f"{field}.source", f"is required for the bind at {destination}")
        if not bind and not mount.get("type"):
            raise SpecFault(f"{field}.type", f"is required for the mount at {destination}")
        for key, other in (("uidMappings", "gidMappings"), ("gidMappings", "uidMappings")):
            spec_linux.check_mapping(mount.get(key) or [], f"{field}.{key}")
            if mount.get(key) and not mount.get(other):
                raise SpecFault(f"{field}.{other}", f"is required beside {key}")
