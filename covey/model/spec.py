"""A frozen typed view of the fields of a service's spec that decisions read, with Docker's defaults filled in.

The spec itself is the JSON object as received and is never written back from here. A view is only made of specs that
passed the door (covey.engine_api.types), so nothing is refused here. Durations are seconds; Docker's are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from covey.model import durations
from covey.model.affinity import Affinity, read_affinities
from covey.model.cron import Cron, parse_cron
from covey.model.dependencies import Dependency, parse_dependencies
from covey.model.filters import Constraint, parse_constraints
from covey.model.objects import PortConfig
from covey.model.resources import NANO, Resources, read_resources

STRATEGIES = ("binpack", "spread", "pack", "pack-small")

#: The labels for clients that cannot send Placement.Strategy, Placement.Priority and Placement.Group.
STRATEGY_LABEL = "covey.placement.strategy"
PRIORITY_LABEL = "covey.placement.priority"
GROUP_LABEL = "covey.placement.group"

HIGHEST_PRIORITY = 1000
LONGEST_GROUP = 128

#: The label of a service that is stopped: ``true`` keeps its tasks from running, its replica count stays as it is.
STOPPED_LABEL = "covey.stopped"

#: The labels by which clients that cannot send RestartPolicy.BackoffLimit and BackoffReset choose them, as ``5m``.
BACKOFF_LIMIT_LABEL = "covey.restart.backoff-limit"
BACKOFF_RESET_LABEL = "covey.restart.backoff-reset"


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a slot is filled again: none, on-failure or any; ``max_attempts`` 0 is without end, ``window`` 0 all time.

    ``delay`` grows up to ``backoff_limit`` for a slot whose tasks keep crashing, 0 is never; a task that ran for
    ``backoff_reset`` did not crash. None: as the settings say, and no back-off at all if the delay was asked for
    (``fixed_delay``).
    """

    condition: str = "any"
    delay: float = 5.0
    max_attempts: int = 0
    window: float = 0.0
    fixed_delay: bool = False
    backoff_limit: float | None = None
    backoff_reset: float | None = None


class UpdatePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a change of the task spec is rolled out; ``parallelism`` 0 is all at once."""

    parallelism: int = 1
    delay: float = 0.0
    failure_action: str = "pause"
    monitor: float = 5.0
    max_failure_ratio: float = 0.0
    order: str = "stop-first"


class PlacementPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where tasks may go. ``spread`` are the descriptors of spread preferences; ``platforms`` are (os, architecture).

    Tasks of a higher ``priority`` are placed first, and if need be in the place of lower ones. Those of services of one
    ``group`` are placed together or not at all.
    """

    constraints: tuple[Constraint, ...] = ()
    spread: tuple[str, ...] = ()
    max_replicas: int = 0
    platforms: tuple[tuple[str, str], ...] = ()
    strategy: str = ""
    affinities: tuple[Affinity, ...] = ()
    priority: int = 0
    group: str = ""


class NetworkAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """A network a task joins: ``target`` is an id or a name."""

    target: str
    aliases: tuple[str, ...] = ()


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What decisions read of a TaskTemplate. ``plugins`` (type, name) are those a node must have: volume and log drivers."""

    image: str = ""
    reservations: Resources = Resources()
    limits: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    networks: tuple[NetworkAttachment, ...] = ()
    stop_grace: float = 10.0
    force_update: int = 0
    plugins: tuple[tuple[str, str], ...] = ()
    cluster_volumes: bool = False


class ServiceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What decisions read of a service's spec. ``mode`` is replicated, global, replicated-job or global-job.

    ``replicas`` of a replicated job are the completions it wants, ``max_concurrent`` of them at a time.
    """

    name: str = ""
    labels: dict[str, str] = {}
    mode: str = "replicated"
    replicas: int = 1
    max_concurrent: int = 0
    task: TaskSpec = TaskSpec()
    update: UpdatePolicy = UpdatePolicy()
    rollback: UpdatePolicy = UpdatePolicy()
    ports: tuple[PortConfig, ...] = ()
    endpoint_mode: str = "vip"
    stopped: bool = False
    depends_on: tuple[Dependency, ...] = ()
    cron: Cron | None = None

    @property
    def is_job(self) -> bool:
        """Whether its tasks run to their end, once."""
        return self.mode.endswith("-job")


def _seconds(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    return default if value is None else int(value) / NANO


def _label_seconds(raw: Mapping[str, Any], key: str, labels: Mapping[str, str], label: str) -> float | None:
    """What the extension field ``key`` says, or else the label; the door has refused labels that say nothing."""
    if raw.get(key) is not None:
        return int(raw[key]) / NANO
    try:
        return durations.seconds(labels[label]) if label in labels else None
    except ValueError:
        return None


def read_restart(raw: Mapping[str, Any] | None, labels: Mapping[str, str] | None = None) -> RestartPolicy:
    """The restart policy of a TaskTemplate's ``RestartPolicy``; ``labels`` are the service's."""
    raw, labels = raw or {}, labels or {}
    return RestartPolicy(
        condition=raw.get("Condition") or "any",
        delay=_seconds(raw, "Delay", 5.0),
        max_attempts=int(raw.get("MaxAttempts") or 0),
        window=_seconds(raw, "Window", 0.0),
        fixed_delay=raw.get("Delay") is not None,
        backoff_limit=_label_seconds(raw, "BackoffLimit", labels, BACKOFF_LIMIT_LABEL),
        backoff_reset=_label_seconds(raw, "BackoffReset", labels, BACKOFF_RESET_LABEL),
    )


def read_update(raw: Mapping[str, Any] | None) -> UpdatePolicy:
    """The policy of an ``UpdateConfig`` or ``RollbackConfig``."""
    if raw is None:
        return UpdatePolicy()
    return UpdatePolicy(
        parallelism=int(raw.get("Parallelism") or 0),
        delay=_seconds(raw, "Delay", 0.0),
        failure_action=raw.get("FailureAction") or "pause",
        monitor=_seconds(raw, "Monitor", 5.0) or 5.0,
        max_failure_ratio=float(raw.get("MaxFailureRatio") or 0.0),
        order=raw.get("Order") or "stop-first",
    )


def read_placement(raw: Mapping[str, Any] | None, labels: Mapping[str, str]) -> PlacementPolicy:
    """The placement policy of a ``Placement``; ``labels`` are the service's, which may stand in for our own fields.

    ValueError names what is wrong with those (the door reads them by this too).
    """
    raw = raw or {}
    spread = [entry.get("Spread") or {} for entry in raw.get("Preferences") or ()]
    return PlacementPolicy(
        constraints=parse_constraints(raw.get("Constraints") or ()),
        spread=tuple(str(entry["SpreadDescriptor"]) for entry in spread if entry.get("SpreadDescriptor")),
        max_replicas=int(raw.get("MaxReplicas") or 0),
        platforms=tuple((str(p.get("OS") or ""), str(p.get("Architecture") or "")) for p in raw.get("Platforms") or ()),
        strategy=str(raw.get("Strategy") or labels.get(STRATEGY_LABEL, "")),
        affinities=read_affinities(raw, labels),
        priority=_priority(raw.get("Priority", labels.get(PRIORITY_LABEL, 0))),
        group=_group(raw.get("Group", labels.get(GROUP_LABEL, ""))),
    )


def _group(raw: Any) -> str:
    if not isinstance(raw or "", str) or len(raw or "") > LONGEST_GROUP:
        raise ValueError(f"Group {raw!r} is no name of at most {LONGEST_GROUP} characters")
    return raw or ""


def _priority(raw: Any) -> int:
    try:
        priority = int(raw or 0)
    except (TypeError, ValueError):
        priority = -1
    if not 0 <= priority <= HIGHEST_PRIORITY:
        raise ValueError(f"Priority {raw!r} is no whole number from 0 to {HIGHEST_PRIORITY}")
    return priority


def read_ports(raw: Mapping[str, Any] | None) -> tuple[PortConfig, ...]:
    """The ports of an ``EndpointSpec``."""
    return tuple(
        PortConfig(
            target=int(port.get("TargetPort") or 0),
            published=int(port.get("PublishedPort") or 0),
            protocol=port.get("Protocol") or "tcp",
            mode=port.get("PublishMode") or "ingress",
            name=port.get("Name") or "",
            host_ip=port.get("HostIP") or "",
        )
        for port in (raw or {}).get("Ports") or ()
    )


def read_task_spec(template: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> TaskSpec:
    """The view of a TaskTemplate; ``labels`` are those of its service."""
    container = template.get("ContainerSpec") or {}
    resources = template.get("Resources") or {}
    return TaskSpec(
        image=container.get("Image") or "",
        reservations=read_resources(resources.get("Reservations")),
        limits=read_resources(resources.get("Limits")),
        restart=read_restart(template.get("RestartPolicy"), labels),
        placement=read_placement(template.get("Placement"), labels or {}),
        networks=tuple(
            NetworkAttachment(target=str(entry.get("Target") or ""), aliases=tuple(entry.get("Aliases") or ()))
            for entry in template.get("Networks") or ()
        ),
        stop_grace=_seconds(container, "StopGracePeriod", 10.0),
        force_update=int(template.get("ForceUpdate") or 0),
        plugins=_plugins(container, template.get("LogDriver")),
        cluster_volumes=any(mount.get("Type") == "cluster" for mount in container.get("Mounts") or ()),
    )


#: Drivers that the worker has built in, whatever a node of another release says of itself.
_BUILT_IN = frozenset({"", "json-file", "local", "none"})


def _plugins(container: Mapping[str, Any], log: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Drivers named by volume mounts and by the log configuration, other than what every node has."""
    named = [
        ("Volume", str(((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Name") or ""))
        for mount in container.get("Mounts") or ()
        if mount.get("Type") == "volume"
    ]
    named.append(("Log", str((log or {}).get("Name") or "")))
    return tuple(each for each in named if each[1] not in _BUILT_IN)


def read_job(raw: Mapping[str, Any] | None) -> tuple[int, int]:
    """(completions, most at a time) of a ``ReplicatedJob``: one at a time unless said, as many in all as at a time."""
    raw = raw or {}
    most, total = raw.get("MaxConcurrent"), raw.get("TotalCompletions")
    most = 1 if most is None else int(most)
    return most if total is None else int(total), most


def _read_mode(raw: Mapping[str, Any]) -> tuple[str, int, int]:
    """Mode, replicas, most at a time."""
    if "Global" in raw:
        return "global", 0, 0
    if "GlobalJob" in raw:
        return "global-job", 0, 0
    if "ReplicatedJob" in raw:
        return "replicated-job", *read_job(raw["ReplicatedJob"])
    replicas = (raw.get("Replicated") or {}).get("Replicas")
    return "replicated", 1 if replicas is None else int(replicas), 0


def read_service_spec(raw: Mapping[str, Any]) -> ServiceSpec:
    """The view of a whole service spec."""
    labels = dict(raw.get("Labels") or {})
    mode, replicas, max_concurrent = _read_mode(raw.get("Mode") or {})
    template = dict(raw.get("TaskTemplate") or {})
    if not template.get("Networks") and raw.get("Networks"):
        template["Networks"] = raw["Networks"]  # deprecated place, still sent by old clients
    endpoint = raw.get("EndpointSpec") or {}
    return ServiceSpec(
        name=str(raw.get("Name") or ""),
        labels=labels,
        mode=mode,
        replicas=replicas,
        max_concurrent=max_concurrent,
        task=read_task_spec(template, labels),
        update=read_update(raw.get("UpdateConfig")),
        rollback=read_update(raw.get("RollbackConfig")),
        ports=read_ports(endpoint),
        endpoint_mode=endpoint.get("Mode") or "vip",
        stopped=labels.get(STOPPED_LABEL) == "true",
        depends_on=parse_dependencies(raw),
        cron=parse_cron(raw),
    )
