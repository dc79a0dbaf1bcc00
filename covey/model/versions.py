"""How a service changes: a new spec, and a former one that comes back. Pure: a service and a time in, a service out.

It decides what is counted, what is kept of the spec that is left, and which changes are worth a place in the history. It
must not know who asks (a person through the API, the leader for an update that failed) nor what becomes of the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from covey.model.meaning import meaning
from covey.model.objects import PastSpec, Service
from covey.model.spec import STOPPED_LABEL, read_ports, read_service_spec

#: Parts of a spec from which tasks are made: a change of another part replaces no task.
TASK_PARTS = ("TaskTemplate", "EndpointSpec")


def updated(service: Service, spec: dict[str, Any], now: float) -> Service:
    """``service`` with a new ``spec``; its spec version changes only when its tasks would be made otherwise."""
    generation = _next(service)
    old, new = meaning(service.spec), meaning(spec)
    changed = any(old.get(part) != new.get(part) for part in TASK_PARTS)
    return _with(service, spec, generation if changed else service.spec_version, now, rolling_back=False)


def reverted(service: Service, past: PastSpec, now: float) -> Service:
    """``service`` with a spec it had, as a person asked for; what it has now becomes the previous one."""
    return _with(service, past.spec, past.spec_version, now, rolling_back=True)


def rolled_back(service: Service, now: float) -> Service:
    """``service`` with its previous spec because the update failed; as in Docker, there is no previous one then."""
    return msgspec.structs.replace(reverted(service, previous(service), now), previous_spec=None, previous_spec_version=0)


def previous(service: Service) -> PastSpec:
    """The spec before the last change, which there must be. Services of release 0.1 did not note its version."""
    assert service.previous_spec is not None
    version = service.previous_spec_version or _next(service)
    return PastSpec(id="", service_id=service.id, generation=0, spec_version=version, spec=service.previous_spec)


def current(service: Service) -> PastSpec:
    """The spec that ``service`` has, as it is kept once it has another."""
    return PastSpec(
        id=f"{service.id}.{service.generation}",
        service_id=service.id,
        generation=service.generation,
        spec_version=service.spec_version,
        spec=service.spec,
        created_at=service.updated_at or service.created_at,
    )


def first_execution(spec: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Fields of a new Service; a job begins with its creation."""
    return {"job_iteration": 1, "executed_at": now} if read_service_spec(spec).is_job else {}


def _next_execution(service: Service, now: float) -> dict[str, Any]:
    """Fields that a change of ``service`` changes: whatever is changed of a job, it is executed again, as in Docker."""
    return {"job_iteration": service.job_iteration + 1, "executed_at": now} if service.job_iteration else {}


def worth_keeping(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a person may want ``old`` back once ``new`` is there: not after a scale, a restart, a stop or a start."""
    return _essence(old) != _essence(new)


def port_names(spec: Mapping[str, Any]) -> set[str]:
    """The names that hold the ingress ports a spec asks for by number: ``<port>/<protocol>``."""
    ports = read_ports(spec.get("EndpointSpec"))
    return {f"{port.published}/{port.protocol}" for port in ports if port.mode == "ingress" and port.published}


def _next(service: Service) -> int:
    """The generation of the next change. Services of release 0.1 counted changes of the spec version only."""
    return max(service.generation, service.spec_version) + 1


def _with(service: Service, spec: dict[str, Any], spec_version: int, now: float, *, rolling_back: bool) -> Service:
    return msgspec.structs.replace(
        service,
        spec=spec,
        spec_version=spec_version,
        generation=_next(service),
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        rolling_back=rolling_back,
        updated_at=now,
        version=0,
        **_next_execution(service, now),
    )


def _essence(spec: Mapping[str, Any]) -> dict[str, Any]:
    template = {key: value for key, value in (spec.get("TaskTemplate") or {}).items() if key != "ForceUpdate"}
    labels = {key: value for key, value in (spec.get("Labels") or {}).items() if key != STOPPED_LABEL}
    mode = dict(spec.get("Mode") or {"Replicated": {}})
    if "Replicated" in mode:
        mode["Replicated"] = None
    return {**spec, "TaskTemplate": template, "Labels": labels, "Mode": mode}
