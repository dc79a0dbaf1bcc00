"""``service inspect --pretty``: what a person wants to know of a service's spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.output import binary_size, clean, labels_text
from cli.tasks import ports_text


def _span(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:g}s"


def pretty_text(service: Mapping[str, Any]) -> str:
    """Lines of ``name: value``; what is not set is left out."""
    spec = service["Spec"]
    template = spec.get("TaskTemplate") or {}
    container = template.get("ContainerSpec") or {}
    mode = spec.get("Mode") or {}
    placement = template.get("Placement") or {}
    update = service.get("UpdateStatus") or {}
    policy = spec.get("UpdateConfig") or {}
    rows: list[tuple[str, Any]] = [
        ("ID", service["ID"]),
        ("Name", spec.get("Name")),
        ("Labels", labels_text(spec.get("Labels"))),
        ("Service Mode", next(iter(mode), "Replicated")),
        (" Replicas", (mode.get("Replicated") or {}).get("Replicas")),
        (" Max Concurrent", (mode.get("ReplicatedJob") or {}).get("MaxConcurrent")),
        (" Total Completions", (mode.get("ReplicatedJob") or {}).get("TotalCompletions")),
        ("UpdateStatus", " ".join(filter(None, (update.get("State"), update.get("Message"))))),
        ("Placement", ", ".join(placement.get("Constraints") or ())),
        (" Max Replicas Per Node", placement.get("MaxReplicas")),
        (
            "UpdateConfig",
            ", ".join(f"{key} {policy[key]}" for key in ("Parallelism", "FailureAction", "Order") if key in policy),
        ),
        ("Image", container.get("Image")),
        ("Command", " ".join(container.get("Command") or ())),
        ("Args", " ".join(container.get("Args") or ())),
        ("Env", " ".join(container.get("Env") or ())),
        ("Dir", container.get("Dir")),
        ("User", container.get("User")),
        (
            "Mounts",
            "; ".join(
                f"{one.get('Source', '')}:{one.get('Target')} ({one.get('Type')})" for one in container.get("Mounts") or ()
            ),
        ),
        *_resources(template.get("Resources") or {}),
        ("Networks", " ".join(one.get("Target", "") for one in template.get("Networks") or ())),
        ("Endpoint Mode", (spec.get("EndpointSpec") or {}).get("Mode")),
        ("Ports", ports_text((service.get("Endpoint") or {}).get("Ports") or [])),
    ]
    if container.get("StopGracePeriod"):
        rows.append(("Stop Grace Period", _span(container["StopGracePeriod"])))
    return "\n".join(clean(f"{title + ':':<24}{value}") for title, value in rows if value not in (None, "", 0))


def _resources(resources: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for kind in ("Limits", "Reservations"):
        given = resources.get(kind) or {}
        words = [f"CPU {given['NanoCPUs'] / 1e9:g}"] if given.get("NanoCPUs") else []
        words += [f"memory {binary_size(given['MemoryBytes'])}"] if given.get("MemoryBytes") else []
        words += [f"pids {given['Pids']}"] if given.get("Pids") else []
        rows.append((kind, ", ".join(words)))
    return rows
