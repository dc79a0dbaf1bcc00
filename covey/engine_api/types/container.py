"""Containers and execs: request objects and their rules.

What a node can do of it (limits its kernel knows, ports that are free) is the worker's to check. Source: Engine API
1.52, ContainerConfig, HostConfig, NetworkingConfig, exec and update requests. Words: dockerd's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from covey.engine_api.types import rules
from covey.engine_api.types.base import Int64, ListOf, MapOf, Model, StringMap, refuse, validate
from covey.engine_api.types.service import HealthcheckFields, Mount, Ulimit
from covey.errors import InvalidArgument

MINIMUM_MEMORY = 6 * 1024 * 1024
RESTART_POLICIES = ("", "no", "always", "on-failure", "unless-stopped")
PORT_KEY = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
HOST_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class PortBinding(Model, frozen=True, kw_only=True):
    """``HostPort`` is text: empty (the daemon chooses), a port, or a range ``8000-8010`` to choose from."""

    HostIp: str | None = None
    HostPort: str | None = None


class RestartPolicyFields(Model, frozen=True, kw_only=True):
    Name: str | None = None
    MaximumRetryCount: Int64 | None = None


class LogConfigFields(Model, frozen=True, kw_only=True):
    Type: str | None = None
    Config: StringMap


class DeviceMapping(Model, frozen=True, kw_only=True):
    PathOnHost: str
    PathInContainer: str | None = None
    CgroupPermissions: str | None = None


class ContainerLimits(Model, frozen=True, kw_only=True):
    """Part of HostConfig that ``/containers/{id}/update`` may change too. 0 is unset; -1 unlimited where that exists."""

    CpuShares: Int64 | None = None
    Memory: Int64 | None = None
    MemoryReservation: Int64 | None = None
    MemorySwap: Int64 | None = None
    MemorySwappiness: Int64 | None = None
    NanoCpus: Int64 | None = None
    CpuPeriod: Int64 | None = None
    CpuQuota: Int64 | None = None
    CpusetCpus: str | None = None
    CpusetMems: str | None = None
    PidsLimit: Int64 | None = None
    BlkioWeight: Int64 | None = None
    OomKillDisable: bool | None = None
    Ulimits: ListOf[Ulimit]
    RestartPolicy: RestartPolicyFields | None = None


class HostConfigFields(ContainerLimits, frozen=True, kw_only=True):
    """What depends on the host."""

    Binds: ListOf[str]
    Mounts: ListOf[Mount]
    Tmpfs: StringMap
    VolumesFrom: ListOf[str]
    VolumeDriver: str | None = None
    LogConfig: LogConfigFields | None = None
    NetworkMode: str | None = None
    PortBindings: MapOf[list[PortBinding] | None]
    PublishAllPorts: bool | None = None
    AutoRemove: bool | None = None
    CapAdd: ListOf[str]
    CapDrop: ListOf[str]
    Privileged: bool | None = None
    ReadonlyRootfs: bool | None = None
    SecurityOpt: ListOf[str]
    Devices: ListOf[DeviceMapping]
    Dns: ListOf[str]
    DnsOptions: ListOf[str]
    DnsSearch: ListOf[str]
    ExtraHosts: ListOf[str]
    GroupAdd: ListOf[str]
    Links: ListOf[str]
    IpcMode: str | None = None
    PidMode: str | None = None
    UTSMode: str | None = None
    UsernsMode: str | None = None
    CgroupnsMode: str | None = None
    Cgroup: str | None = None
    CgroupParent: str | None = None
    Runtime: str | None = None
    Isolation: str | None = None
    Init: bool | None = None
    ShmSize: Int64 | None = None
    StorageOpt: StringMap
    Sysctls: StringMap
    OomScoreAdj: Int64 | None = None
    ContainerIDFile: str | None = None
    MaskedPaths: list[str] | None = None
    ReadonlyPaths: list[str] | None = None


class IPAMConfigFields(Model, frozen=True, kw_only=True):
    IPv4Address: str | None = None
    IPv6Address: str | None = None
    LinkLocalIPs: ListOf[str]


class EndpointSettings(Model, frozen=True, kw_only=True):
    """How the container is attached to one network."""

    IPAMConfig: IPAMConfigFields | None = None
    Links: ListOf[str]
    Aliases: ListOf[str]
    DriverOpts: StringMap
    MacAddress: str | None = None


class NetworkingConfigFields(Model, frozen=True, kw_only=True):
    EndpointsConfig: MapOf[EndpointSettings | None]


class ContainerCreate(Model, frozen=True, kw_only=True):
    """POST /containers/create: what is portable, with ``HostConfig`` and ``NetworkingConfig`` inside."""

    Image: str | None = None
    Hostname: str | None = None
    Domainname: str | None = None
    User: str | None = None
    AttachStdin: bool | None = None
    AttachStdout: bool | None = None
    AttachStderr: bool | None = None
    ExposedPorts: MapOf[dict[str, Any] | None]
    Tty: bool | None = None
    OpenStdin: bool | None = None
    StdinOnce: bool | None = None
    Env: ListOf[str]
    Cmd: list[str] | str | None = None
    Entrypoint: list[str] | str | None = None
    Healthcheck: HealthcheckFields | None = None
    Volumes: MapOf[dict[str, Any] | None]
    WorkingDir: str | None = None
    NetworkDisabled: bool | None = None
    Labels: StringMap
    StopSignal: str | None = None
    StopTimeout: Int64 | None = None
    Shell: ListOf[str]
    HostConfig: HostConfigFields | None = None
    NetworkingConfig: NetworkingConfigFields | None = None


class ExecCreate(Model, frozen=True, kw_only=True):
    """POST /containers/{id}/exec."""

    AttachStdin: bool | None = None
    AttachStdout: bool | None = None
    AttachStderr: bool | None = None
    DetachKeys: str | None = None
    Tty: bool | None = None
    ConsoleSize: list[int] | None = None
    Env: ListOf[str]
    Cmd: ListOf[str]
    Privileged: bool | None = None
    User: str | None = None
    WorkingDir: str | None = None


class ExecStart(Model, frozen=True, kw_only=True):
    """POST /exec/{id}/start."""

    Detach: bool | None = None
    Tty: bool | None = None
    ConsoleSize: list[int] | None = None


def check_container_name(name: str) -> str:
    """The name without Docker's optional leading slash. Raises InvalidArgument."""
    bare = name.removeprefix("/")
    if not rules.RESTRICTED_NAME.fullmatch(bare):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


def _in_range(first: str, last: str | None) -> bool:
    low, high = int(first), int(last or first)
    return 1 <= low <= high <= 65535


def _check_ports(container: ContainerCreate, host: HostConfigFields) -> None:
    for field, keys in (("ExposedPorts", container.ExposedPorts), ("HostConfig.PortBindings", host.PortBindings)):
        for key in keys:
            match = PORT_KEY.fullmatch(key)
            if not match or not _in_range(match[1], match[2]):
                raise refuse(field, f'invalid port specification: "{key}": use a form like 80/tcp')
    for key, bindings in host.PortBindings.items():
        for binding in bindings or []:
            match = HOST_PORT.fullmatch(binding.HostPort or "")
            wrong = binding.HostPort and binding.HostPort != "0" and not (match and _in_range(match[1], match[2]))
            if wrong:
                raise refuse(f"HostConfig.PortBindings[{key}]", f'invalid port specification: "{binding.HostPort}"')


def _check_restart(field: str, policy: RestartPolicyFields | None) -> None:
    if policy is None:
        return
    if (policy.Name or "") not in RESTART_POLICIES:
        raise refuse(
            f"{field}.Name",
            f"invalid restart policy: unknown policy '{policy.Name}'; use one of 'no', 'always', 'on-failure', "
            "or 'unless-stopped'",
        )
    retries = policy.MaximumRetryCount or 0
    if retries < 0:
        raise refuse(f"{field}.MaximumRetryCount", "invalid restart policy: maximum retry count cannot be negative")
    if retries and policy.Name != "on-failure":
        raise refuse(
            f"{field}.MaximumRetryCount",
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        )


def check_limits(limits: ContainerLimits, prefix: str = "HostConfig.") -> None:
    """Limits that can never be. Raises InvalidArgument."""
    memory = limits.Memory or 0
    if memory and memory < MINIMUM_MEMORY:
        raise refuse(f"{prefix}Memory", "Minimum memory limit allowed is 6MB")
    swap = limits.MemorySwap or 0
    if swap < -1 or (swap > 0 and swap < memory):
        raise refuse(f"{prefix}MemorySwap", "Minimum memoryswap limit should be larger than memory limit, see usage")
    if (limits.NanoCpus or 0) < 0:
        raise refuse(f"{prefix}NanoCpus", f"invalid cpu value {(limits.NanoCpus or 0) / 1e9:g}: must be positive")
    if limits.NanoCpus and (limits.CpuQuota or limits.CpuPeriod):
        other = "CPU Quota" if limits.CpuQuota else "CPU Period"
        raise refuse(f"{prefix}NanoCpus", f"Conflicting options: Nano CPUs and {other} cannot both be set")
    if (limits.PidsLimit or 0) < -1:
        raise refuse(f"{prefix}PidsLimit", "Invalid pids limit: use a positive number, or -1 for unlimited")
    _check_restart(f"{prefix}RestartPolicy", limits.RestartPolicy)


def validate_container_create(raw: Mapping[str, Any]) -> ContainerCreate:
    """The request, if it can be; ``stored()`` of it is what to keep. Raises InvalidArgument that names the field."""
    container = validate(ContainerCreate, raw)
    if not container.Image:
        raise refuse("Image", "no image specified: give the name or id of an image")
    rules.check_environment("Env", container.Env)
    rules.check_healthcheck("Healthcheck", container.Healthcheck)
    if container.WorkingDir and not container.WorkingDir.startswith("/"):
        raise refuse(
            "WorkingDir",
            f"the working directory '{container.WorkingDir}' is invalid, it needs to be an absolute path",
        )
    host = container.HostConfig or validate(HostConfigFields, {})
    check_limits(host)
    rules.check_mounts("HostConfig.Mounts", host.Mounts, default_type="")
    _check_ports(container, host)
    restart = host.RestartPolicy.Name if host.RestartPolicy else ""
    if host.AutoRemove and restart not in (None, "", "no"):
        raise refuse("HostConfig.AutoRemove", "can't create 'AutoRemove' container with restart policy")
    return container


def validate_exec_create(raw: Mapping[str, Any]) -> ExecCreate:
    """An exec with a command to run."""
    request = validate(ExecCreate, raw)
    if not request.Cmd:
        raise refuse("Cmd", "No exec command specified")
    rules.check_environment("Env", request.Env)
    return request
