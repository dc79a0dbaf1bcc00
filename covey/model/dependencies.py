"""What a service waits for before its tasks start: ``depends_on``. Pure.

Ours, as Docker's API has no field for it: ``DependsOn`` of the service's spec, a list of ``{"Service": name, "Condition":
started | healthy | completed}``, or, for clients that cannot send that, the label ``covey.depends_on``, as
``db=healthy,migrate=completed``. Compose's longer words (``service_healthy``) are taken as well. Names are the cluster's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

DEPENDS_ON_LABEL = "covey.depends_on"

#: Word → what compose calls it.
CONDITIONS: Mapping[str, str] = {
    "started": "service_started",
    "healthy": "service_healthy",
    "completed": "service_completed_successfully",
}
_WORDS = {**{long: short for short, long in CONDITIONS.items()}, **{short: short for short in CONDITIONS}}


class Dependency(NamedTuple):
    """``service`` is a name; ``condition`` is started, healthy or completed."""

    service: str
    condition: str = "started"


def condition(word: str) -> str:
    """A condition by either of its words, started for none. Raises ValueError."""
    known = _WORDS.get(word or "started")
    if known is None:
        raise ValueError(f"condition {word!r} is none of {', '.join(_WORDS)}")
    return known


def parse_dependencies(spec: Mapping[str, Any]) -> tuple[Dependency, ...]:
    """Of a service spec, each service once, the field before the label. Raises ValueError that names the place."""
    found: dict[str, Dependency] = {}
    for place, service, word in (*_of_field(spec.get("DependsOn")), *_of_label(spec.get("Labels") or {})):
        if not service:
            raise ValueError(f"{place}: name the service that is waited for")
        if service == spec.get("Name"):
            raise ValueError(f"{place}: service {service} cannot wait for itself")
        try:
            found.setdefault(service, Dependency(service, condition(word)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return tuple(found.values())


def _of_field(raw: Any) -> list[tuple[str, str, str]]:
    """(place, service, word) each."""
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(entry, Mapping) for entry in raw):
        raise ValueError("DependsOn must be a list of {Service, Condition}")
    return [
        (f"DependsOn[{number}]", str(entry.get("Service") or ""), str(entry.get("Condition") or ""))
        for number, entry in enumerate(raw)
    ]


def _of_label(labels: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    parts = [part.strip() for part in str(labels.get(DEPENDS_ON_LABEL) or "").split(",")]
    place = f"label {DEPENDS_ON_LABEL}"
    return [(place, service, word) for service, _, word in (part.partition("=") for part in parts if part)]


def label_of(dependencies: Mapping[str, str]) -> str:
    """The label's value for service → condition."""
    return ",".join(f"{service}={word}" for service, word in dependencies.items())
