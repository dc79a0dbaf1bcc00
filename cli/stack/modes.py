"""How often and when a service of a stack runs: ``deploy.mode`` with its numbers, and ``depends_on``. Pure.

Docker's API has no field for dependencies, so they travel as a label (covey.model.dependencies). A service that others wait
for to complete, and that names no mode, is a job: as a service it would be started again each time it completes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.stack.keys import mapping
from cli.stack.units import integer, truth
from covey.errors import InvalidArgument
from covey.model.dependencies import DEPENDS_ON_LABEL, condition, label_of

MODES = ("replicated", "global", "replicated-job", "global-job")


def mode_of(deploy: Mapping[str, Any], path: str, *, awaited: bool = False) -> dict[str, Any]:
    """Docker's Mode. ``awaited``: others wait for the service to complete."""
    mode = str(deploy.get("mode") or ("replicated-job" if awaited else "replicated"))
    if mode not in MODES:
        raise InvalidArgument(f"{path}.mode: {mode!r} is none of {', '.join(MODES)}")
    most = deploy.get("max_concurrent")
    if most is not None and mode != "replicated-job":
        raise InvalidArgument(f"{path}.max_concurrent goes with mode: replicated-job only")
    if mode.startswith("global"):
        if deploy.get("replicas") is not None:
            raise InvalidArgument(f"{path}.replicas: a {mode} service has one task a node; remove replicas or the mode")
        return {"Global": {}} if mode == "global" else {"GlobalJob": {}}
    count = _count(deploy.get("replicas"), 1, f"{path}.replicas")
    if mode == "replicated":
        return {"Replicated": {"Replicas": count}}
    return {"ReplicatedJob": {"MaxConcurrent": _count(most, count, f"{path}.max_concurrent"), "TotalCompletions": count}}


def _count(value: Any, default: int, path: str) -> int:
    count = default if value is None else integer(value, path)
    if count < 0:
        raise InvalidArgument(f"{path}: {count} is less than 0")
    return count


def dependencies(service: Mapping[str, Any], path: str) -> dict[str, str]:
    """Compose name → started, healthy or completed, of both forms of ``depends_on``."""
    given = service.get("depends_on")
    if isinstance(given, list):
        return {str(name): "started" for name in given}
    found: dict[str, str] = {}
    for name, body in mapping(given, f"{path}.depends_on").items():
        place = f"{path}.depends_on.{name}"
        long = mapping(body, place)
        if unknown := sorted(set(long) - {"condition", "required", "restart"}):
            raise InvalidArgument(f"unknown key {place}.{unknown[0]}; known here are condition, required, restart")
        if truth(long.get("restart", False), f"{place}.restart"):
            raise InvalidArgument(f"{place}.restart is not supported: a service is not restarted with what it depends on")
        try:
            found[str(name)] = condition(str(long.get("condition") or ""))
        except ValueError as error:
            raise InvalidArgument(f"{place}: {error}") from None
    return found


def awaited(services: Mapping[str, Any]) -> frozenset[str]:
    """Compose names of the services that others wait for to complete. Raises InvalidArgument for what is not there.

    A dependency that is not ``required`` may be missing, and is then none.
    """
    found: set[str] = set()
    for name, body in services.items():
        path = f"services.{name}"
        for other, word in dependencies(mapping(body, path), path).items():
            if other == name:
                raise InvalidArgument(f"{path}.depends_on: {name} cannot wait for itself")
            if other not in services and _required(body, other):
                raise InvalidArgument(f"{path}.depends_on: {other!r} is no service of the stack")
            if word == "completed":
                found.add(other)
    return frozenset(found)


def _required(service: Mapping[str, Any], name: str) -> bool:
    given = service.get("depends_on")
    long = given.get(name) if isinstance(given, Mapping) else None
    return truth((long or {}).get("required", True), f"depends_on.{name}.required")


def dependency_label(stack_names: Mapping[str, str], service: Mapping[str, Any], path: str) -> dict[str, str]:
    """The label that makes the service wait. ``stack_names``: compose name → cluster name of the stack's services."""
    known = {stack_names[name]: word for name, word in dependencies(service, path).items() if name in stack_names}
    return {DEPENDS_ON_LABEL: label_of(known)} if known else {}
