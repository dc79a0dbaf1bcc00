"""What waits is grouped by what is alike and in the order in which it was made, whatever order it came in and left."""

from __future__ import annotations

import random

import msgspec
import pytest

from covey.model.objects import Task
from covey.model.task_states import TaskState as S
from scheduler import waiting
from scheduler.waiting import Alike, Group, Waiting


def plainly(tasks: list[Task]) -> list[Group]:
    """The same, as plainly as can be."""
    found: dict[Alike, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.created_at, task.slot, task.id)):
        found.setdefault(Alike(task.service_id, task.spec_version, task.node_id, task.avoid), []).append(task)
    ordered = sorted(found, key=lambda alike: (found[alike][0].created_at, alike))
    return [Group(alike, [task.id for task in found[alike]]) for alike in ordered]


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_as_they_plainly_should_be(seed: int) -> None:
    rng = random.Random(seed)
    slots, times = rng.choice((3, 500, 200_000)), rng.choice((1, 3, 1000))
    held, there = Waiting(), dict[str, Task]()
    for step in range(400):
        task = Task(
            id=f"t{rng.randrange(150)}",
            service_id=f"s{rng.randrange(8)}",
            spec_version=rng.randint(1, 2),
            node_id=rng.choice(("", "", "n1")),
            avoid=rng.choice(((), (), ("n2",))),
            slot=rng.randrange(slots),
            created_at=float(rng.randrange(times)),
            state=S.PENDING,
        )
        if rng.random() < 0.3:
            held.drop(task.id)
            there.pop(task.id, None)
        else:
            held.put(task)
            there[task.id] = task
        if step % 50 == 0:
            assert held.grouped() == plainly(list(there.values()))
            held, before = held.copy(), held
            held.drop(next(iter(there), ""))
            there.pop(next(iter(there), ""), None)
            assert len(before) - len(held) in (0, 1), "a copy goes its own way"
    assert held.grouped() == plainly(list(there.values()))
    assert {key: kinds for key, kinds in held.queues.items() if kinds} == held.queues
    for task_id in list(there):
        held.drop(task_id)
    assert (held.grouped(), held.queues, len(held)) == ([], {}, 0)


def test_those_made_at_once_are_ordered_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PART", 7)
    rng = random.Random(3)
    held = Waiting()
    tasks = [Task(id=f"t{n}", service_id=f"s{n:03}", state=S.PENDING, created_at=float(n % 3 == 0)) for n in range(100)]
    for task in rng.sample(tasks, len(tasks)):
        held.put(task)
    for task in tasks[:10]:
        held.drop(task.id)
        held.drop(task.id)
    held.put(msgspec.structs.replace(tasks[50], service_id="s000"))
    stops = sum(1 for _ in held.grouping())
    assert stops > 90 // 7
    found = [(alike.service_id, ids) for alike, ids in held.grouped()]
    expected = sorted((t.created_at, "s000" if t.id == "t50" else t.service_id, [t.id]) for t in tasks[10:])
    assert found == [(service_id, ids) for _, service_id, ids in expected]
