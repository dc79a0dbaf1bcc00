"""THE table of task states: their ranks, and who may move a task from where to where.

Pure data with three questions asked of it: ``may_move``, ``is_terminal`` and ``shown``. The picture in docs/task-model.md
is generated from it; leader and worker both check against it. Ranks are SwarmKit's (api/types.proto), so that a state's
number never has to change when one is added between two others.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class TaskState(enum.IntEnum):
    """States in the order of their rank; a later one outranks an earlier one."""

    NEW = 0
    ALLOCATED = 32
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832

    @property
    def label(self) -> str:
        """The name clients see: lower case."""
        return self.name.lower()


class Actor(enum.Enum):
    """Who moves tasks. Every edge of the table belongs to exactly one."""

    LEADER = "leader"
    WORKER = "worker"


S = TaskState

#: (actor, from) → where that actor may move a task in one step.
TRANSITIONS: dict[tuple[Actor, TaskState], frozenset[TaskState]] = {
    (Actor.LEADER, S.NEW): frozenset({S.ALLOCATED, S.REMOVE}),
    (Actor.LEADER, S.ALLOCATED): frozenset({S.PENDING, S.REMOVE}),
    (Actor.LEADER, S.PENDING): frozenset({S.ASSIGNED, S.REMOVE}),
    (Actor.LEADER, S.ASSIGNED): frozenset({S.REMOVE, S.ORPHANED}),
    (Actor.WORKER, S.ASSIGNED): frozenset({S.ACCEPTED, S.SHUTDOWN, S.FAILED, S.REJECTED}),
    (Actor.WORKER, S.ACCEPTED): frozenset({S.PREPARING, S.SHUTDOWN, S.FAILED, S.REJECTED}),
    (Actor.WORKER, S.PREPARING): frozenset({S.READY, S.SHUTDOWN, S.FAILED, S.REJECTED}),
    (Actor.WORKER, S.READY): frozenset({S.STARTING, S.SHUTDOWN, S.FAILED, S.REJECTED}),
    (Actor.WORKER, S.STARTING): frozenset({S.RUNNING, S.SHUTDOWN, S.FAILED, S.REJECTED}),
    (Actor.WORKER, S.RUNNING): frozenset({S.COMPLETE, S.SHUTDOWN, S.FAILED}),
}

#: Desired states a leader may set, in the only order in which they may follow each other.
DESIRED = (S.READY, S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE)

_BY_LABEL = {state.label: state for state in TaskState}


def _close(table: dict[tuple[Actor, TaskState], frozenset[TaskState]]) -> dict[tuple[Actor, TaskState], frozenset[TaskState]]:
    closed: dict[tuple[Actor, TaskState], frozenset[TaskState]] = {}
    for actor in Actor:
        for state in TaskState:
            seen: set[TaskState] = set()
            edge = [state]
            while edge:
                for target in table.get((actor, edge.pop()), frozenset()):
                    if target not in seen:
                        seen.add(target)
                        edge.append(target)
            closed[actor, state] = frozenset(seen)
    return closed


_REACHABLE = _close(TRANSITIONS)


def may_move(actor: Actor, old: TaskState, new: TaskState) -> bool:
    """Whether ``actor`` may take a task from ``old`` to ``new`` in one write, which may pass several steps."""
    return new in _REACHABLE[actor, old]


def may_desire(old: TaskState, new: TaskState) -> bool:
    """Whether a desired state may follow another: desired states only rise."""
    return new in DESIRED and new > old


def is_terminal(state: TaskState) -> bool:
    """Whether the task is over: no container of it runs nor will run."""
    return state > S.RUNNING


def shown(leader: TaskState, worker: TaskState | None) -> TaskState:
    """The state a person sees: the higher-ranked of what the leader decided and what the worker observed."""
    return leader if worker is None or leader > worker else worker


def parse(label: str) -> TaskState:
    """The state a client names; KeyError when there is none of that name."""
    return _BY_LABEL[label.lower()]


def edges() -> Iterable[tuple[Actor, TaskState, TaskState]]:
    """Every edge of the table in order, for the documentation and the tests."""
    for (actor, old), targets in sorted(TRANSITIONS.items(), key=lambda item: (item[0][1], item[0][0].value)):
        for new in sorted(targets):
            yield actor, old, new
