"""The tasks that wait for a node: columns with one row a task, in no order, and how they are grouped when a decision asks.

It decides which tasks are alike and in which order they were made. A task's row holds the number that stands for what it
shares with others, found once as the task is applied; nothing else is kept by group, so a change costs the same however many
wait. It must not know nodes or what a group is placed by.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator
from functools import partial
from heapq import merge
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from covey.model.objects import Task
from scheduler.steps import Effort, whole

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: So many groups are made without a stop.
PART = 5_000


class Alike(NamedTuple):
    """What tasks that are placed together share.

    ``node_id`` is "" unless they are bound to a node (global services); ``avoid`` are the nodes on which their slot crashed.
    """

    service_id: str
    spec_version: int
    node_id: str
    avoid: tuple[str, ...] = ()


class Group(NamedTuple):
    """Waiting tasks that are alike, by id, in the order in which they were made: (created_at, slot, id)."""

    alike: Alike
    ids: list[str]


_GROUP = partial(tuple.__new__, Group)


class Waiting:
    """One row a task: ``ids``, ``numbers`` (an index into ``names``), ``created``, ``slots``. Rows move as others leave.

    ``queues``: how many kinds of tasks of a service wait. Everything is lent: it must not be changed.
    """

    __slots__ = ("_free", "_numbered", "_rows", "_uses", "created", "ids", "names", "numbers", "queues", "slots")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.numbers = array("q")
        self.created = array("d")
        self.slots = array("q")
        self.names: list[Alike] = []
        self.queues: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._numbered: dict[tuple[str, int, str, tuple[str, ...]], int] = {}
        self._uses: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._rows

    def put(self, task: Task) -> None:
        """``task`` waits, as it is now."""
        # A plain tuple finds its Alike and costs a fraction of one.
        key = (task.service_id, task.spec_version, task.node_id, task.avoid)
        row = self._rows.get(task.id)
        if row is not None:
            if self.names[self.numbers[row]] == key:
                self.created[row], self.slots[row] = task.created_at, task.slot
                return
            self.drop(task.id)
        number = self._numbered.get(key)
        if number is None:
            number = self._number(key)
        self._uses[number] += 1
        self._rows[task.id] = len(self.ids)
        self.ids.append(task.id)
        self.numbers.append(number)
        self.created.append(task.created_at)
        self.slots.append(task.slot)

    def drop(self, task_id: str) -> None:
        """A task does not wait, if it did."""
        row = self._rows.pop(task_id, None)
        if row is None:
            return
        number = self.numbers[row]
        last, kind, created, slot = self.ids.pop(), self.numbers.pop(), self.created.pop(), self.slots.pop()
        if row < len(self.ids):
            self._rows[last] = row
            self.ids[row], self.numbers[row], self.created[row], self.slots[row] = last, kind, created, slot
        self._uses[number] -= 1
        if not self._uses[number]:
            self._forget(number)

    def _number(self, key: tuple[str, int, str, tuple[str, ...]]) -> int:
        alike = Alike(*key)
        if self._free:
            number = self._free.pop()
            self.names[number] = alike
        else:
            number = len(self.names)
            self.names.append(alike)
            self._uses.append(0)
        self._numbered[alike] = number
        self.queues[alike.service_id] = self.queues.get(alike.service_id, 0) + 1
        return number

    def _forget(self, number: int) -> None:
        alike = self.names[number]
        del self._numbered[alike]
        self._free.append(number)
        self.queues[alike.service_id] -= 1
        if not self.queues[alike.service_id]:
            del self.queues[alike.service_id]

    def copy(self) -> Waiting:
        """The same rows, to be changed apart."""
        other = Waiting()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name)[:] if name not in _MAPPINGS else dict(getattr(self, name)))
        return other

    def grouped(self) -> list[Group]:
        """As ``grouping``, without a stop."""
        return whole(self.grouping())

    def grouping(self) -> Generator[None, None, list[Group]]:
        """Every group, that of the longest waiting first, then by what is alike; stops now and then."""
        if not self.ids:
            return []
        order, starts = self._order()
        yield
        ids = list(map(self.ids.__getitem__, order.tolist()))
        yield
        made = np.array(self.created)[order[starts]]
        ranked = np.argsort(made, kind="stable")
        ends = np.append(starts[1:], len(ids))[ranked].tolist()
        numbers = np.array(self.numbers)[order[starts[ranked]]].tolist()
        begins = starts[ranked].tolist()
        found: list[Group] = []
        yield
        for at in range(0, len(numbers), PART):
            part = slice(at, at + PART)
            members = (ids[begin:end] for begin, end in zip(begins[part], ends[part], strict=True))
            # As a tuple is made: Group(…) takes several times as long, and there may be very many.
            found += map(_GROUP, zip(map(self.names.__getitem__, numbers[part]), members, strict=True))
            yield
        yield from _settle(found, made[ranked])
        return found

    def _order(self) -> tuple[Numbers, Numbers]:
        """The rows by number and then as made, and where in them each number begins."""
        made, numbers, slots = np.array(self.created), _narrow(self.numbers), _narrow(self.slots)
        order = np.argsort(numbers, kind="stable")
        same, once, later = _neighbours(order, numbers, made, slots)
        if not (later | ~same).all():
            # When all tasks of each kind were made at once, and that is as a rule, their time need not be sorted by.
            order = np.lexsort((slots, numbers) if (once | ~same).all() else (slots, made, numbers))
            same, once, later = _neighbours(order, numbers, made, slots)
            for start, end in _runs(same & ~later):
                order[start:end] = sorted(order[start:end].tolist(), key=self.ids.__getitem__)
        return order, np.concatenate(([0], np.flatnonzero(~same) + 1))


_MAPPINGS = frozenset({"queues", "_rows", "_numbered"})


def _narrow(column: array[int]) -> npt.NDArray[np.integer[Any]]:
    """As 16 bits where that is enough: such are sorted digit by digit, many times as fast."""
    numbers: Numbers = np.array(column)
    return numbers.astype(np.uint16) if numbers.min() >= 0 and numbers.max() < 1 << 16 else numbers


def _neighbours(
    order: Numbers, numbers: npt.NDArray[np.integer[Any]], made: npt.NDArray[np.float64], slots: npt.NDArray[np.integer[Any]]
) -> tuple[Mask, Mask, Mask]:
    """Of each row but the first in this order, whether it is of the same kind as the one before it, was made at the same
    time, and comes after it."""
    numbers, made, slots = numbers[order], made[order], slots[order]
    once = made[1:] == made[:-1]
    return numbers[1:] == numbers[:-1], once, (made[1:] > made[:-1]) | (once & (slots[1:] > slots[:-1]))


def _settle(groups: list[Group], made: npt.NDArray[np.float64]) -> Generator[None]:
    """Those whose first tasks were made at the same time are ordered by what is alike."""
    effort = Effort(PART)
    for start, end in _runs(made[1:] == made[:-1]):
        pieces = []
        for at in range(start, end, PART):
            pieces.append(sorted(groups[at : min(at + PART, end)]))
            if effort.due(len(pieces[-1])):
                yield
        for at, group in enumerate(merge(*pieces) if len(pieces) > 1 else pieces[0], start):
            groups[at] = group
            if effort.due():
                yield


def _runs(tied: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """From where to where neighbours are equal; ``tied``: whether each but the first equals the one before it."""
    if not tied.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate(([False], tied, [False])).astype(np.int8)))
    return [(start, end + 1) for start, end in edges.reshape(-1, 2).tolist()]
