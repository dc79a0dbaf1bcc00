"""Says, by field, what below ``linux`` of a config.json cannot be run (OCI config-linux.md). Pure, as worker.runtime.spec.

Limits are worker.runtime.limits', which refuses what it cannot express when it is asked for the files to write.
"""

from __future__ import annotations

from itertools import pairwise

from worker.kernel.bare import Any, Callable
from worker.runtime import scheduling
from worker.runtime.errors import SpecFault
from worker.runtime.namespaces import FLAGS

NAMESPACE_TYPES = tuple(FLAGS)
_NOT_MET = (("intelRdt", "this runtime does not drive resctrl: assign the cgroup's processes from outside, or leave it out"),)
"""Known fields that mean something and cannot be met: refused, never dropped in silence."""
_CLOCKS = ("monotonic", "boottime")
_MOST_ID = 2**32 - 1


def namespace_types(linux: dict[str, Any]) -> list[str]:
    return [str(entry.get("type")) for entry in linux.get("namespaces") or []]


def check(linux: dict[str, Any]) -> None:
    """Raise SpecFault for the first field that cannot be run."""
    seen = _check_namespaces(linux)
    _check_cgroups_path(str(linux.get("cgroupsPath") or ""))
    for key, value in (linux.get("sysctl") or {}).items():
        if not isinstance(value, str):
            raise SpecFault(f"linux.sysctl.{key}", "must be a string")
        _check_sysctl(key, seen)
    for index, device in enumerate(linux.get("devices") or []):
        _check_device(device, f"linux.devices[{index}]")
    for key in ("uidMappings", "gidMappings"):
        check_mapping(linux.get(key) or [], f"linux.{key}")
    for key in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(linux.get(key) or []):
            if not isinstance(path, str) or not path.startswith("/"):
                raise SpecFault(f"linux.{key}[{index}]", f"{path!r} is not an absolute path")
    for clock, offset in (linux.get("timeOffsets") or {}).items():
        _check_offset(clock, offset, seen)
    scheduling.check_linux(linux)
    _check_net_devices(linux.get("netDevices") or {}, seen)
    for key, why in _NOT_MET:
        if linux.get(key):
            raise SpecFault(f"linux.{key}", why)
    _check_seccomp(linux.get("seccomp") or {})


def _check_namespaces(linux: dict[str, Any]) -> set[str]:
    seen: set[str] = set()
    for index, entry in enumerate(linux.get("namespaces") or []):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind not in NAMESPACE_TYPES:
            raise SpecFault(f"linux.namespaces[{index}].type", f"{kind!r} is not one of {', '.join(NAMESPACE_TYPES)}")
        if kind in seen:
            raise SpecFault(f"linux.namespaces[{index}].type", f"{kind} is named twice")
        path = entry.get("path")
        if path and (not isinstance(path, str) or not path.startswith("/")):
            raise SpecFault(f"linux.namespaces[{index}].path", f"{path!r} is not an absolute path")
        seen.add(kind)
    if "mount" not in seen:
        raise SpecFault("linux.namespaces", "must name mount: a container always has its own mounts")
    return seen


def _check_cgroups_path(path: str) -> None:
    if "\0" in path or ".." in path.split("/"):
        raise SpecFault("linux.cgroupsPath", "must not contain ..")
    if path and not set(path.split("/")) - {"", "."}:
        raise SpecFault("linux.cgroupsPath", "is the root of all cgroups, in which everything of the machine runs")
    slice_, *rest = path.rsplit(":", 2)
    if "/" not in path and len(rest) == 2 and slice_.endswith(".slice"):
        raise SpecFault(
            "linux.cgroupsPath", f"{path!r} is for systemd's driver; this runtime writes cgroups itself: name a path"
        )


def complete_cgroups_path(linux: dict[str, Any], ident: str, parent: str) -> None:
    """Make linux.cgroupsPath absolute: a relative one lies below ``parent``, an absent one is ``ident`` there."""
    path = str(linux.get("cgroupsPath") or "")
    if path.startswith("/"):
        return
    if not path and not ident:
        raise SpecFault("linux.cgroupsPath", "is required where the container has no id")
    linux["cgroupsPath"] = f"{parent.rstrip('/')}/{path or ident}"


def _check_device(device: dict[str, Any], field: str) -> None:
    if not isinstance(device, dict):
        raise SpecFault(field, "must be an object")
    if not str(device.get("path", "")).startswith("/"):
        raise SpecFault(f"{field}.path", "must be absolute")
    if device.get("type") not in ("c", "b", "u", "p"):
        raise SpecFault(f"{field}.type", f"{device.get('type')!r} is not one of c, b, u, p")
    for key in ("major", "minor"):
        if device["type"] != "p" and not isinstance(device.get(key), int):
            raise SpecFault(f"{field}.{key}", f"is required for a device of type {device['type']}")


def check_mapping(entries: list[Any], field: str) -> None:
    """Raise SpecFault for id maps (uidMappings, gidMappings) the kernel cannot be given."""
    if not entries:
        return
    for index, entry in enumerate(entries):
        for key in ("containerID", "hostID", "size"):
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_ID:
                raise SpecFault(f"{field}[{index}].{key}", f"{value!r} is not a number of 32 bits")
        if entry["size"] == 0:
            raise SpecFault(f"{field}[{index}].size", "maps nobody")
    for key in ("containerID", "hostID"):
        ranges = sorted((entry[key], entry[key] + entry["size"]) for entry in entries)
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise SpecFault(field, f"{key} {start} is mapped twice")


def _check_offset(clock: str, offset: Any, namespaces: set[str]) -> None:
    if clock not in _CLOCKS:
        raise SpecFault(f"linux.timeOffsets.{clock}", f"is not one of {', '.join(_CLOCKS)}")
    if "time" not in namespaces:
        raise SpecFault(f"linux.timeOffsets.{clock}", "needs a time namespace in linux.namespaces")
    for key, least, most in (("secs", -(2**63), 2**63 - 1), ("nanosecs", 0, 999_999_999)):
        value = offset.get(key, 0)
        if not isinstance(value, int) or not least <= value <= most:
            raise SpecFault(f"linux.timeOffsets.{clock}.{key}", f"{value!r} is not a number from {least} to {most}")


def _check_net_devices(devices: dict[str, Any], namespaces: set[str]) -> None:
    if devices and "network" not in namespaces:
        raise SpecFault("linux.netDevices", "needs a network namespace in linux.namespaces")
    seen: set[str] = set()
    for name, entry in devices.items():
        inside = (entry or {}).get("name") or name
        for given in (name, inside):
            if not isinstance(given, str) or not _is_device_name(given):
                raise SpecFault(f"linux.netDevices.{name}", f"{given!r} is not the name of a network device")
        if inside in seen and "%d" not in inside:
            raise SpecFault(f"linux.netDevices.{name}.name", f"{inside!r} is given to two devices")
        seen.add(inside)


def _is_device_name(name: str) -> bool:
    """As dev_valid_name() of net/core/dev.c."""
    return 0 < len(name) < 16 and name not in (".", "..") and not any(one.isspace() or one in "/:" for one in name)


def _check_seccomp(seccomp: dict[str, Any]) -> None:
    if not seccomp:
        return
    if not isinstance(seccomp.get("defaultAction"), str):
        raise SpecFault("linux.seccomp.defaultAction", "is required")
    if seccomp.get("listenerMetadata") and not seccomp.get("listenerPath"):
        raise SpecFault("linux.seccomp.listenerMetadata", "is for a listener: it needs listenerPath")
    for index, rule in enumerate(seccomp.get("syscalls") or []):
        if not rule.get("names"):
            raise SpecFault(f"linux.seccomp.syscalls[{index}].names", "must hold at least one name")


_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id",
        "shmall", "shmmax", "shmmni", "shm_rmid_forced", "shm_next_id",
    )
)  # fmt: skip
_SYSCTL_NAMESPACE: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.startswith("net."), "network"),
    (lambda key: key.startswith("fs.mqueue."), "ipc"),
    (lambda key: key in _IPC_SYSCTLS, "ipc"),
    (lambda key: key in ("kernel.hostname", "kernel.domainname"), "uts"),
    (lambda key: key.startswith("user.max_"), "user"),
)


def sysctl_namespace(key: str) -> str | None:
    """The OCI type of the namespace that a sysctl belongs to; None for one of the whole machine (namespaces(7))."""
    # Where the first separator is a slash, dots are part of names (sysctl(8)): net/ipv4/conf/eth0.1/forwarding.
    first = next((character for character in key if character in "./"), "")
    dotted = key.replace("/", "\0").replace(".", "/").replace("\0", ".") if first == "/" else key
    for matches, namespace in _SYSCTL_NAMESPACE:
        if matches(dotted):
            return namespace
    return None


def _check_sysctl(key: str, namespaces: set[str]) -> None:
    """A sysctl of the whole machine is refused: one container must not set it for all."""
    if ".." in key or "/.." in key or "\0" in key:
        raise SpecFault(f"linux.sysctl.{key}", "is not the name of a sysctl")
    namespace = sysctl_namespace(key)
    if namespace is None:
        raise SpecFault(f"linux.sysctl.{key}", "belongs to the whole machine, not to a namespace")
    if namespace not in namespaces:
        raise SpecFault(f"linux.sysctl.{key}", f"needs a {namespace} namespace of the container's own")
