"""What a service's spec names must be there: networks, secrets, configs. Pure but for reading the mirror."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covey.errors import InvalidArgument, NotFound
from covey.model.spec import read_service_spec
from manager.dispatcher.assignments import references
from manager.store.mirror import Mirror
from scheduler.allocate import NODE_SCOPE
from scheduler.depends import circle
from scheduler.snapshot import Snapshot

_FILES = (("Secrets", "SecretID", "SecretName", "secret"), ("Configs", "ConfigID", "ConfigName", "config"))


def check_dependencies(snapshot: Snapshot, spec: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for services that would wait for each other for ever; one that is not there yet may come."""
    graph = {view.name: [each.service for each in view.depends_on] for view in snapshot.service_specs.values()}
    mine = read_service_spec(spec)
    graph[mine.name] = [each.service for each in mine.depends_on]
    if way := circle(graph, mine.name):
        raise InvalidArgument(f"services would wait for each other: {' waits for '.join(way)} (DependsOn): leave one out")


def check_references(snapshot: Snapshot, mirror: Mirror, spec: Mapping[str, Any]) -> list[str]:
    """Names of the overlay networks ``spec`` joins. Raises NotFound (networks) or InvalidArgument for what does not exist."""
    check_dependencies(snapshot, spec)
    template = spec.get("TaskTemplate") or {}
    for field, id_field, name_field, kind in _FILES:
        held = mirror.objects(kind)
        entries = (template.get("ContainerSpec") or {}).get(field) or ()
        for entry, object_id in zip(entries, references(template, field, id_field)):
            if object_id not in held:
                name = entry.get(name_field) or object_id
                raise InvalidArgument(f"{kind} not found: {name} (TaskTemplate.ContainerSpec.{field}): create it first")
    overlays: list[str] = []
    by_name = {network.name: network for network in snapshot.networks.values()}
    for attachment in read_service_spec(spec).task.networks:
        network = snapshot.networks.get(attachment.target) or by_name.get(attachment.target)
        if network is not None:
            overlays.append(network.name)
        elif attachment.target not in NODE_SCOPE:
            raise NotFound(f"network {attachment.target} not found (TaskTemplate.Networks): create it first")
    return overlays
