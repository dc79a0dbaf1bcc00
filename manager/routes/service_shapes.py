"""Services and tasks as the Engine API shows them. Pure.

Docker's defaults are filled in here, at the door on the way out: what is stored is the spec as received. Defaults are those
of SwarmKit (api/defaults/service.go).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covey.clock import rfc3339
from covey.model.objects import PortConfig, Service, Task, TaskStatus, UpdateStatus
from covey.model.resources import NANO, Resources, assigned_generic, read_resources, show_generic
from covey.model.spec import read_job, read_ports, read_service_spec
from covey.model.task_states import TaskState
from manager.dispatcher.assignments import chosen_ports
from manager.routes.shapes import show_network, stamps
from scheduler import update_status
from scheduler.reconcile.cron import last_run
from scheduler.snapshot import Snapshot

_UPDATE_DEFAULTS: dict[str, Any] = {
    "Parallelism": 1,
    "FailureAction": "pause",
    "Monitor": 5 * NANO,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}


def show_mode(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    """The mode with its numbers, which clients read without asking whether they are there."""
    if not raw:
        return {"Replicated": {"Replicas": 1}}
    if "Replicated" in raw:
        return {**raw, "Replicated": {"Replicas": 1, **{k: v for k, v in (raw["Replicated"] or {}).items() if v is not None}}}
    if "Global" in raw:
        return {**raw, "Global": raw["Global"] or {}}
    if "ReplicatedJob" in raw:
        total, most = read_job(raw["ReplicatedJob"])
        return {**raw, "ReplicatedJob": {**(raw["ReplicatedJob"] or {}), "MaxConcurrent": most, "TotalCompletions": total}}
    return {**raw, "GlobalJob": raw["GlobalJob"] or {}}


def fill_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """``spec`` with Docker's defaults (``insertDefaults=true``)."""
    template = dict(spec.get("TaskTemplate") or {})
    container = {"StopGracePeriod": 10 * NANO, "DNSConfig": {}, "Isolation": "default", **(template.get("ContainerSpec") or {})}
    restart = {"Condition": "any", "Delay": 5 * NANO, "MaxAttempts": 0, **(template.get("RestartPolicy") or {})}
    template = {
        "Resources": {"Limits": {}, "Reservations": {}},
        "Placement": {},
        "ForceUpdate": 0,
        "Runtime": "container",
        **template,
        "ContainerSpec": container,
        "RestartPolicy": restart,
    }
    policies = {
        key: {**_UPDATE_DEFAULTS, **(spec.get(key) or {})}
        for key in ("UpdateConfig", "RollbackConfig")
        if not read_service_spec(spec).is_job
    }
    return {
        **spec,
        "TaskTemplate": template,
        **policies,
        "EndpointSpec": {"Mode": "vip", **(spec.get("EndpointSpec") or {})},
    }


def show_spec(spec: Mapping[str, Any], insert_defaults: bool = False) -> dict[str, Any]:
    """A ServiceSpec."""
    shown = fill_defaults(spec) if insert_defaults else dict(spec)
    shown["Labels"] = dict(shown.get("Labels") or {})
    shown["Mode"] = show_mode(shown.get("Mode"))
    return shown


def show_port(port: PortConfig) -> dict[str, Any]:
    """An EndpointPortConfig."""
    return {
        **({"Name": port.name} if port.name else {}),
        "Protocol": port.protocol,
        "TargetPort": port.target,
        "PublishedPort": port.published,
        "PublishMode": port.mode,
        **({"HostIP": port.host_ip} if port.host_ip else {}),
    }


def _show_update(update: UpdateStatus) -> dict[str, Any]:
    shown: dict[str, Any] = {"State": update.state, "Message": update.message}
    if update.started_at:
        shown["StartedAt"] = rfc3339(update.started_at)
    if update.completed_at:
        shown["CompletedAt"] = rfc3339(update.completed_at)
    return shown


def show_service(
    snapshot: Snapshot, service: Service, *, insert_defaults: bool = False, status: bool = False
) -> dict[str, Any]:
    """A Service; ``status`` adds its ServiceStatus."""
    allocation = snapshot.service_allocations.get(service.id)
    account = snapshot.service_statuses.get(service.id)
    endpoint_spec = service.spec.get("EndpointSpec") or {}
    endpoint: dict[str, Any] = {"Spec": dict(endpoint_spec)}
    if ports := (chosen_ports(read_ports(endpoint_spec), allocation)):
        endpoint["Ports"] = [show_port(port) for port in ports]
    if allocation and allocation.addresses:
        endpoint["VirtualIPs"] = [{"NetworkID": key, "Addr": addr} for key, addr in sorted(allocation.addresses.items())]
    shown: dict[str, Any] = {
        "ID": service.id,
        **stamps(service),
        "Spec": show_spec(service.spec, insert_defaults),
        "Endpoint": endpoint,
    }
    if service.previous_spec is not None:
        shown["PreviousSpec"] = show_spec(service.previous_spec, insert_defaults)
    if (update := update_status.present(service, account)) is not None:
        shown["UpdateStatus"] = _show_update(update)
    if service.job_iteration:
        shown["JobStatus"] = {
            "JobIteration": _iteration(last_run(snapshot, service)),
            "LastExecution": rfc3339(_last_execution(snapshot, service)),
        }
    if status:
        shown["ServiceStatus"] = service_status(snapshot, service.id)
    return shown


def service_status(snapshot: Snapshot, service_id: str) -> dict[str, int]:
    """Counts of a service's tasks as ``service ls`` shows them; of a job, those of its last execution."""
    spec, iteration = snapshot.service_specs[service_id], last_run(snapshot, snapshot.services[service_id])
    running = desired = completed = 0
    for task in snapshot.tasks_of(service_id):
        if task.job_iteration != iteration:
            continue
        state = snapshot.state(task)
        wanted = task.desired <= TaskState.COMPLETE
        desired += wanted and state < TaskState.COMPLETE
        running += wanted and state == TaskState.RUNNING
        completed += state == TaskState.COMPLETE
    if spec.mode == "replicated":
        desired = spec.replicas
    elif spec.mode == "replicated-job":
        desired = spec.max_concurrent
    return {"RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed if spec.is_job else 0}


def show_task(snapshot: Snapshot, task: Task) -> dict[str, Any]:
    """A Task."""
    status = snapshot.statuses.get(task.id)
    shown: dict[str, Any] = {
        "ID": task.id,
        "Version": {"Index": max(task.version, status.version if status else 0)},
        "CreatedAt": rfc3339(task.created_at),
        "UpdatedAt": rfc3339(max(task.updated_at, status.at if status else 0.0) or task.created_at),
        "Labels": {},
        "Spec": task.spec,
        "ServiceID": task.service_id,
        **({"Slot": int(task.place)} if task.slot else {}),
        **({"NodeID": task.node_id} if task.node_id else {}),
        "Status": _show_task_status(snapshot, task, status),
        "DesiredState": task.desired.label,
        **({"JobIteration": _iteration(task.job_iteration)} if task.job_iteration else {}),
    }
    attachments = []
    for attachment in task.networks:
        network = snapshot.networks.get(attachment.network_id)
        if network is not None:
            described = show_network(network, snapshot.network_allocations.get(network.id))
            attachments.append(
                {"Network": _attached_network(network.version, described), "Addresses": list(attachment.addresses)}
            )
    if attachments:
        shown["NetworksAttachments"] = attachments
    if task.state >= TaskState.ASSIGNED and (given := show_generic(assigned_generic(_reserved(task), task.generic_named))):
        shown["AssignedGenericResources"] = given
    return shown


def _reserved(task: Task) -> Resources:
    return read_resources((task.spec.get("Resources") or {}).get("Reservations"))


def _iteration(count: int) -> dict[str, int]:
    """An ObjectVersion: Docker counts the executions of a job from 0."""
    return {"Index": max(count - 1, 0)}


def _last_execution(snapshot: Snapshot, service: Service) -> float:
    """Of a job by schedule, when its last run was begun."""
    if snapshot.service_specs[service.id].cron is None:
        return service.executed_at
    run = last_run(snapshot, service)
    begun = (task.created_at for task in snapshot.tasks_of(service.id) if task.job_iteration == run)
    return min(begun, default=service.executed_at)


def _attached_network(version: int, network: dict[str, Any]) -> dict[str, Any]:
    spec = {
        "Name": network["Name"],
        "Labels": network["Labels"],
        "DriverConfiguration": {"Name": network["Driver"], "Options": network["Options"]},
        "Attachable": network["Attachable"],
        "Scope": "swarm",
    }
    return {
        "ID": network["Id"],
        "Version": {"Index": version},
        "CreatedAt": network["Created"],
        "UpdatedAt": network["Created"],
        "Spec": spec,
        "DriverState": {"Name": network["Driver"], "Options": network["Options"]},
        "IPAMOptions": {"Driver": {"Name": network["IPAM"]["Driver"]}, "Configs": network["IPAM"]["Config"]},
    }


def _show_task_status(snapshot: Snapshot, task: Task, status: TaskStatus | None) -> dict[str, Any]:
    state = snapshot.state(task)
    observed = status if status is not None and status.state == state else None
    shown: dict[str, Any] = {
        "Timestamp": rfc3339((observed.at if observed else task.updated_at) or task.created_at),
        "State": state.label,
        "Message": (observed.message if observed else task.message) or state.label,
    }
    if status is not None and status.error:
        shown["Err"] = status.error
    elif observed is None and state <= TaskState.PENDING and task.message:
        # Docker shows in this place why a task waits for a node; ours may wait for more.
        shown["Err"] = task.message
        shown["Message"] = "pending task scheduling"
    if status is not None and status.container_id:
        shown["ContainerStatus"] = {
            "ContainerID": status.container_id,
            "PID": status.pid,
            "ExitCode": status.exit_code or 0,
        }
    # Clients read PortStatus without asking whether it is there.
    host_ports = [show_port(port) for port in status.ports if port.mode == "host"] if status else []
    shown["PortStatus"] = {"Ports": host_ports} if host_ports else {}
    return shown
