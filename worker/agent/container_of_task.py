"""What container a task is: AssignedTask → name and the Engine API's container-create body. Pure.

Field by field as SwarmKit's executor does it, so that a task's container looks in `docker inspect` as users of Swarm know
it. What is beside the body (networks with their addresses, balanced ports, secret files) is named in ``TaskContainer``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.ids import task_name
from covey.model.objects import PortConfig, Task
from covey.model.resources import NANO, assigned_generic, read_resources
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask


@dataclass(frozen=True, slots=True)
class Attachment:
    """A network the container joins: its id, the addresses the leader gave (CIDR form) and the names it answers to."""

    network_id: str
    addresses: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that must be there when the container starts: ``target`` absolute in the container."""

    target: str
    data: bytes
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class TaskContainer:
    """Everything the engine needs. ``ports`` with mode ingress are shared by the service's replicas on the node."""

    name: str
    body: dict[str, Any]
    attachments: tuple[Attachment, ...]
    ports: tuple[PortConfig, ...]
    files: tuple[SecretFile, ...]
    service: str


class Unfit(Exception):
    """The task can never run as it stands; the message names the field."""


_TEMPLATE = re.compile(r"\{\{\s*\.([A-Za-z.]+)(?:\s+\"?([^}\"]+)\"?)?\s*\}\}")


def template_values(task: Task, node_id: str, hostname: str, platform: tuple[str, str]) -> dict[str, str]:
    """The placeholders of Env, Hostname and mounts (docs: `docker service create`, "Create services using templates")."""
    name = task_name(task.service_name, task.place, task.id)
    return {
        "Service.ID": task.service_id,
        "Service.Name": task.service_name,
        **{f"Service.Labels.{key}": value for key, value in task.service_labels.items()},
        "Node.ID": node_id,
        "Node.Hostname": hostname,
        "Node.Platform.OS": platform[0],
        "Node.Platform.Architecture": platform[1],
        "Task.ID": task.id,
        "Task.Name": name,
        "Task.Slot": task.place or node_id,
    }


def expand(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders filled in. Raises Unfit for one that does not exist."""

    def fill(match: re.Match[str]) -> str:
        key = match[1] if not match[2] else f"{match[1]}.{match[2].strip()}"
        if key in values:
            return values[key]
        if key.startswith("Service.Labels."):
            return ""
        known = ", ".join(sorted(name for name in values if not name.startswith("Service.Labels.")))
        raise Unfit(f"template {match[0]} is not known; known are {known} and Service.Labels.<name>")

    return _TEMPLATE.sub(fill, text)


def container_of_task(
    assigned: AssignedTask,
    networks: Sequence[AssignedNetwork],
    secrets: Sequence[AssignedSecret],
    configs: Sequence[AssignedSecret],
    *,
    node_id: str,
    hostname: str,
    platform: tuple[str, str],
) -> TaskContainer:
    """The container of ``assigned``. Raises Unfit when the spec asks for what cannot be."""
    task = assigned.task
    spec: Mapping[str, Any] = task.spec.get("ContainerSpec") or {}
    values = template_values(task, node_id, hostname, platform)
    name = task_name(task.service_name, task.place, task.id)
    attachments = tuple(
        Attachment(
            network_id=network.network_id,
            addresses=network.addresses,
            aliases=tuple(dict.fromkeys((task.service_name, *network.aliases))),
        )
        for network in task.networks
    )
    return TaskContainer(
        name=name,
        body=_body(task, spec, values, name, node_id, networks, assigned.ports),
        attachments=attachments,
        ports=assigned.ports,
        files=(*_files(spec.get("Secrets"), secrets, "secret"), *_files(spec.get("Configs"), configs, "config")),
        service=task.service_name,
    )


#: ContainerSpec key → key of the create body, where the value is taken as it is.
_CONFIG = {
    "Command": "Entrypoint",
    "Args": "Cmd",
    "Dir": "WorkingDir",
    "User": "User",
    "TTY": "Tty",
    "OpenStdin": "OpenStdin",
    "StopSignal": "StopSignal",
    "Healthcheck": "Healthcheck",
}

#: ContainerSpec key → key of its HostConfig, where the value is taken as it is.
_HOST_CONFIG = {
    "Groups": "GroupAdd",
    "ReadOnly": "ReadonlyRootfs",
    "Sysctls": "Sysctls",
    "CapabilityAdd": "CapAdd",
    "CapabilityDrop": "CapDrop",
    "Ulimits": "Ulimits",
    "Init": "Init",
    "Isolation": "Isolation",
    "OomScoreAdj": "OomScoreAdj",
}


def _body(
    task: Task,
    spec: Mapping[str, Any],
    values: Mapping[str, str],
    name: str,
    node_id: str,
    networks: Sequence[AssignedNetwork],
    ports: Sequence[PortConfig],
) -> dict[str, Any]:
    body: dict[str, Any] = {theirs: spec[ours] for ours, theirs in _CONFIG.items() if spec.get(ours) is not None}
    body["Image"] = str(spec.get("Image") or "")
    body["Env"] = [*(expand(str(entry), values) for entry in spec.get("Env") or ()), *_generic(task)]
    if spec.get("Hostname"):
        body["Hostname"] = expand(str(spec["Hostname"]), values)
    body["Labels"] = {
        **(spec.get("Labels") or {}),
        "com.docker.swarm.node.id": node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_name,
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": name,
    }
    if spec.get("StopGracePeriod") is not None:
        body["StopTimeout"] = -(-int(spec["StopGracePeriod"]) // NANO)
    body["ExposedPorts"] = {f"{port.target}/{port.protocol}": {} for port in ports}
    body["HostConfig"] = _host_config(task, spec, values)
    return body


def _generic(task: Task) -> list[str]:
    """What the task was given of its node's generic resources, as environment: names, or how many."""
    asked = read_resources((task.spec.get("Resources") or {}).get("Reservations"))
    given = assigned_generic(asked, task.generic_named)
    values = {kind: ",".join(names) for kind, names in given.generic_named.items()}
    values |= {kind: str(number) for kind, number in given.generic.items()}
    return [f"DOCKER_RESOURCE_{kind.upper()}={value}" for kind, value in sorted(values.items())]


def _host_config(task: Task, spec: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    host: dict[str, Any] = {theirs: spec[ours] for ours, theirs in _HOST_CONFIG.items() if spec.get(ours) is not None}
    host["RestartPolicy"] = {"Name": "no"}
    host["Mounts"] = [_mount(mount, values) for mount in spec.get("Mounts") or ()]
    host["ExtraHosts"] = [extra_host(str(entry)) for entry in spec.get("Hosts") or ()]
    dns = spec.get("DNSConfig") or {}
    host.update(
        {"Dns": dns.get("Nameservers") or [], "DnsSearch": dns.get("Search") or [], "DnsOptions": dns.get("Options") or []}
    )
    host["SecurityOpt"] = _security_options(spec.get("Privileges") or {})
    resources = task.spec.get("Resources") or {}
    limits, reservations = resources.get("Limits") or {}, resources.get("Reservations") or {}
    amounts = {
        "NanoCpus": limits.get("NanoCPUs"),
        "Memory": limits.get("MemoryBytes"),
        "PidsLimit": limits.get("Pids"),
        "MemoryReservation": reservations.get("MemoryBytes"),
    }
    host.update({key: int(amount) for key, amount in amounts.items() if amount})
    if driver := task.spec.get("LogDriver"):
        host["LogConfig"] = {"Type": driver.get("Name") or "json-file", "Config": driver.get("Options") or {}}
    return host


def extra_host(entry: str) -> str:
    """``host:ip`` of a /etc/hosts line ``ip host`` as ContainerSpec.Hosts has it."""
    address, _, host = entry.strip().partition(" ")
    return f"{host.strip()}:{address}" if host else entry


def _mount(mount: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    expanded = dict(mount)
    for key in ("Source", "Target"):
        if mount.get(key):
            expanded[key] = expand(str(mount[key]), values)
    return expanded


def _security_options(privileges: Mapping[str, Any]) -> list[str]:
    options = ["no-new-privileges"] if privileges.get("NoNewPrivileges") else []
    modes: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("Seccomp", lambda given: {"unconfined": "seccomp=unconfined"}.get(str(given.get("Mode")), "")),
        ("AppArmor", lambda given: {"disabled": "apparmor=unconfined"}.get(str(given.get("Mode")), "")),
    )
    options += [option for key, read in modes if (given := privileges.get(key)) and (option := read(given))]
    return options


def _files(references: Any, given: Sequence[AssignedSecret], kind: str) -> tuple[SecretFile, ...]:
    by_id = {secret.id: secret for secret in given}
    files: list[SecretFile] = []
    for reference in references or ():
        name, file = str(reference.get(f"{kind.title()}Name") or ""), reference.get("File")
        secret = by_id.get(str(reference.get(f"{kind.title()}ID") or ""))
        if secret is None:
            raise Unfit(f"{kind} {name!r} was not sent to this node; does it still exist?")
        if file is None:
            continue
        target = str(file.get("Name") or name)
        if not target.startswith("/"):
            target = f"/run/secrets/{target}" if kind == "secret" else f"/{target}"
        try:
            uid, gid = int(file.get("UID") or 0), int(file.get("GID") or 0)
        except ValueError:
            raise Unfit(f"{kind} {name!r}: UID and GID are numbers") from None
        files.append(SecretFile(target=target, data=secret.data, uid=uid, gid=gid, mode=int(file.get("Mode") or 0o444)))
    return tuple(files)
