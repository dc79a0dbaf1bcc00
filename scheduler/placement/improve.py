"""The optional improver of a list that is packed at once: fills one node after another as nearly to the brim as it can.

For each node it looks for the set of waiting requests that leaves least (the largest that fits is always among them: it is
the hardest to place later), by a search that is cut off after ``effort`` steps (origin: Gupta and Ho, "A new heuristic
algorithm for the one-dimensional bin-packing problem", 1999, here in two dimensions). It takes much longer than the rest of a
pass, so it is off unless the settings say so. It knows amounts only: what else a node must be has been asked before.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from scheduler.steps import Effort

#: What memory that is left weighs beside CPU that is left, both as shares of the node.
_MEMORY_WEIGHT = 0.15
#: So many steps, and requests looked at beside them, are taken without a stop.
STEPS = 20_000
#: A node of which less is left (same measure) is full.
_FULL = 0.001


class Amount(NamedTuple):
    """Nano-CPUs and bytes."""

    cpus: int
    memory: int


def fill(
    nodes: Sequence[Amount], requests: Sequence[Amount], counts: Sequence[int], effort: int
) -> Generator[None, None, list[list[int]]]:
    """For each node, in order and with what it has free, the indexes of the requests it gets, each up to its count.

    It stops now and then.
    """
    pace = Effort(STEPS)
    most = Amount(max((node.cpus for node in nodes), default=1) or 1, max((node.memory for node in nodes), default=1) or 1)
    order = sorted(range(len(requests)), key=lambda at: (_share(requests[at], most), requests[at], -at), reverse=True)
    left = [counts[at] for at in order]
    sizes = [requests[at] for at in order]
    filled: list[list[int]] = []
    for node in nodes:
        chosen = _Search(node, sizes, left, effort).run()
        for at in chosen:
            left[at] -= 1
        filled.append([order[at] for at in chosen])
        if pace.due(effort + len(sizes)):
            yield
    return filled


def _share(request: Amount, of: Amount) -> float:
    return max(request.cpus / of.cpus, request.memory / of.memory)


class _Search:
    """The best set for one node."""

    def __init__(self, node: Amount, sizes: Sequence[Amount], counts: Sequence[int], effort: int) -> None:
        self.node = node
        self.sizes = sizes
        self.counts = counts
        self.effort = effort
        self.best: list[int] = []
        self.least = float("inf")
        self.chosen: list[int] = []
        self.used: dict[int, int] = {}
        self.smallest = 0

    def run(self) -> list[int]:
        """Indexes into ``sizes``, largest first; empty if nothing fits."""
        fitting = list(self._fitting())
        if not fitting:
            return []
        self.smallest = min(self.sizes[at].cpus for at in fitting)
        first = fitting[0]
        self._take(first)
        self._go(fitting, 0, self.node.cpus - self.sizes[first].cpus, self.node.memory - self.sizes[first].memory)
        return self.best

    def _fitting(self) -> Iterator[int]:
        cpus, memory = self.node
        for at, size in enumerate(self.sizes):
            if self.counts[at] and size.cpus <= cpus and size.memory <= memory:
                yield at

    def _take(self, at: int) -> None:
        self.chosen.append(at)
        self.used[at] = self.used.get(at, 0) + 1

    def _go(self, fitting: list[int], start: int, cpus: int, memory: int) -> bool:
        """Try what may follow ``chosen``; whether the search is over."""
        rest = cpus / (self.node.cpus or 1) + _MEMORY_WEIGHT * memory / (self.node.memory or 1)
        if rest < self.least:
            self.least, self.best = rest, self.chosen.copy()
        if self.least <= _FULL:
            return True
        if cpus < self.smallest:
            return False
        for position in range(start, len(fitting)):
            at = fitting[position]
            size = self.sizes[at]
            if size.cpus > cpus or size.memory > memory or self.used.get(at, 0) >= self.counts[at]:
                continue
            self.effort -= 1
            if self.effort < 0:
                return True
            self._take(at)
            if self._go(fitting, position, cpus - size.cpus, memory - size.memory):
                return True
            self.used[at] -= 1
            self.chosen.pop()
        return False
