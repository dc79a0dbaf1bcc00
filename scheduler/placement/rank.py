"""Which of the nodes that have room comes first: the strategies. Decides an order of rows; filters are elsewhere.

A strategy ranks rows by numbers, the least first, each asked only where the ones before are equal; what is still equal goes
by row, which is a hash of the node's id, so every manager decides alike.

- binpack: (replicas of the service, fullest), so replicas go on distinct nodes while there are any.
- spread: (replicas of the service, emptiest).
- pack: (least left over, in the largest node's measure), wherever the service's other replicas are; a node that is in use
  comes before one that is not, and of those that are not, the largest first: as few nodes as possible.
- pack-small: the same without that second rule: small nodes first, so that large ones stay free for large tasks.

Ahead of each: nodes on which this version of the service keeps failing go last; then spread preferences. Affinities come
before how full nodes are, and after replicas: wishes do not crowd a service on one node.
Within a group each placement changes the rank of its own node only; the order in which nodes are taken is therefore a merge
of one sequence a node, which ``levels.py``, ``tree.py`` and ``singles.py`` compute, each for its kind of group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scheduler.placement.capacity import Capacity, Rows
from scheduler.placement.request import Request

Floats = npt.NDArray[np.float64]

#: Strategies that put replicas of a service on distinct nodes while there are any.
DISTINCT = frozenset({"binpack", "spread"})
#: Strategies that do not.
PACKING = frozenset({"pack", "pack-small"})

#: What a node that is not in use is behind one that is, for ``pack``: more than any rest can be.
_UNUSED = 1024.0


def strategy_of(request: Request, capacity: Capacity) -> str:
    """The strategy's name: the service's, or the cluster's; an unknown one ranks as binpack."""
    named = request.spec.placement.strategy or capacity.strategy
    return named if named in DISTINCT or named in PACKING else "binpack"


def preference(strategy: str, capacity: Capacity, request: Request, rows: Rows) -> Floats:
    """The strategy's number for each of ``rows`` as they are, the least the best. Replicas are not in it."""
    if strategy == "spread":
        return capacity.full[rows]
    if strategy == "binpack":
        return np.negative(capacity.full[rows])
    return _left_over(capacity, request, rows, reluctant=strategy == "pack")


def _left_over(capacity: Capacity, request: Request, rows: Rows, *, reluctant: bool) -> Floats:
    """What would be left of CPU and memory, both as shares of the largest node's, added up."""
    cpus, memory = capacity.largest
    left = (capacity.total_cpus[rows] - capacity.nominal_cpus[rows] - request.nominal_cpus) / cpus
    left += (capacity.total_memory[rows] - capacity.nominal_memory[rows] - request.nominal_memory) / memory
    if reluctant:
        unused = (capacity.nominal_cpus[rows] == 0) & (capacity.nominal_memory[rows] == 0)
        sizes = capacity.total_cpus[rows] / cpus + capacity.total_memory[rows] / memory
        left = np.where(unused, _UNUSED - sizes, left)
    return np.asarray(left, dtype=np.float64)


def best_of(capacity: Capacity, request: Request, strategy: str, rows: Rows, count: int) -> Rows:
    """Where in ``rows`` the ``count`` best are, in order: by affinity, then by the strategy's number."""
    numbers = preference(strategy, capacity, request, rows)
    if request.score is None:
        return lowest(numbers, count)
    return np.asarray(np.lexsort((numbers, -request.score[rows]))[:count], dtype=np.int64)


def lowest(numbers: Floats, count: int) -> npt.NDArray[np.int64]:
    """Where the ``count`` least are, in order; equal ones by position."""
    if count == 1:
        return np.array([int(numbers.argmin())], dtype=np.int64) if len(numbers) else np.empty(0, dtype=np.int64)
    if count >= len(numbers):
        return np.argsort(numbers, kind="stable")
    last = np.partition(numbers, count - 1)[count - 1]
    below = np.flatnonzero(numbers < last)
    ties = np.flatnonzero(numbers == last)[: count - len(below)]
    chosen = np.concatenate((below, ties))
    chosen.sort()
    return np.asarray(chosen[np.argsort(numbers[chosen], kind="stable")], dtype=np.int64)
