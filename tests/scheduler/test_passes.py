"""One pass: decisions on each other's outcome, each key written once, what belongs together written together."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from covey.model.objects import Task
from covey.model.task_states import TaskState as S
from scheduler import liveness, passes
from scheduler.passes import TASKS, Stage
from scheduler.writes import Group
from tests.scheduler.apply import World, busy


def tasks_of(group: Group) -> list[Task]:
    return [write.value for write in group.writes if isinstance(write.value, Task)]


def outcome(world: World) -> dict[str, Any]:
    """What a history leaves of each task, but for times, causes and versions."""
    return {
        task.id: (task.state, task.desired, task.node_id, task.networks, task.message, task.replaces)
        for task in world.snapshot.tasks.values()
    }


def test_a_new_task_is_written_once_with_its_node() -> None:
    world = World()
    world.node("n1")
    world.node("n2")
    world.step()
    world.service("s", replicas=4)
    work = world.plan_pass()
    assert [len(group.writes) for group in work.groups] == [1, 1, 1, 1]
    assert {write.expected_version for group in work.groups for write in group.writes} == {0}
    tasks = [task for group in work.groups for task in tasks_of(group)]
    assert {task.state for task in tasks} == {S.ASSIGNED}
    assert [task.node_id for task in tasks] == ["n1", "n1", "n2", "n2"], "those of one node are written together"
    world.write(work.groups)
    assert not world.plan_pass().groups, "fed its own result a pass wants nothing"


def test_a_task_goes_as_far_as_it_can_and_says_what_it_waits_for() -> None:
    world = World()
    world.service("homeless")
    world.service("cut-off", template={"ContainerSpec": {"Image": "a"}, "Networks": [{"Target": "missing"}]})
    states = {task.service_id: (task.state, task.message) for group in world.plan_pass().groups for task in tasks_of(group)}
    assert states["homeless"][0] == S.PENDING
    assert "no suitable node" in states["homeless"][1]
    assert states["cut-off"][0] == S.NEW
    assert "missing" in states["cut-off"][1]


def test_addresses_and_node_come_in_the_same_write() -> None:
    world = World()
    world.node("n1")
    world.network("net")
    world.step()
    world.service("s", template={"ContainerSpec": {"Image": "a"}, "Networks": [{"Target": "net"}]})
    (task,) = (task for group in world.plan_pass().groups for task in tasks_of(group))
    assert (task.state, task.node_id) == (S.ASSIGNED, "n1")
    assert task.networks[0].addresses


def test_a_successor_is_placed_in_the_write_that_retires_the_one_before() -> None:
    world = World()
    world.node("n1")
    world.step()
    world.service("s")
    world.run()
    (old,) = world.running("s")
    world.report(old.id, S.FAILED)
    (group,) = world.plan_pass().groups
    written = {task.id: task for task in tasks_of(group)}
    assert written[old.id].desired == S.SHUTDOWN
    (new,) = (task for task in written.values() if task.id != old.id)
    assert (new.replaces, new.state, new.node_id) == (old.id, S.ASSIGNED, "n1")
    assert new.cause.startswith(f"task {old.id} is failed"), "why it was made is kept"
    assert new.cause.endswith("placement: binpack")
    expected = {write.id: write.expected_version for write in group.writes}
    assert expected == {old.id: old.version, new.id: 0}


@pytest.mark.parametrize("seed", range(30))
def test_a_pass_comes_to_what_its_decisions_come_to_one_after_the_other(seed: int) -> None:
    together, apart = busy(random.Random(seed)), busy(random.Random(seed))
    for _ in range(4):
        work = together.plan_pass()
        keys = [write[:2] for group in work.groups for write in group.writes]
        assert len(keys) == len(set(keys)), "a key is written once"
        together.write(work.groups)
        for name in ("reconcile", "allocate", "placement"):
            apart.commit(apart.decide(name))
        assert outcome(together) == outcome(apart)
        for world in (together, apart):
            world.work()
            world.now += 6


def test_more_than_one_pass_makes_are_made_by_the_next() -> None:
    world = World()
    world.settings = type(world.settings)(pass_creates=3)
    for number in range(4):
        world.node(f"n{number}")
    world.step()
    world.service("s", replicas=7)
    made = []
    for _ in range(3):
        work = world.plan_pass()
        made.append(len(work.groups))
        assert (work.wake_at is not None and work.wake_at <= world.now) == (len(made) < 3), "the rest is due at once"
        world.write(work.groups)
    assert made == [3, 3, 1]
    assert {task.slot for task in world.tasks("s")} == set(range(1, 8))
    assert not world.plan_pass().groups


def test_a_pass_writes_so_much_and_says_that_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_GROUPS", 4)
    monkeypatch.setattr(passes, "SLICE", 3)
    world = World()
    world.node("n1")
    world.step()
    world.service("s", replicas=6)
    work = world.plan_pass()
    assert (len(work.groups), work.more) == (4, True)
    world.write(work.groups)
    work = world.plan_pass()
    assert (len(work.groups), work.more) == (2, False)


def test_what_no_speculative_snapshot_shows_ends_a_pass() -> None:
    world = World()
    world.node("n1")
    world.service("s")
    stages = (Stage("liveness", liveness.parts), *TASKS)
    work = world.plan_pass(stages)
    assert {write.kind for group in work.groups for write in group.writes} == {"node_status"}
    assert work.more, "the rest is decided once that is written"
    world.write(work.groups)
    assert {write.kind for group in world.plan_pass(stages).groups for write in group.writes} == {"task"}


def test_placement_takes_so_much_at_a_time_and_a_task_is_still_written_once() -> None:
    world = World()
    world.settings = type(world.settings)(pass_tasks=2)
    for number in range(3):
        world.node(f"n{number}")
    world.step()
    world.service("s", replicas=7)
    work = world.plan_pass()
    tasks = [task for group in work.groups for task in tasks_of(group)]
    assert len(tasks) == 7
    assert {task.state for task in tasks} == {S.ASSIGNED}
    counts = sorted(Counter(task.node_id for task in tasks).values())
    assert counts == [2, 2, 3], "each part sees what the ones before have spent"
    assert (work.more, work.wake_at) == (False, None)
