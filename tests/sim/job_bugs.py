"""Bugs of jobs and drains to be planted, as tests/sim/bugs.py does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from scheduler import drain
from scheduler.reconcile import jobs, slots


def waiting_slot_makes_room() -> AbstractContextManager[Any]:
    """A slot whose task has failed is not counted among those in progress, though a successor is on its way."""
    return mock.patch.object(jobs, "given_up", lambda work, slot: not slot.active)


def executions_are_mixed_up() -> AbstractContextManager[Any]:
    """What completed in a former execution counts for the next."""
    real = slots.Work._slots

    def of_all(self: slots.Work) -> Any:
        found: dict[Any, Any] = {}
        current = self.iteration
        for self.iteration in range(1, current + 1):
            own = yield from real(self)
            found |= {key: slot for key, slot in own.items() if jobs.completed(slot) or self.iteration == current}
        self.iteration = current
        return found

    return mock.patch.object(slots.Work, "_slots", of_all)


def former_execution_goes_on() -> AbstractContextManager[Any]:
    """The tasks of the execution before are neither stopped nor looked after."""
    return mock.patch.object(jobs, "_end_former", return_value=())


def failed_is_done() -> AbstractContextManager[Any]:
    """A slot is tried once."""
    return mock.patch.object(jobs, "tend", lambda work, slot: slots.tend(work, slot) if slot.active else None)


def drain_forgets_its_parallelism() -> AbstractContextManager[Any]:
    """A node that is to be emptied step by step is emptied at once."""

    def everybody(snapshot: Any, tasks: Any, *others: Any) -> Any:
        yield from ()
        return tasks

    return mock.patch.object(drain, "_within", everybody)


def moves_are_not_counted() -> AbstractContextManager[Any]:
    """Whoever decides next does not see what is on its way already."""

    def nobody(*given: Any) -> Any:
        yield from ()
        return []

    return mock.patch.object(drain, "_successors", nobody)


#: As in tests/sim/bugs.py.
BUGS: dict[Any, int] = {
    waiting_slot_makes_room: 4,
    executions_are_mixed_up: 1,
    former_execution_goes_on: 6,
    failed_is_done: 1,
    drain_forgets_its_parallelism: 14,
    moves_are_not_counted: 51,
}
