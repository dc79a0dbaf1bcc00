"""Whether a service spec can be: the door's check, before anything is stored.

It decides on the spec alone; what needs the store (names taken, ports of other services, networks that exist) is the
manager's. Constraint expressions are parsed by ``covey.model.filters``, handed in as a function; our own fields under Placement
are read as decisions will read them (``covey.model.spec``).
Words: SwarmKit's manager/controlapi where it has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from covey.engine_api.types import rules
from covey.engine_api.types.base import refuse, validate
from covey.engine_api.types.service import (
    ContainerSpecFields,
    EndpointSpecFields,
    FileTarget,
    PlacementFields,
    ResourcesFields,
    RestartPolicyFields,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfigFields,
)
from covey.errors import InvalidArgument
from covey.model import durations
from covey.model.spec import BACKOFF_LIMIT_LABEL, BACKOFF_RESET_LABEL, STOPPED_LABEL, STRATEGIES, read_placement

CheckConstraint = Callable[[str], object]
Reference = tuple[str | None, str | None, FileTarget | None]

RESTART_CONDITIONS = ("", "none", "on-failure", "any")
UPDATE_ACTIONS = ("", "pause", "continue", "rollback")
ROLLBACK_ACTIONS = ("", "pause", "continue")
MODES = ("Replicated", "Global", "ReplicatedJob", "GlobalJob")


def validate_service_spec(raw: Mapping[str, Any], check_constraint: CheckConstraint | None = None) -> ServiceSpec:
    """The spec, if it can be; ``stored()`` of it is what to store.

    ``check_constraint`` gets each placement constraint and raises ValueError or InvalidArgument for a bad one.
    Raises InvalidArgument that names the field.
    """
    spec = validate(ServiceSpec, raw)
    rules.check_dns_name("Name", spec.Name)
    _check_labels("Labels", spec.Labels)
    _check_our_labels(spec.Labels)
    _check_task(spec.TaskTemplate, check_constraint)
    _check_own_placement(spec.Name, spec.TaskTemplate.Placement, spec.Labels)
    _check_mode(spec.Mode)
    _check_update("UpdateConfig", "update", spec.UpdateConfig, UPDATE_ACTIONS)
    _check_update("RollbackConfig", "rollback", spec.RollbackConfig, ROLLBACK_ACTIONS)
    _check_networks("Networks", spec.Networks)
    _check_endpoint(spec.EndpointSpec)
    if spec.UpdateConfig is not None and spec.Mode is not None and _is_job(spec.Mode):
        raise refuse("UpdateConfig", "Jobs may not have an update config")
    return spec


def _is_job(mode: ServiceMode) -> bool:
    return mode.ReplicatedJob is not None or mode.GlobalJob is not None


def _check_labels(field: str, labels: Mapping[str, str]) -> None:
    if any(not name for name in labels):
        raise refuse(field, "a label's name must not be empty")


def _check_our_labels(labels: Mapping[str, str]) -> None:
    for label in (BACKOFF_LIMIT_LABEL, BACKOFF_RESET_LABEL):
        try:
            durations.seconds(labels.get(label, "0"))
        except ValueError as error:
            raise refuse(f"Labels.{label}", str(error)) from None
    if labels.get(STOPPED_LABEL, "true") not in ("true", "false"):
        raise refuse(f"Labels.{STOPPED_LABEL}", f"{labels[STOPPED_LABEL]!r} is neither true nor false")


def _check_task(task: TaskSpec, check_constraint: CheckConstraint | None) -> None:
    if task.PluginSpec is not None or task.Runtime not in (None, "", "container"):
        raise refuse("TaskTemplate.Runtime", f'runtime "{task.Runtime or "plugin"}" is not supported: use "container"')
    if task.NetworkAttachmentSpec is not None:
        raise refuse("TaskTemplate.NetworkAttachmentSpec", "a service cannot be a network attachment")
    if task.ContainerSpec is None:
        raise refuse("TaskTemplate.ContainerSpec", "TaskSpec: missing runtime: give a ContainerSpec")
    _check_container("TaskTemplate.ContainerSpec", task.ContainerSpec)
    _check_resources("TaskTemplate.Resources", task.Resources)
    _check_restart("TaskTemplate.RestartPolicy", task.RestartPolicy)
    _check_placement("TaskTemplate.Placement", task.Placement, check_constraint)
    _check_networks("TaskTemplate.Networks", task.Networks)


def _check_container(field: str, container: ContainerSpecFields) -> None:
    rules.check_image(f"{field}.Image", container.Image)
    rules.check_environment(f"{field}.Env", container.Env)
    rules.check_mounts(f"{field}.Mounts", container.Mounts)
    rules.check_healthcheck(f"{field}.Healthcheck", container.Healthcheck)
    rules.check_not_negative(f"{field}.StopGracePeriod", container.StopGracePeriod, "ContainerSpec: stop-grace-period")
    _check_labels(f"{field}.Labels", container.Labels)
    if container.Dir and not container.Dir.startswith("/"):
        raise refuse(f"{field}.Dir", f"the working directory '{container.Dir}' is invalid, it needs to be an absolute path")
    _check_references(f"{field}.Secrets", "secret", [(each.SecretID, each.SecretName, each.File) for each in container.Secrets])
    _check_references(f"{field}.Configs", "config", [(each.ConfigID, each.ConfigName, each.File) for each in container.Configs])


def _check_references(field: str, kind: str, references: Iterable[Reference]) -> None:
    targets: set[str] = set()
    for number, (identity, name, file) in enumerate(references):
        if not identity or not name:
            raise refuse(f"{field}[{number}]", f"malformed {kind} reference: give its id and its name")
        target = file.Name if file else None
        if target is not None and target in targets:
            raise refuse(f"{field}[{number}].File.Name", f"{kind} references have a conflicting target: '{target}'")
        if target is not None:
            targets.add(target)


def _check_resources(field: str, resources: ResourcesFields | None) -> None:
    if resources is None:
        return
    for name, part in (("Limits", resources.Limits), ("Reservations", resources.Reservations)):
        if part is not None:
            rules.check_cpus(f"{field}.{name}.NanoCPUs", part.NanoCPUs)
            rules.check_memory(f"{field}.{name}.MemoryBytes", part.MemoryBytes)
    limits, reserved = resources.Limits, resources.Reservations
    if reserved is not None:
        _check_generic(f"{field}.Reservations.GenericResources", reserved.GenericResources)
    if limits is not None:
        rules.check_not_negative(f"{field}.Limits.Pids", limits.Pids, "pids limit")
    if limits is None or reserved is None:
        return
    for name in ("NanoCPUs", "MemoryBytes"):
        limit, reservation = getattr(limits, name), getattr(reserved, name)
        if limit and reservation and reservation > limit:
            raise refuse(f"{field}.Reservations.{name}", f"reservation {reservation} is more than the limit {limit}")


def _check_generic(field: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """A service reserves numbers; which of the names a task gets is the cluster's to say."""
    for number, entry in enumerate(entries):
        amount = entry.get("DiscreteResourceSpec")
        kind, value = (amount.get("Kind"), amount.get("Value")) if isinstance(amount, Mapping) else (None, None)
        if not kind or not isinstance(kind, str) or not isinstance(value, int) or isinstance(value, bool):
            why = "a service reserves so many of a kind: give a DiscreteResourceSpec of Kind and Value"
            raise refuse(f"{field}[{number}]", why)
        rules.check_not_negative(f"{field}[{number}].DiscreteResourceSpec.Value", value, f"generic resource {kind}")


def _check_restart(field: str, policy: RestartPolicyFields | None) -> None:
    if policy is None:
        return
    if (policy.Condition or "") not in RESTART_CONDITIONS:
        raise refuse(f"{field}.Condition", f'invalid RestartCondition: "{policy.Condition}": use none, on-failure or any')
    rules.check_not_negative(f"{field}.Delay", policy.Delay, "TaskSpec: restart-delay")
    rules.check_not_negative(f"{field}.Window", policy.Window, "TaskSpec: restart-window")
    rules.check_not_negative(f"{field}.BackoffLimit", policy.BackoffLimit, "TaskSpec: restart-backoff-limit")
    rules.check_not_negative(f"{field}.BackoffReset", policy.BackoffReset, "TaskSpec: restart-backoff-reset")


def _check_placement(field: str, placement: PlacementFields | None, check: CheckConstraint | None) -> None:
    if placement is None:
        return
    for number, constraint in enumerate(placement.Constraints):
        if check is None:
            break
        try:
            check(constraint)
        except (ValueError, InvalidArgument) as error:
            raise refuse(f"{field}.Constraints[{number}]", str(error)) from None
    for number, preference in enumerate(placement.Preferences):
        descriptor = preference.Spread.SpreadDescriptor if preference.Spread else ""
        if not descriptor:
            raise refuse(f"{field}.Preferences[{number}]", "a preference needs Spread.SpreadDescriptor")


def _check_own_placement(name: str | None, placement: PlacementFields | None, labels: Mapping[str, str]) -> None:
    """What Docker does not know: fields of ours under Placement, or labels that stand in for them."""
    ours = placement.unknown() if placement is not None else {}
    field = "TaskTemplate.Placement"
    try:
        policy = read_placement(ours, labels)
    except (ValueError, InvalidArgument) as error:
        raise refuse(field, str(error)) from None
    if policy.strategy and policy.strategy not in STRATEGIES:
        raise refuse(f"{field}.Strategy", f'unknown strategy "{policy.strategy}": use one of {", ".join(STRATEGIES)}')
    if name and any(affinity.service == name for affinity in policy.affinities):
        raise refuse(f"{field}.Affinities", "a service has no affinity to itself: use MaxReplicas or a spread preference")


def _check_networks(field: str, networks: list[Any]) -> None:
    for number, network in enumerate(networks):
        if not network.Target:
            raise refuse(f"{field}[{number}].Target", "a network attachment needs the network's id or name")


def _check_mode(mode: ServiceMode | None) -> None:
    if mode is None:
        return
    given = [name for name in MODES if getattr(mode, name) is not None]
    unknown = sorted(set(mode.unknown()) - {"Cron"})
    if unknown:
        raise refuse(f"Mode.{unknown[0]}", f"unknown service mode: use one of {', '.join(MODES)}")
    if len(given) > 1:
        raise refuse("Mode", f"must specify only one service mode, not {' and '.join(given)}")
    if mode.Replicated is not None and (mode.Replicated.Replicas or 0) < 0:
        raise refuse("Mode.Replicated.Replicas", "Number of replicas must be non-negative")
    if mode.ReplicatedJob is not None:
        job = mode.ReplicatedJob
        if (job.MaxConcurrent or 0) < 0:
            raise refuse("Mode.ReplicatedJob.MaxConcurrent", "Maximum concurrent jobs must not be negative")
        if (job.TotalCompletions or 0) < 0:
            raise refuse("Mode.ReplicatedJob.TotalCompletions", "Total completed jobs must not be negative")


def _check_update(field: str, word: str, config: UpdateConfigFields | None, actions: tuple[str, ...]) -> None:
    if config is None:
        return
    if (config.FailureAction or "") not in actions:
        raise refuse(
            f"{field}.FailureAction",
            f'unrecognized {word} failure action "{config.FailureAction}": use {" or ".join(filter(None, actions))}',
        )
    rules.check_not_negative(f"{field}.Delay", config.Delay, f"TaskSpec: {word}-delay")
    rules.check_not_negative(f"{field}.Monitor", config.Monitor, f"TaskSpec: {word}-monitor")
    ratio = config.MaxFailureRatio
    if ratio is not None and not 0 <= ratio <= 1:
        raise refuse(f"{field}.MaxFailureRatio", f"TaskSpec: {word}-maxfailureratio cannot be less than 0 or bigger than 1")


def _check_endpoint(endpoint: EndpointSpecFields | None) -> None:
    if endpoint is None:
        return
    published: set[tuple[str, int]] = set()
    for number, port in enumerate(endpoint.Ports):
        where = f"EndpointSpec.Ports[{number}]"
        if not port.TargetPort:
            raise refuse(f"{where}.TargetPort", "EndpointSpec: a port needs a target port from 1 to 65535")
        if endpoint.Mode == "dnsrr" and port.PublishMode != "host":
            raise refuse(f"{where}.PublishMode", "EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        if not port.PublishedPort:
            continue
        key = (port.Protocol or "tcp", port.PublishedPort)
        if key in published:
            raise refuse(f"{where}.PublishedPort", "EndpointSpec: duplicate published ports provided")
        published.add(key)
