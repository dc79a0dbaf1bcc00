"""What waits, in the order in which it is placed; and what is packed together, looked at as the list it is.

Packing one by one can only fit what comes; of a list the order may be chosen, and with the optional improver the set of
tasks for each node (``improve.py``). It decides orders and sets; filters and strategies are elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from covey.ids import tie_break
from scheduler.placement.capacity import Capacity, Rows
from scheduler.placement.feasible import suitable
from scheduler.placement.improve import Amount, fill
from scheduler.placement.rank import PACKING
from scheduler.placement.request import Request
from scheduler.steps import Effort
from scheduler.waiting import Group

#: Of a list that is packed at once, what fits seven times into the median node fills the gaps that the rest leaves.
_FILLER = 1 / 7
#: Of this share on, few nodes come into question.
_BULKY = 1 / 2
#: So many groups are put in order without a stop.
PART = 5_000


class Stage(NamedTuple):
    """What is placed before anything of a lower priority: one after another, then what is packed, as a list."""

    singly: list[Group]
    packed: list[Group]


def in_order(waiting: Iterable[Group], capacity: Capacity) -> Generator[None, None, list[Stage]]:
    """What waits by priority, the highest first; within one as it comes, and what is packed after the rest. It stops."""
    specs = capacity.snapshot.task_specs
    effort = Effort(PART)
    stages: dict[int, Stage] = {}
    for group in waiting:
        policy = specs[group.ids[0]].placement
        stage = stages.get(policy.priority)
        if stage is None:
            stage = stages[policy.priority] = Stage([], [])
        (stage.packed if (policy.strategy or capacity.strategy) in PACKING else stage.singly).append(group)
        if effort.due():
            yield
    for stage in stages.values():
        if len(stage.packed) > 1:
            stage.packed[:] = yield from _in_packing_order(stage.packed, capacity)
    return [stages[priority] for priority in sorted(stages, reverse=True)]


def _in_packing_order(groups: Sequence[Group], capacity: Capacity) -> Generator[None, None, list[Group]]:
    """The bulky first, largest first; then in an order that has nothing to do with size, so that sizes mix; then the small."""
    specs, (cpus, memory) = capacity.snapshot.task_specs, capacity.median
    effort = Effort(PART)
    kinds, shares, ties = (np.zeros(len(groups), dtype=dtype) for dtype in (np.int8, np.float64, np.uint64))
    for at, (alike, ids) in enumerate(groups):
        asked = specs[ids[0]].reservations
        share = max(asked.nano_cpus / cpus, asked.memory_bytes / memory)
        if _FILLER < share <= _BULKY:
            kinds[at] = 1
        else:
            kinds[at], shares[at] = 0 if share > _BULKY else 2, -share
        ties[at] = tie_break(alike.service_id, alike.node_id)
        if effort.due():
            yield
    return [groups[at] for at in np.lexsort((ties, shares, kinds)).tolist()]


def pack_list(capacity: Capacity, wanted: Sequence[tuple[Request, int]], effort: int) -> Generator[None, None, list[list[int]]]:
    """Rows for the tasks of each group, for plain requests and as far as found; nothing is spent. ``effort`` as in improve."""
    found: list[list[int]] = [[] for _ in wanted]
    alike: dict[int, list[int]] = {}
    for at, (request, _) in enumerate(wanted):
        alike.setdefault(id(suitable(capacity, request)), []).append(at)
    taken: dict[int, Amount] = {}
    for members in alike.values():
        rows = _nodes(capacity, np.flatnonzero(suitable(capacity, wanted[members[0]][0])))
        free = [_free(capacity, row, taken) for row in rows]
        owners: dict[Amount, list[int]] = {}
        for at in members:
            request, count = wanted[at]
            owners.setdefault(Amount(request.cpus, request.memory), []).extend([at] * count)
        amounts = list(owners)
        filled = yield from fill(free, amounts, [len(owners[amount]) for amount in amounts], effort)
        for row, chosen in zip(rows, filled, strict=True):
            for which in chosen:
                amount = amounts[which]
                found[owners[amount].pop()].append(row)
                held = taken.get(row, Amount(0, 0))
                taken[row] = Amount(held.cpus + amount.cpus, held.memory + amount.memory)
    return found


def _nodes(capacity: Capacity, rows: Rows) -> list[int]:
    """Those in use first, then the others, the largest first."""
    cpus, memory = capacity.largest
    unused = (capacity.nominal_cpus[rows] == 0) & (capacity.nominal_memory[rows] == 0)
    sizes = capacity.total_cpus[rows] / cpus + capacity.total_memory[rows] / memory
    ordered: list[int] = rows[np.lexsort((-sizes, unused))].tolist()
    return ordered


def _free(capacity: Capacity, row: int, taken: dict[int, Amount]) -> Amount:
    held = taken.get(row, Amount(0, 0))
    return Amount(int(capacity.free_cpus[row]) - held.cpus, int(capacity.free_memory[row]) - held.memory)
