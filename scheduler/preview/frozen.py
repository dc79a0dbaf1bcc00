"""A copy of a Snapshot that stays as it is while the world goes on. Pure; objects are shared, what holds them is copied.

A plan for people takes longer than the world may stand still. It must not know what the copy is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from scheduler.snapshot import NodeColumns, Snapshot
from scheduler.waiting import Waiting


def frozen(snapshot: Snapshot) -> Snapshot:
    """``snapshot`` as nobody will change it. Costs a walk over its tables, not over its objects."""
    return replace(snapshot, **{each.name: _copied(getattr(snapshot, each.name)) for each in fields(snapshot)})


def _copied(held: Any) -> Any:
    if isinstance(held, Mapping):
        return {key: value.copy() for key, value in held.items()} if _nested(held) else dict(held)
    if isinstance(held, NodeColumns):
        return replace(held, **{each.name: _column(getattr(held, each.name)) for each in fields(held)})
    return held.copy() if isinstance(held, Waiting) else held


def _nested(held: Mapping[Any, Any]) -> bool:
    return isinstance(next(iter(held.values()), None), dict)


def _column(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else list(value)
