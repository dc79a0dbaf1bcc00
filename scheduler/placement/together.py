"""Services of one group: who they are, and whether all of their tasks are there to be placed together.

It decides nothing about nodes. A group is whole while every replica its services want waits for a node. Once any of it has
one, the group has begun, and what fails later is replaced alone: the rest of it runs. Which group a task
belongs to, its service says as it is now: an update that waits for the group would else wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from covey.model.objects import Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.snapshot import Snapshot
from scheduler.waiting import Group

#: So many tasks with their predecessors, and of such specs (characters), one transaction of the store holds.
_TASKS = 40
_CHARACTERS = 400_000


def fits_at_once(snapshot: Snapshot, groups: Iterable[Group]) -> bool:
    """Whether one transaction is to hold all of a group; what does not fit into one is written in several."""
    sizes = [(len(group.ids), len(str(snapshot.tasks[group.ids[0]].spec))) for group in groups]
    return sum(count for count, _ in sizes) <= _TASKS and sum(count * size for count, size in sizes) <= _CHARACTERS


def begun(snapshot: Snapshot, name: str) -> bool:
    """Whether any task of the group has its node."""
    return any(
        service_id in snapshot.replicas
        for service_id, spec in snapshot.service_specs.items()
        if spec.task.placement.group == name
    )


def group_of(snapshot: Snapshot, service_id: str) -> str:
    """The group that a service's waiting tasks are placed with, whatever it was when they were made; "" for none."""
    spec = snapshot.service_specs.get(service_id)
    return spec.task.placement.group if spec is not None else ""


def members(snapshot: Snapshot, waiting: Iterable[Group], name: str) -> list[Group]:
    """Those that belong to the group."""
    return [group for group in waiting if group_of(snapshot, group.alike.service_id) == name]


def lacking(snapshot: Snapshot, name: str) -> str:
    """What tasks are told while some of the group's do not even wait for a node yet; "" when all are there.

    Who is to start after another of the group (``depends_on``) is not waited for: they would wait for each other.
    """
    wanted = there = 0
    group = {key: spec for key, spec in snapshot.service_specs.items() if spec.task.placement.group == name}
    names = {spec.name for spec in group.values()}
    for service_id, spec in group.items():
        after = any(dependency.service in names for dependency in spec.depends_on)
        if spec.mode == "replicated" and not spec.stopped and not after:
            settled, waiting = _slots(snapshot, service_id)
            wanted += max(spec.replicas - settled, 0)
            there += waiting
    return "" if there >= wanted else f"group {name} waits for all of its tasks: {there} of {wanted} are there"


def _slots(snapshot: Snapshot, service_id: str) -> tuple[int, int]:
    """How many slots of a service nothing is to follow in, as its last task is over and stays the last; and how many wait."""
    last: dict[int, Task] = {}
    for task in snapshot.tasks_of(service_id):
        if task.desired < TaskState.REMOVE and (task.slot not in last or last[task.slot].attempt < task.attempt):
            last[task.slot] = task
    settled = sum(1 for task in last.values() if is_terminal(snapshot.state(task)))
    waiting = sum(1 for task in last.values() if task.state == TaskState.PENDING and task.desired <= TaskState.COMPLETE)
    return settled, waiting
