"""Places small groups of like tasks without looking at every node: nodes are kept sorted by how full they are.

For binpack and spread, and services that have nothing anywhere yet. Nodes of one size whose fuller resource is the same
are one list. A search that does not end soon is given up, and a pass over all nodes (``levels.py``) decides instead: this
file only ever saves time. It follows what others spend by ``Capacity.log``.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from scheduler.placement.capacity import Capacity, Mask
from scheduler.placement.feasible import suitable
from scheduler.placement.request import Request

#: Groups of at most so many tasks.
SMALL = 8
#: So many nodes that do not fit are looked at in one list before the search is given up.
_PATIENCE = 24
#: With more sizes of nodes than this, lists are too many to be worth it.
_SIZES = 12
_MARGIN = 1e-9
_INFINITE = float("inf")
#: Who asks for nothing fits where more is given away than there is.
_NOTHING = -(1 << 62)

Entry = tuple[float, int]
Kind = tuple[int, int, bool]


class Singles:
    """Nodes sorted for one strategy; ``usable`` is False where a pass over all nodes is as good."""

    def __init__(self, capacity: Capacity, strategy: str) -> None:
        self._capacity = capacity
        self._sign = 1.0 if strategy == "spread" else -1.0
        self._seen = len(capacity.log)
        self._sizes = list(zip(capacity.total_cpus.tolist(), capacity.total_memory.tolist(), strict=True))
        self.usable = len(set(self._sizes)) <= _SIZES
        self._lists: dict[Kind, list[Entry]] = {}
        self._at: list[tuple[Kind, Entry]] = []
        if self.usable:
            self._sort()

    def _sort(self) -> None:
        self._lists = {}
        self._at = [self._entry(row) for row in range(len(self._sizes))]
        for kind, entry in self._at:
            self._lists.setdefault(kind, []).append(entry)
        for entries in self._lists.values():
            entries.sort()

    def _entry(self, row: int) -> tuple[Kind, Entry]:
        capacity = self._capacity
        cpus, memory = self._sizes[row]
        by_cpu = bool(capacity.nominal_cpus[row] / max(cpus, 1) >= capacity.nominal_memory[row] / max(memory, 1))
        return (cpus, memory, by_cpu), (self._sign * float(capacity.full[row]), row)

    def find(self, request: Request, count: int) -> list[int] | None:
        """The best ``count`` distinct rows, in order; None if that was not to be found out here."""
        self._catch_up()
        mask = suitable(self._capacity, request)
        found: list[Entry] = []
        worst: Entry = (_INFINITE, 0)
        for kind, entries in self._lists.items():
            part = self._search(kind, entries, request, mask, count, worst)
            if part is None:
                return None
            if part:
                found = sorted(found + part)[:count] if found else part
                if len(found) == count:
                    worst = found[-1]
        return [row for _, row in found] if len(found) == count else None

    def _search(
        self, kind: Kind, entries: list[Entry], request: Request, mask: Mask, count: int, worst: Entry
    ) -> list[Entry] | None:
        """The first ``count`` entries that fit, as far as they are before ``worst``; None: not found in time."""
        capacity = self._capacity
        free_cpus, free_memory = capacity.free_cpus, capacity.free_memory
        cpus, memory = request.cpus or _NOTHING, request.memory or _NOTHING
        found: list[Entry] = []
        missed = 0
        for at in range(self._start(kind, entries, request), len(entries)):
            entry = entries[at]
            if entry >= worst:
                break
            row = entry[1]
            if free_cpus[row] >= cpus and free_memory[row] >= memory and mask[row]:
                found.append(entry)
                if len(found) == count:
                    break
            else:
                missed += 1
                if missed > _PATIENCE:
                    return None
        return found

    def _start(self, kind: Kind, entries: list[Entry], request: Request) -> int:
        """From where on nodes are not too full, where that can be told from how full they are."""
        if self._sign > 0 or not self._capacity.honest:
            return 0
        cpus, memory, by_cpu = kind
        asked = request.cpus / max(cpus, 1) if by_cpu else request.memory / max(memory, 1)
        return bisect_left(entries, (asked - 1.0 - _MARGIN, -1)) if asked else 0

    def _catch_up(self) -> None:
        """Move the rows that were spent on since."""
        log = self._capacity.log
        if self._seen == len(log):
            return
        spent = log[self._seen :]
        self._seen = len(log)
        if sum(map(len, spent)) * 16 > len(self._sizes) > 256:
            self._sort()
            return
        for batch in spent:
            for row in batch:
                self._move(row)

    def _move(self, row: int) -> None:
        kind, entry = self._at[row]
        entries = self._lists[kind]
        del entries[bisect_left(entries, entry)]
        self._at[row] = (kind, entry) = self._entry(row)
        insort(self._lists.setdefault(kind, []), entry)
