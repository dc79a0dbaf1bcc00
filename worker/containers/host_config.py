"""Checks and completes a HostConfig: what Docker refuses, in its words, and the defaults its inspect shows. Pure.

It must not know the machine beyond its number of CPUs and memory, which are given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from covey.errors import InvalidArgument
from worker.containers import defaults, limits, log_options, runtimes

MEMORY_MINIMUM = 6 * 1024 * 1024
POLICIES = ("no", "always", "on-failure", "unless-stopped")
RLIMIT_NAMES = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
        *("rtprio", "rttime", "sigpending", "stack"),
    )
)

#: What inspect shows of a field the client left out.
TEMPLATE: Mapping[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "json-file", "Config": {}}, "NetworkMode": "default",
    "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": False, "VolumeDriver": "",
    "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": None, "CapDrop": None, "CgroupnsMode": "private", "Dns": [],
    "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None, "GroupAdd": None, "IpcMode": "private", "Cgroup": "",
    "Links": None, "OomScoreAdj": 0, "PidMode": "", "Privileged": False, "PublishAllPorts": False,
    "ReadonlyRootfs": False, "SecurityOpt": None, "UTSMode": "", "UsernsMode": "", "ShmSize": defaults.SHM_BYTES,
    "Runtime": "", "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0,
    "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [], "BlkioDeviceReadIOps": [],
    "BlkioDeviceWriteIOps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0,
    "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": None, "DeviceRequests": None,
    "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": None, "OomKillDisable": None, "PidsLimit": None,
    "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
}  # fmt: skip


_DEVICE_LIMITS = "limits of single block devices are not supported by this release: leave it out"

#: Fields this release cannot honour: refused by name, never dropped in silence.
UNSUPPORTED: Mapping[str, str] = {
    "Links": "links between containers are not supported: put both on a network of their own (docker network create)",
    "StorageOpt": "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
    "DeviceRequests": "could not select device driver: device requests (--gpus) are not supported by this release",
    "BlkioWeightDevice": _DEVICE_LIMITS,
    "BlkioDeviceReadBps": _DEVICE_LIMITS,
    "BlkioDeviceWriteBps": _DEVICE_LIMITS,
    "BlkioDeviceReadIOps": _DEVICE_LIMITS,
    "BlkioDeviceWriteIOps": _DEVICE_LIMITS,
    "CpuCount": "it is for Windows containers",
    "CpuPercent": "it is for Windows containers",
    "IOMaximumIOps": "it is for Windows containers",
    "IOMaximumBandwidth": "it is for Windows containers",
}


def _refuse_unsupported(given: Mapping[str, Any]) -> None:
    for field, words in UNSUPPORTED.items():
        if given.get(field):
            raise InvalidArgument(f"HostConfig.{field}: {words}")
    if given.get("VolumeDriver") not in (None, "", "local"):
        raise InvalidArgument(f"HostConfig.VolumeDriver: {given['VolumeDriver']!r} is not there: this node has only local")
    if given.get("Isolation") not in (None, "", "default"):
        raise InvalidArgument(f"HostConfig.Isolation: {given['Isolation']!r} is not supported on linux")


def completed(
    given: Mapping[str, Any], cpus: int, added: Collection[str] = (), default_runtime: str = runtimes.OWN
) -> dict[str, Any]:
    """``given`` with Docker's defaults; ``added``: runtimes beside ours. Raises InvalidArgument for what can never be."""
    _refuse_unsupported(given)
    host = {**TEMPLATE, **{key: value for key, value in given.items() if value is not None or key not in TEMPLATE}}
    for check in (_memory, _restart, _logging, _security, _namespaces, _ulimits):
        check(host)
    _cpu(host, cpus)
    host["Runtime"] = runtimes.chosen(host["Runtime"] or "", added, default_runtime)
    if not host["ShmSize"]:
        host["ShmSize"] = defaults.SHM_BYTES
    if host["ShmSize"] < 0:
        raise InvalidArgument("SHM size can not be less than 0")
    if not host["NetworkMode"]:
        host["NetworkMode"] = "default"
    masked, readonly = given.get("MaskedPaths"), given.get("ReadonlyPaths")
    host["MaskedPaths"], host["ReadonlyPaths"] = masked, readonly
    if masked is None and not host["Privileged"]:
        host["MaskedPaths"] = list(defaults.MASKED_PATHS) + [defaults.MASKED_CPU_PATH.format(n) for n in range(cpus)]
    if readonly is None and not host["Privileged"]:
        host["ReadonlyPaths"] = list(defaults.READONLY_PATHS)
    return host


def _memory(host: dict[str, Any]) -> None:
    memory, swap = host["Memory"] or 0, host["MemorySwap"] or 0
    if memory < 0 or 0 < memory < MEMORY_MINIMUM:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if swap > 0 and not memory:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    if memory and swap > 0 and swap < memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if memory and host["MemoryReservation"] and memory < host["MemoryReservation"]:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")
    if memory and not swap:
        host["MemorySwap"] = memory * 2
    swappiness = host["MemorySwappiness"]
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if not -1000 <= (host["OomScoreAdj"] or 0) <= 1000:
        raise InvalidArgument(f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]")


def _cpu(host: dict[str, Any], cpus: int) -> None:
    nano = host["NanoCpus"] or 0
    if nano and (host["CpuPeriod"] or host["CpuQuota"]):
        which = "Period" if host["CpuPeriod"] else "Quota"
        raise InvalidArgument(f"Conflicting options: Nano CPUs and CPU {which} cannot both be set.")
    if nano < 0 or nano > cpus * 1_000_000_000:
        raise InvalidArgument(f"range of CPUs is from 0.01 to {cpus:.2f}, as there are only {cpus} CPUs available")
    if host["CpuPeriod"] and not 1000 <= host["CpuPeriod"] <= 1_000_000:
        raise InvalidArgument("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < (host["CpuQuota"] or 0) < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (host["CpuShares"] or 0) < 0:
        raise InvalidArgument(f"invalid CPU shares ({host['CpuShares']}): value must be a positive integer")
    wanted = host["CpusetCpus"] or ""
    if max(cpu_list(wanted), default=0) >= cpus:
        available = f"0-{cpus - 1}" if cpus > 1 else "0"
        raise InvalidArgument(f"Requested CPUs are not available - requested {wanted}, available: {available}")


def cpu_list(text: str) -> set[int]:
    """The numbers of ``0-2,4``. Raises InvalidArgument in Docker's words."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first) or int(last or first) > 8191:
            raise InvalidArgument(f"Invalid value {text} for cpuset cpus")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def restart_policy(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A checked RestartPolicy; an empty name is "no"."""
    name = str((given or {}).get("Name") or "no")
    count = int((given or {}).get("MaximumRetryCount") or 0)
    if name not in POLICIES:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if count < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    if count and name != "on-failure":
        raise InvalidArgument("invalid restart policy: maximum retry count can only be used with 'on-failure'")
    return {"Name": name, "MaximumRetryCount": count}


def _restart(host: dict[str, Any]) -> None:
    host["RestartPolicy"] = restart_policy(host["RestartPolicy"])
    if host["AutoRemove"] and host["RestartPolicy"]["Name"] != "no":
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")


def _logging(host: dict[str, Any]) -> None:
    host["LogConfig"] = log_options.check(host["LogConfig"])


def _security(host: dict[str, Any]) -> None:
    limits.capabilities(host)
    for option in host["SecurityOpt"] or []:
        key = option.replace(":", "=", 1).partition("=")[0]
        if key not in ("no-new-privileges", "seccomp", "apparmor", "label", "systempaths", "writable-cgroups"):
            raise InvalidArgument(f"invalid --security-opt 2: {option!r}")
    if host["UsernsMode"] not in ("", "host", "private"):
        raise InvalidArgument(f"invalid user namespace mode: {host['UsernsMode']}: use host, or private for one of its own")
    limits.device_rules(host, [])


_MODES = {
    "PidMode": ("", "host"),
    "UTSMode": ("", "host"),
    "IpcMode": ("", "none", "private", "shareable", "host"),
    "CgroupnsMode": ("", "private", "host"),
}
_MODE_NAMES = {"PidMode": "PID", "UTSMode": "UTS", "IpcMode": "IPC", "CgroupnsMode": "cgroup namespace"}


def _namespaces(host: dict[str, Any]) -> None:
    for field, allowed in _MODES.items():
        mode = host[field] or ""
        joined = field in ("PidMode", "IpcMode") and mode.startswith("container:") and len(mode) > 10
        if mode not in allowed and not joined:
            raise InvalidArgument(f"invalid {_MODE_NAMES[field]} mode: {mode}")
    host["IpcMode"] = host["IpcMode"] or "private"
    host["CgroupnsMode"] = host["CgroupnsMode"] or "private"


def _ulimits(host: dict[str, Any]) -> None:
    for one in host["Ulimits"] or []:
        name, soft, hard = one.get("Name"), one.get("Soft") or 0, one.get("Hard") or 0
        if name not in RLIMIT_NAMES:
            raise InvalidArgument(f"invalid ulimit type: {name}")
        if hard != -1 and (soft == -1 or soft > hard):
            raise InvalidArgument(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
