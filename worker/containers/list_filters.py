"""PURE: which containers a list or prune filter means (docker ps --filter).

Keys and meanings are Docker's; a container is given with what is shown of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument
from worker.containers import record
from worker.containers.record import Container

LIST_KEYS = (
    "ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "label!",
    "name", "network", "publish", "since", "status", "volume",
)  # fmt: skip
STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
HEALTHS = ("starting", "healthy", "unhealthy", "none")

Filters = Mapping[str, Sequence[str]]


def check(filters: Filters) -> None:
    """Raises InvalidArgument in Docker's words for values that cannot be."""
    for key, known in (("status", STATUSES), ("health", HEALTHS), ("is-task", ("true", "false", "1", "0"))):
        for value in filters.get(key, ()):
            if value not in known:
                raise InvalidArgument(f"invalid filter '{key}={value}'")
    for value in filters.get("exited", ()):
        if not value.lstrip("-").isdigit():
            raise InvalidArgument(f"invalid filter 'exited={value}'")


def label_fits(labels: Mapping[str, str], wanted: str) -> bool:
    """``key`` or ``key=value``."""
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _port_fits(keys: Sequence[str], wanted: str) -> bool:
    span, _, protocol = wanted.partition("/")
    low, _, high = span.partition("-")
    if not low.isdigit() or (high and not high.isdigit()):
        raise InvalidArgument(f"invalid filter 'publish={wanted}': give a port or a range")
    for key in keys:
        number, _, kind = key.partition("/")
        if number.isdigit() and int(low) <= int(number) <= int(high or low) and (kind or "tcp") == (protocol or "tcp"):
            return True
    return False


def _name_fits(name: str, pattern: str) -> bool:
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error:
        return pattern in name


def _volume_fits(container: Container, wanted: str) -> bool:
    return any(wanted in (mount.name, mount.destination, mount.source) for mount in container.mounts)


def _network_fits(shown: Mapping[str, Any], wanted: str) -> bool:
    networks = shown["NetworkSettings"]["Networks"]
    return any(wanted == name or (one.get("NetworkID") or "").startswith(wanted) for name, one in networks.items())


def _health(container: Container) -> str:
    return container.state.health.status if container.state.health else "none"


_Test = Callable[[Container, Mapping[str, Any], str], bool]

_TESTS: dict[str, _Test] = {
    "id": lambda container, _, value: container.id.startswith(value),
    "name": lambda container, _, value: _name_fits(container.name, value),
    "status": lambda container, _, value: container.state.status == value,
    "health": lambda container, _, value: _health(container) == value,
    "exited": lambda container, _, value: container.state.status == record.EXITED and container.state.exit_code == int(value),
    "volume": lambda container, _, value: _volume_fits(container, value),
    "network": lambda _, shown, value: _network_fits(shown, value),
    "is-task": lambda container, _, value: bool(container.owner) == (value in ("true", "1")),
    "publish": lambda container, _, value: _port_fits(list(container.host_config.get("PortBindings") or {}), value),
    "expose": lambda container, _, value: _port_fits(
        [*(container.config.get("ExposedPorts") or {}), *(container.host_config.get("PortBindings") or {})], value
    ),
    "isolation": lambda container, shown, value: value in ("", "default"),
    "annotation": lambda container, _, value: label_fits(container.host_config.get("Annotations") or {}, value),
}


def fits(container: Container, shown: Mapping[str, Any], filters: Filters, ancestors: Mapping[str, frozenset[str]]) -> bool:
    """Whether every key has a value that fits (all values of label). ``ancestors``: filter value → image ids it means."""
    for key, values in filters.items():
        if key == "label":
            good = all(label_fits(container.labels, value) for value in values)
        elif key == "label!":
            good = not any(label_fits(container.labels, value) for value in values)
        elif key == "ancestor":
            good = any(container.image_id in ancestors.get(value, frozenset()) for value in values)
        elif key in _TESTS:
            good = any(_TESTS[key](container, shown, value) for value in values)
        else:
            good = True
        if values and not good:
            return False
    return True
