"""Bugs of preemption and of groups to be planted, as tests/sim/bugs.py does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import msgspec

from covey.model.task_states import TaskState
from manager import committer
from scheduler.placement import place, together
from scheduler.placement.capacity import Capacity
from scheduler.placement.preempt import Preemption
from tests.sim.bugs import replace


def preempts_its_equals() -> AbstractContextManager[Any]:
    """Who has the same priority has to leave, too."""

    def wrap(real: Any) -> Any:
        def victims(self: Preemption, request: Any, row: int) -> Any:
            policy = request.spec.placement
            policy = msgspec.structs.replace(policy, priority=policy.priority + 1)
            return real(self, request._replace(spec=msgspec.structs.replace(request.spec, placement=policy)), row)

        return victims

    return replace(Preemption, "_victims", wrap)


def room_is_not_kept() -> AbstractContextManager[Any]:
    """What is promised may be taken by others meanwhile."""

    def wrap(real: Any) -> Any:
        def promise(self: Preemption, *args: Any) -> Any:
            restore = self._capacity.saved()
            made = real(self, *args)
            restore()
            return made

        return promise

    return replace(Preemption, "promise", wrap)


def victims_are_not_told() -> AbstractContextManager[Any]:
    """Room is promised that nobody is told to leave."""

    def preempt(self: Any, tasks: Any, request: Any) -> None:
        for task in tasks:
            self.preemption.promise(request, task.node_id)

    return mock.patch.object(place._Pass, "_preempt", preempt)


def who_leaves_is_not_seen() -> AbstractContextManager[Any]:
    """Room that others are about to leave is not waited for: more have to go."""

    def wrap(real: Any) -> Any:
        def room(self: Preemption, row: int, held: Any, gone: Any) -> Any:
            return real(self, row, held, [task for task in gone if task.desired < TaskState.SHUTDOWN])

        return room

    return replace(Preemption, "_room", wrap)


class _Reversed(int):
    """A priority that is as others say, and the more important among its like the smaller."""

    def __lt__(self, other: int) -> bool:
        return int.__gt__(self, other) if isinstance(other, _Reversed) else int.__lt__(self, other)


def the_important_leave_first() -> AbstractContextManager[Any]:
    """Of those that may be told to leave, the wrong ones are."""
    return replace(Preemption, "_priority", lambda real: lambda self, task: _Reversed(real(self, task)))


def priorities_are_not_looked_at() -> AbstractContextManager[Any]:
    """The least important are placed first."""
    return replace(place, "in_order", lambda real: lambda *args: real(*args)[::-1])


def groups_are_not_looked_at() -> AbstractContextManager[Any]:
    """A group has begun before anything of it has its node."""
    return mock.patch.object(together, "begun", return_value=True)


def a_member_is_forgotten() -> AbstractContextManager[Any]:
    """Of the services of a group the last is left out."""
    return replace(together, "members", lambda real: lambda *args: real(*args)[:-1] or real(*args))


def a_group_does_not_wait_for_all() -> AbstractContextManager[Any]:
    """What is there of a group is placed, if there is room for that."""
    return mock.patch.object(together, "lacking", return_value="")


def what_a_group_tried_counts() -> AbstractContextManager[Any]:
    """Room that a group looked at, and did not take, is gone for those after it."""
    return mock.patch.object(Capacity, "saved", return_value=lambda: None)


@contextmanager
def a_group_is_written_in_parts() -> Iterator[None]:
    """Each task of a group has a transaction of its own."""

    def alone(real: Any) -> Any:
        def transactions(groups: Any, fenced: Any, keys: Any) -> Any:
            for group in groups:
                yield from real([group], fenced, keys)

        return transactions

    with mock.patch.object(together, "fits_at_once", return_value=False), replace(committer, "transactions", alone):
        yield


#: As in tests/sim/bugs.py.
BUGS: dict[Any, int] = {
    preempts_its_equals: 13,
    room_is_not_kept: 31,
    victims_are_not_told: 12,
    who_leaves_is_not_seen: 277,
    the_important_leave_first: 40,
    priorities_are_not_looked_at: 31,
    groups_are_not_looked_at: 3,
    a_member_is_forgotten: 5,
    a_group_does_not_wait_for_all: 3,
    what_a_group_tried_counts: 13,
    a_group_is_written_in_parts: 12,
}
