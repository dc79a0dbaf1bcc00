"""Services of one group: who they are, and whether all of their tasks are there to be placed together.

It decides nothing about nodes. A group is whole while every replica its services want waits for a node. Once any of it has
one, the group has begun, and what fails later is replaced alone: the rest of it runs. Which group a task
belongs to, its service says as it is now: an update that waits for the group would else wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from covey.model.objects import Task
from covey.model.task_states import TaskState, is_terminal
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
    """The group that a waiting task is placed with: its service's, whatever it was when the task was made; "" for none."""
    spec = snapshot.service_specs.get(task.service_id)
    return spec.task.placement.group if spec is not None else ""


def members(snapshot: Snapshot, name: str) -> list[Group]:
    """What waits of the group, the longest waiting first."""
    found = [(alike, waiting) for alike, waiting in snapshot.waiting.items() if group_of(snapshot, waiting.first()) == name]
    return sorted(found, key=lambda group: (group[1].first().created_at, group[0]))


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
