"""The service spec: its shape. What its values may be together, ``service_rules`` says.

A class whose field has the same name in Docker's JSON is called …Fields.

Source: Engine API 1.52, ServiceSpec and TaskSpec. Durations are nanoseconds, memory bytes, CPUs 1e-9 of a processor.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from covey.engine_api.types.base import Int64, ListOf, Model, Natural, Port, StringMap


class HealthcheckFields(Model, frozen=True, kw_only=True):
    """``Test``: [] inherits, ["NONE"] disables, ["CMD", …] or ["CMD-SHELL", line] runs. 0 inherits a duration."""

    Test: ListOf[str]
    Interval: Int64 | None = None
    Timeout: Int64 | None = None
    Retries: Int64 | None = None
    StartPeriod: Int64 | None = None
    StartInterval: Int64 | None = None


class BindOptionsFields(Model, frozen=True, kw_only=True):
    Propagation: str | None = None
    NonRecursive: bool | None = None
    CreateMountpoint: bool | None = None
    ReadOnlyNonRecursive: bool | None = None
    ReadOnlyForceRecursive: bool | None = None


class DriverConfigFields(Model, frozen=True, kw_only=True):
    Name: str | None = None
    Options: StringMap


class VolumeOptionsFields(Model, frozen=True, kw_only=True):
    NoCopy: bool | None = None
    Labels: StringMap
    DriverConfig: DriverConfigFields | None = None
    Subpath: str | None = None


class TmpfsOptionsFields(Model, frozen=True, kw_only=True):
    SizeBytes: Natural | None = None
    Mode: Natural | None = None
    Options: list[list[str]] | None = None


class Mount(Model, frozen=True, kw_only=True):
    """A mount of a service or of ``HostConfig.Mounts``."""

    Type: str | None = None
    Source: str | None = None
    Target: str | None = None
    ReadOnly: bool | None = None
    Consistency: str | None = None
    BindOptions: BindOptionsFields | None = None
    VolumeOptions: VolumeOptionsFields | None = None
    TmpfsOptions: TmpfsOptionsFields | None = None


class FileTarget(Model, frozen=True, kw_only=True):
    """Where a secret or config appears: a name under /run/secrets, or a path; ``Mode`` as in stat."""

    Name: str | None = None
    UID: str | None = None
    GID: str | None = None
    Mode: Natural | None = None


class SecretReference(Model, frozen=True, kw_only=True):
    File: FileTarget | None = None
    SecretID: str | None = None
    SecretName: str | None = None


class ConfigReference(Model, frozen=True, kw_only=True):
    File: FileTarget | None = None
    Runtime: dict[str, Any] | None = None
    ConfigID: str | None = None
    ConfigName: str | None = None


class DNSConfigFields(Model, frozen=True, kw_only=True):
    Nameservers: ListOf[str]
    Search: ListOf[str]
    Options: ListOf[str]


class Ulimit(Model, frozen=True, kw_only=True):
    """Soft and hard limit of one resource; -1 is unlimited."""

    Name: str
    Soft: Int64 = 0
    Hard: Int64 = 0


class ContainerSpecFields(Model, frozen=True, kw_only=True):
    """The container of each task."""

    Image: str | None = None
    Labels: StringMap
    Command: ListOf[str]
    Args: ListOf[str]
    Hostname: str | None = None
    Env: ListOf[str]
    Dir: str | None = None
    User: str | None = None
    Groups: ListOf[str]
    Privileges: dict[str, Any] | None = None
    TTY: bool | None = None
    OpenStdin: bool | None = None
    ReadOnly: bool | None = None
    Mounts: ListOf[Mount]
    StopSignal: str | None = None
    StopGracePeriod: Int64 | None = None
    Healthcheck: HealthcheckFields | None = None
    Hosts: ListOf[str]
    DNSConfig: DNSConfigFields | None = None
    Secrets: ListOf[SecretReference]
    Configs: ListOf[ConfigReference]
    Isolation: str | None = None
    Init: bool | None = None
    Sysctls: StringMap
    CapabilityAdd: ListOf[str]
    CapabilityDrop: ListOf[str]
    Ulimits: ListOf[Ulimit]
    OomScoreAdj: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None


class Limit(Model, frozen=True, kw_only=True):
    NanoCPUs: Int64 | None = None
    MemoryBytes: Int64 | None = None
    Pids: Int64 | None = None


class Reservation(Model, frozen=True, kw_only=True):
    NanoCPUs: Int64 | None = None
    MemoryBytes: Int64 | None = None
    GenericResources: ListOf[dict[str, Any]]


class ResourcesFields(Model, frozen=True, kw_only=True):
    Limits: Limit | None = None
    Reservations: Reservation | None = None
    SwapBytes: Int64 | None = None
    MemorySwappiness: Annotated[int, msgspec.Meta(ge=-1, le=100)] | None = None


class RestartPolicyFields(Model, frozen=True, kw_only=True):
    """``MaxAttempts`` 0 is no limit; ``Window`` 0 is unbounded. The last two are ours: docs/updates.md."""

    Condition: str | None = None
    Delay: Int64 | None = None
    MaxAttempts: Natural | None = None
    Window: Int64 | None = None
    BackoffLimit: Int64 | None = None
    BackoffReset: Int64 | None = None


class SpreadFields(Model, frozen=True, kw_only=True):
    SpreadDescriptor: str = ""


class Preference(Model, frozen=True, kw_only=True):
    Spread: SpreadFields | None = None


class Platform(Model, frozen=True, kw_only=True):
    Architecture: str | None = None
    OS: str | None = None


class PlacementFields(Model, frozen=True, kw_only=True):
    Constraints: ListOf[str]
    Preferences: ListOf[Preference]
    MaxReplicas: Natural | None = None
    Platforms: ListOf[Platform]


class NetworkAttachment(Model, frozen=True, kw_only=True):
    """``Target`` is a network's id or name."""

    Target: str | None = None
    Aliases: ListOf[str]
    DriverOpts: StringMap


class TaskSpec(Model, frozen=True, kw_only=True):
    """What every task of the service is."""

    ContainerSpec: ContainerSpecFields | None = None
    PluginSpec: dict[str, Any] | None = None
    NetworkAttachmentSpec: dict[str, Any] | None = None
    Resources: ResourcesFields | None = None
    RestartPolicy: RestartPolicyFields | None = None
    Placement: PlacementFields | None = None
    Networks: ListOf[NetworkAttachment]
    LogDriver: DriverConfigFields | None = None
    ForceUpdate: Natural | None = None
    Runtime: str | None = None


class ReplicatedFields(Model, frozen=True, kw_only=True):
    """``Replicas`` absent is 1."""

    Replicas: int | None = None


class ReplicatedJobFields(Model, frozen=True, kw_only=True):
    MaxConcurrent: int | None = None
    TotalCompletions: int | None = None


class ServiceMode(Model, frozen=True, kw_only=True):
    """Exactly one of these."""

    Replicated: ReplicatedFields | None = None
    Global: dict[str, Any] | None = None
    ReplicatedJob: ReplicatedJobFields | None = None
    GlobalJob: dict[str, Any] | None = None


class UpdateConfigFields(Model, frozen=True, kw_only=True):
    """How an update or rollback proceeds; ``Parallelism`` 0 is all at once."""

    Parallelism: Natural | None = None
    Delay: Int64 | None = None
    FailureAction: str | None = None
    Monitor: Int64 | None = None
    MaxFailureRatio: float | None = None
    Order: Literal["", "stop-first", "start-first"] | None = None


class PortConfig(Model, frozen=True, kw_only=True):
    """``PublishedPort`` absent or 0: the cluster chooses."""

    Name: str | None = None
    Protocol: Literal["", "tcp", "udp", "sctp"] | None = None
    TargetPort: Port | None = None
    PublishedPort: Port | None = None
    PublishMode: Literal["", "ingress", "host"] | None = None


class EndpointSpecFields(Model, frozen=True, kw_only=True):
    Mode: Literal["", "vip", "dnsrr"] | None = None
    Ports: ListOf[PortConfig]


class ServiceSpec(Model, frozen=True, kw_only=True):
    """What the user asked for."""

    Name: str | None = None
    Labels: StringMap
    TaskTemplate: TaskSpec
    Mode: ServiceMode | None = None
    UpdateConfig: UpdateConfigFields | None = None
    RollbackConfig: UpdateConfigFields | None = None
    Networks: ListOf[NetworkAttachment]
    EndpointSpec: EndpointSpecFields | None = None
