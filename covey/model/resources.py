"""Amounts a node has and a task asks for. Pure arithmetic; units are Docker's: 1e9 nano-CPUs a core, bytes, counts.

Generic resources are whatever a node says it has: so many of a kind, or each by its name. Their rules are Docker's (the
daemon's ``node-generic-resource``): of a kind a node has a number, or names, and no number is a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

NANO = 1_000_000_000
MIB = 1024 * 1024


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """CPU in nano-CPUs, memory in bytes, generic resources by kind: a count, or the names that exist or are asked for."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    generic: dict[str, int] = {}
    generic_named: dict[str, tuple[str, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self.nano_cpus or self.memory_bytes or self.generic or self.generic_named)


#: What a task without reservations counts for when nodes are ranked (never when they are filtered).
NOMINAL = Resources(nano_cpus=NANO // 10, memory_bytes=64 * MIB)


def read_resources(raw: Mapping[str, Any] | None) -> Resources:
    """Resources from the Engine API's object (``NanoCPUs``, ``MemoryBytes``, ``GenericResources``); None is nothing."""
    if not raw:
        return Resources()
    counts: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for entry in raw.get("GenericResources") or ():
        if discrete := entry.get("DiscreteResourceSpec"):
            counts[discrete["Kind"]] = counts.get(discrete["Kind"], 0) + int(discrete["Value"])
        if named := entry.get("NamedResourceSpec"):
            names.setdefault(named["Kind"], []).append(str(named["Value"]))
    return Resources(
        nano_cpus=int(raw.get("NanoCPUs") or 0),
        memory_bytes=int(raw.get("MemoryBytes") or 0),
        generic=counts,
        generic_named={kind: tuple(values) for kind, values in names.items()},
    )


def show_resources(amount: Resources) -> dict[str, Any]:
    """The Engine API's object for ``amount``."""
    shown: dict[str, Any] = {"NanoCPUs": amount.nano_cpus, "MemoryBytes": amount.memory_bytes}
    if generic := show_generic(amount):
        shown["GenericResources"] = generic
    return shown


def show_generic(amount: Resources) -> list[dict[str, Any]]:
    """The Engine API's list of the generic ones."""
    generic: list[dict[str, Any]] = [
        {"DiscreteResourceSpec": {"Kind": kind, "Value": count}} for kind, count in sorted(amount.generic.items())
    ]
    generic += [
        {"NamedResourceSpec": {"Kind": kind, "Value": name}}
        for kind, names in sorted(amount.generic_named.items())
        for name in names
    ]
    return generic


_TERM = re.compile(r"(?P<kind>[A-Za-z0-9][A-Za-z0-9_.-]*)=(?P<value>[^\s,=]+)")


def parse_generic(terms: Iterable[str]) -> Resources:
    """Of ``KIND=NAME`` and ``KIND=NUMBER``, what a node has. Raises ValueError."""
    counts: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for term in terms:
        found = _TERM.fullmatch(term.strip())
        if found is None:
            raise ValueError(f"{term!r} is not of the form KIND=NAME or KIND=NUMBER, as gpu=UUID1 or ssd=2")
        kind, value = found["kind"], found["value"]
        number = re.fullmatch(r"[+-]?[0-9]+", value) is not None
        if kind in counts or (number and kind in names):
            raise ValueError(f"{term!r}: of a kind a node has one number, or names, each given once")
        if number and (int(value) < 0 or int(value) >= 1 << 63):
            raise ValueError(f"{term!r}: a node has 0 or more of a kind")
        if number:
            counts[kind] = int(value)
        elif value in names.setdefault(kind, []):
            raise ValueError(f"{term!r} is given twice: names tell resources of a kind apart")
        else:
            names[kind].append(value)
    return Resources(generic=counts, generic_named={kind: tuple(each) for kind, each in names.items()})


def generic_counts(amount: Resources) -> dict[str, int]:
    """Generic resources by kind, names counted."""
    counts = dict(amount.generic)
    for kind, names in amount.generic_named.items():
        counts[kind] = counts.get(kind, 0) + len(names)
    return counts


def assigned_generic(asked: Resources, named: Mapping[str, tuple[str, ...]]) -> Resources:
    """What a task has of its node that asked for so much and was given these names: of other kinds the number."""
    counts = {kind: number for kind, number in generic_counts(asked).items() if kind not in named}
    return Resources(generic=counts, generic_named=dict(named))
