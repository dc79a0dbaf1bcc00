"""Amounts a node has and a task asks for. Pure arithmetic; units are Docker's: 1e9 nano-CPUs a core, bytes, counts."""

from __future__ import annotations

from collections.abc import Mapping
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
    generic: list[dict[str, Any]] = [
        {"DiscreteResourceSpec": {"Kind": kind, "Value": count}} for kind, count in sorted(amount.generic.items())
    ]
    generic += [
        {"NamedResourceSpec": {"Kind": kind, "Value": name}}
        for kind, names in sorted(amount.generic_named.items())
        for name in names
    ]
    if generic:
        shown["GenericResources"] = generic
    return shown
