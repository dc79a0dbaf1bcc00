"""Services of one group: who they are, and whether all of their tasks are there to be placed together.

It decides nothing about nodes. A group is whole while every replica its services want waits for a node. Once any of it has
one, the group has begun, and what fails later is replaced alone: the rest of it runs. A service that has left the group takes
the tasks with it that it made before.
"""

from __future__ import annotations

from collections.abc import Iterable

from covey.model.objects import Task
from scheduler.placement.lists import Group
from scheduler.snapshot import Snapshot
from scheduler.tally import Waiting


#: So many tasks with their predecessors, and of such specs (characters), one transaction of the store holds.
_TASKS = 40
_CHARACTERS = 400_000


def fits_at_once(groups: Iterable[Waiting]) -> bool:
    """Whether one transaction is to hold all of a group; what does not fit into one is written in several."""
    sizes = [(len(waiting.tasks), len(str(waiting.first().spec))) for waiting in groups]
    return sum(count for count, _ in sizes) <= _TASKS and sum(count * size for count, size in sizes) <= _CHARACTERS


def begun(snapshot: Snapshot, name: str) -> bool:
    """Whether any task of the group has its node."""
    return any(
        service_id in snapshot.replicas
        for service_id, spec in snapshot.service_specs.items()
        if spec.task.placement.group == name
    )


def group_of(snapshot: Snapshot, task: Task) -> str:
    """The group that a waiting task is placed with, "" for none: the one it was made for, if its service is still in it."""
    name = snapshot.task_specs[task.id].placement.group
    service = snapshot.service_specs.get(task.service_id)
    return name if service is not None and service.task.placement.group == name else ""


def members(snapshot: Snapshot, name: str) -> list[Group]:
    """What waits of the group, the longest waiting first."""
    found = [
        (alike, waiting)
        for alike, waiting in snapshot.waiting.items()
        if group_of(snapshot, waiting.first()) == name
    ]
    return sorted(found, key=lambda group: (group[1].first().created_at, group[0]))


def lacking(snapshot: Snapshot, name: str) -> str:
    """What tasks are told while some of the group's do not even wait for a node yet; "" when all are there."""
    wanted = there = 0
    waiting: dict[str, int] = {}
    for alike, tasks in snapshot.waiting.items():
        waiting[alike.service_id] = waiting.get(alike.service_id, 0) + len(tasks.tasks)
    for service_id, spec in snapshot.service_specs.items():
        if spec.task.placement.group == name and spec.mode == "replicated" and not spec.stopped:
            wanted += spec.replicas
            there += min(waiting.get(service_id, 0), spec.replicas)
    return "" if there >= wanted else f"group {name} waits for all of its tasks: {there} of {wanted} are there"
