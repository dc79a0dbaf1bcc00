"""Services of one group: who they are, and whether all of their tasks are there to be placed together.

It decides nothing about nodes. A group is whole while every replica its services want waits for a node. Once any of it has
one, the group has begun, and what fails later is replaced alone: the rest of it runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.snapshot import Snapshot
from scheduler.waiting import Group


def begun(snapshot: Snapshot, name: str) -> bool:
    """Whether any task of the group has its node."""
    return any(
        service_id in snapshot.replicas
        for service_id, spec in snapshot.service_specs.items()
        if spec.task.placement.group == name
    )


def members(snapshot: Snapshot, waiting: Iterable[Group], name: str) -> list[Group]:
    """Those that belong to the group."""
    return [group for group in waiting if snapshot.task_specs[group.ids[0]].placement.group == name]


def lacking(snapshot: Snapshot, waiting: Iterable[Group], name: str) -> str:
    """What tasks are told while some of the group's do not even wait for a node yet; "" when all are there."""
    wanted = there = 0
    counts: dict[str, int] = {}
    for alike, ids in waiting:
        counts[alike.service_id] = counts.get(alike.service_id, 0) + len(ids)
    for service_id, spec in snapshot.service_specs.items():
        if spec.task.placement.group == name and spec.mode == "replicated":
            wanted += spec.replicas
            there += min(counts.get(service_id, 0), spec.replicas)
    return "" if there >= wanted else f"group {name} waits for all of its tasks: {there} of {wanted} are there"
