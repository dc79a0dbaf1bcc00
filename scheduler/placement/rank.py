"""Which of the feasible nodes is best: binpack (the default), spread, or pack. Decides an order; filters are elsewhere.

A strategy is a list of keys, the least first wins, each asked only where the ones before are equal; what is still equal
is decided by a hash of the task and the node, so that every manager decides alike.

- binpack: replicas of a service on distinct nodes while there are any, and among those the fullest.
- spread: the same, and among those the emptiest.
- pack: the fullest, wherever the service's other replicas are.

Ahead of each: nodes on which this version of the service keeps failing go last; then spread preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from covey.ids import tie_break
from scheduler.placement.capacity import Capacity
from scheduler.placement.feasible import Mask

Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]


class Standing(NamedTuple):
    """What a service has where, by row: its replicas, and whether its version keeps failing there."""

    replicas: npt.NDArray[np.int64]
    failing: npt.NDArray[np.int64]
    branches: Sequence[npt.NDArray[np.int64]] = ()


def fullness(capacity: Capacity) -> npt.NDArray[np.float64]:
    """The dominant share of each node in use, with nominal requests, as a number of thousandths (ties are wanted)."""
    cpus = capacity.nominal_cpus / np.maximum(capacity.total_cpus, 1)
    memory = capacity.nominal_memory / np.maximum(capacity.total_memory, 1)
    return np.asarray(np.round(np.maximum(cpus, memory), 3), dtype=np.float64)


def keys(strategy: str, capacity: Capacity, standing: Standing) -> list[Numbers]:
    """The strategy's keys in order; an unknown strategy ranks as binpack."""
    full = fullness(capacity)
    ahead: list[Numbers] = [standing.failing, *(_branch_counts(standing, rows) for rows in standing.branches)]
    if strategy == "pack":
        return [*ahead, -full]
    if strategy == "spread":
        return [*ahead, standing.replicas, full, capacity.tasks]
    return [*ahead, standing.replicas, -full]


def _branch_counts(standing: Standing, branch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """By row, how many replicas the row's branch of a spread preference holds."""
    totals = np.bincount(branch, weights=standing.replicas, minlength=int(branch.max(initial=0)) + 1)
    return np.asarray(totals[branch], dtype=np.int64)


def best(task_id: str, left: Mask, order: Sequence[Numbers], ids: Sequence[str]) -> int:
    """The best row of ``left``, which is not empty."""
    rows = np.flatnonzero(left)
    for key in order:
        if len(rows) == 1:
            break
        values = key[rows]
        rows = rows[values == values.min()]
    if len(rows) == 1:
        return int(rows[0])
    return int(min(rows, key=lambda row: tie_break(task_id, ids[int(row)])))
