"""Affinities of a service: what its tasks want to be near to or far from. Ours; Docker's Placement has no such field.

Pure. ``Placement.Affinities`` is a list of objects, each with a ``Constraint`` (an expression of covey.model.filters) or a
``Service`` (a name or id; with ``Topology``, the attribute whose value must agree, ``node.id`` unless said), a ``Weight``
from -100 to 100 and, for services, ``Required``. Clients that cannot send it put the list as JSON into a label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from covey.model.filters import KEYS, LABEL_PREFIXES, Constraint, parse_constraint

AFFINITIES_LABEL = "covey.placement.affinities"

HEAVIEST = 100
_FIELDS = {"Constraint", "Service", "Topology", "Weight", "Required"}


class Affinity(msgspec.Struct, frozen=True):
    """A wish: nodes that meet ``constraint``, or where ``service`` has a task in the same ``topology``.

    ``weight`` is what it adds to a node's score, less than 0 for the contrary wish. ``required``: it is no wish but a filter.
    """

    weight: int
    constraint: Constraint | None = None
    service: str = ""
    topology: str = "node.id"
    required: bool = False


def read_affinities(placement: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[Affinity, ...]:
    """The affinities of a ``Placement``, or else of the service's label. ValueError says which is wrong, and why."""
    raw = placement.get("Affinities")
    if raw is None and AFFINITIES_LABEL in labels:
        try:
            raw = json.loads(labels[AFFINITIES_LABEL])
        except json.JSONDecodeError as error:
            raise ValueError(f"label {AFFINITIES_LABEL} is no JSON ({error})") from None
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise ValueError("Affinities must be a list of objects")
    return tuple(_read(number, each) for number, each in enumerate(raw))


def _read(number: int, raw: Any) -> Affinity:
    where = f"Affinities[{number}]"
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be an object")
    if unknown := sorted(set(raw) - _FIELDS):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}: known are {', '.join(sorted(_FIELDS))}")
    weight = raw.get("Weight", HEAVIEST)
    if type(weight) is not int or not weight or abs(weight) > HEAVIEST:
        raise ValueError(f"{where}.Weight must be a whole number from -{HEAVIEST} to {HEAVIEST}, other than 0")
    required = raw.get("Required", False)
    if not isinstance(required, bool):
        raise ValueError(f"{where}.Required must be true or false")
    expression, service = raw.get("Constraint"), raw.get("Service")
    if bool(expression) == bool(service) or not isinstance(expression or service, str):
        raise ValueError(f"{where} needs either a Constraint or a Service")
    if expression:
        if required:
            raise ValueError(f"{where}: a constraint that is required belongs into Placement.Constraints")
        return Affinity(weight, constraint=parse_constraint(expression))
    topology = raw.get("Topology") or "node.id"
    if topology not in KEYS and not str(topology).startswith(LABEL_PREFIXES):
        raise ValueError(f"{where}.Topology {topology!r} is no attribute of nodes: use node.id or node.labels.<name>")
    return Affinity(weight, service=str(service), topology=str(topology), required=required)
