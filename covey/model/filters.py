"""Placement constraints: ``node.labels.zone == east``. Parses them and says whether a node's attributes match.

Pure. Keys and matching follow SwarmKit's manager/constraint (documented under `docker service create --constraint`):
values compare without regard to case, a missing label is the empty string.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

#: Exact keys; the two prefixes below take any label name behind them.
KEYS = ("node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch")
LABEL_PREFIXES = ("node.labels.", "engine.labels.")

_FORM = re.compile(r"^\s*(?P<key>[A-Za-z][\w.\-/]*)\s*(?P<op>==|!=)\s*(?P<value>[\w.:\-+/*@%^ ]*?)\s*$")


class Constraint(msgspec.Struct, frozen=True):
    """``key`` as in KEYS or with a label prefix, ``operator`` == or !=, ``value`` as written."""

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} {self.operator} {self.value}"

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether a node with these attributes (see ``node_attributes``) is allowed."""
        same = attributes.get(self.key, "").lower() == self.value.lower()
        return same if self.operator == "==" else not same


def parse_constraint(text: str) -> Constraint:
    """The constraint ``text`` says; ValueError names what is wrong with it and what would be right."""
    form = _FORM.match(text)
    if form is None:
        raise ValueError(f"constraint {text!r} is not of the form 'key==value' or 'key!=value'")
    key, operator, value = form["key"], form["op"], form["value"]
    known = key.lower()
    if known in KEYS:
        key = known
    elif not any(known.startswith(prefix) and len(known) > len(prefix) for prefix in LABEL_PREFIXES):
        allowed = ", ".join((*KEYS, *(f"{prefix}<name>" for prefix in LABEL_PREFIXES)))
        raise ValueError(f"constraint {text!r} has the unknown key {key!r}; known are {allowed}")
    if not value:
        raise ValueError(f"constraint {text!r} compares {key!r} with nothing; write 'key{operator}value'")
    if key == "node.role" and value.lower() not in ("manager", "worker"):
        raise ValueError(f"constraint {text!r}: node.role is 'manager' or 'worker', not {value!r}")
    return Constraint(key, operator, value)


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """All of ``texts`` parsed; ValueError of the first that is wrong."""
    return tuple(parse_constraint(text) for text in texts)
