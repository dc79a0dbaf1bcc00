"""A frozen typed view of the fields of a service's spec that decisions read, with Docker's defaults filled in.

The spec itself is the JSON object as received and is never written back from here. A view is only made of specs that
passed the door (covey.engine_api.types), so nothing is refused here. Durations are seconds; Docker's are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from covey.model.cron import Cron, parse_cron
from covey.model.dependencies import Dependency, parse_dependencies
from covey.model.filters import Constraint, parse_constraints
from covey.model.objects import PortConfig
from covey.model.resources import NANO, Resources, read_resources

STRATEGIES = ("binpack", "spread", "pack")

#: The label by which clients that cannot send Placement.Strategy choose one.
STRATEGY_LABEL = "covey.placement.strategy"


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a slot is filled again: none, on-failure or any; ``max_attempts`` 0 is without end, ``window`` 0 all time."""

    condition: str = "any"
    delay: float = 5.0
    max_attempts: int = 0
    window: float = 0.0


class UpdatePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a change of the task spec is rolled out; ``parallelism`` 0 is all at once."""

    parallelism: int = 1
    delay: float = 0.0
    failure_action: str = "pause"
    monitor: float = 5.0
    max_failure_ratio: float = 0.0
    order: str = "stop-first"


class PlacementPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where tasks may go. ``spread`` are the descriptors of spread preferences; ``platforms`` are (os, architecture)."""

    constraints: tuple[Constraint, ...] = ()
    spread: tuple[str, ...] = ()
    max_replicas: int = 0
    platforms: tuple[tuple[str, str], ...] = ()
    strategy: str = ""


class NetworkAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """A network a task joins: ``target`` is an id or a name."""

    target: str
    aliases: tuple[str, ...] = ()


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What decisions read of a TaskTemplate."""

    image: str = ""
    reservations: Resources = Resources()
    limits: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    placement: PlacementPolicy = PlacementPolicy()
    networks: tuple[NetworkAttachment, ...] = ()
    stop_grace: float = 10.0
    force_update: int = 0


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
    depends_on: tuple[Dependency, ...] = ()
    cron: Cron | None = None

    @property
    def is_job(self) -> bool:
        """Whether its tasks run to their end, once."""
        return self.mode.endswith("-job")


def _seconds(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    return default if value is None else int(value) / NANO


def read_restart(raw: Mapping[str, Any] | None) -> RestartPolicy:
    """The restart policy of a TaskTemplate's ``RestartPolicy``."""
    raw = raw or {}
    return RestartPolicy(
        condition=raw.get("Condition") or "any",
        delay=_seconds(raw, "Delay", 5.0),
        max_attempts=int(raw.get("MaxAttempts") or 0),
        window=_seconds(raw, "Window", 0.0),
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
    """The placement policy of a ``Placement``; ``labels`` are the service's, which may name a strategy."""
    raw = raw or {}
    spread = [entry.get("Spread") or {} for entry in raw.get("Preferences") or ()]
    return PlacementPolicy(
        constraints=parse_constraints(raw.get("Constraints") or ()),
        spread=tuple(str(entry["SpreadDescriptor"]) for entry in spread if entry.get("SpreadDescriptor")),
        max_replicas=int(raw.get("MaxReplicas") or 0),
        platforms=tuple((str(p.get("OS") or ""), str(p.get("Architecture") or "")) for p in raw.get("Platforms") or ()),
        strategy=str(raw.get("Strategy") or labels.get(STRATEGY_LABEL, "")),
    )


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
        restart=read_restart(template.get("RestartPolicy")),
        placement=read_placement(template.get("Placement"), labels or {}),
        networks=tuple(
            NetworkAttachment(target=str(entry.get("Target") or ""), aliases=tuple(entry.get("Aliases") or ()))
            for entry in template.get("Networks") or ()
        ),
        stop_grace=_seconds(container, "StopGracePeriod", 10.0),
        force_update=int(template.get("ForceUpdate") or 0),
    )


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
        depends_on=parse_dependencies(raw),
        cron=parse_cron(raw),
    )
