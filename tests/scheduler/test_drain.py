"""Nodes that are emptied step by step, what their return does, and replicas that move to where fewer stand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from covey.model.objects import Cluster, DrainPolicy, Rebalance, Task
from covey.model.task_states import TaskState as S
from scheduler.rebalance import moves
from tests.scheduler.apply import World


def cluster(nodes: int = 3, cpus: float = 8) -> World:
    world = World()
    for number in range(1, nodes + 1):
        world.node(f"n{number}", cpus=cpus)
    return world


def drain(world: World, node_id: str, **policy: Any) -> None:
    node = world.snapshot.nodes[node_id].node
    how = DrainPolicy(since=world.now, **policy) if policy else None
    world.put(msgspec.structs.replace(node, availability="drain", drain=how))
    world.settle()


def activate(world: World, node_id: str) -> None:
    world.put(msgspec.structs.replace(world.snapshot.nodes[node_id].node, availability="active", drain=None))
    world.settle()


def wanted_on(world: World, node_id: str) -> list[Task]:
    state = world.snapshot.state
    return [task for task in world.snapshot.tasks_on(node_id) if task.desired < S.SHUTDOWN and state(task) <= S.RUNNING]


def work_once(world: World) -> None:
    """One round of the workers, then the leader settles."""
    world.work()
    world.settle()


def filled(node_id: str = "n1", replicas: int = 4, **spec: Any) -> World:
    """All replicas of "web" run on one node, and two others are empty."""
    world = cluster(1)
    world.service("web", replicas=replicas, **spec)
    world.run()
    for number in (2, 3):
        world.node(f"n{number}", cpus=8)
    world.settle()
    return world


def test_a_plain_drain_moves_everything_at_once() -> None:
    world = filled()
    drain(world, "n1")
    assert wanted_on(world, "n1") == []


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_so_many_move_at_once_and_no_more(parallelism: int, order: str) -> None:
    world = filled()
    drain(world, "n1", parallelism=parallelism, order=order)
    least = 4
    for _ in range(20):
        least = min(least, len(world.running("web")))
        under_way = [
            task for task in world.tasks("web") if task.desired == S.RUNNING and world.snapshot.state(task) < S.RUNNING
        ]
        assert len(under_way) <= parallelism
        work_once(world)
    assert wanted_on(world, "n1") == []
    assert len(world.running("web")) == 4
    assert least == (4 if order == "start-first" else 4 - parallelism)


def test_a_move_goes_on_counting_when_the_task_it_began_beside_ends_by_itself() -> None:
    """Found by the simulation, seed 252."""
    world = filled(replicas=4)
    drain(world, "n1", parallelism=1, order="start-first")
    (new,) = (task for task in world.tasks("web") if task.attempt == 2)
    old = next(task for task in world.tasks("web") if task.slot == new.slot and task.attempt == 1)
    world.report(old.id, S.FAILED)
    world.settle()
    assert [task.id for task in world.tasks("web") if task.attempt == 2] == [new.id], "one at a time"


def test_the_order_is_each_services_own_unless_said() -> None:
    world = filled(replicas=1, UpdateConfig={"Order": "start-first"})
    drain(world, "n1", parallelism=1)
    (old,) = wanted_on(world, "n1")
    new = next(task for task in world.tasks("web") if task.id != old.id)
    assert (old.desired, new.desired, new.attempt) == (S.RUNNING, S.RUNNING, 2)
    world.run()
    assert [task.id for task in world.running("web")] == [new.id]


def test_a_successor_that_fails_leaves_the_old_one_running_and_is_tried_by_the_restart_policy() -> None:
    template = {"ContainerSpec": {"Image": "x"}, "RestartPolicy": {"Delay": 5 * 10**9, "MaxAttempts": 1}}
    world = filled(replicas=1, template=template)
    drain(world, "n1", parallelism=1, order="start-first")
    for expected in (S.READY, S.SHUTDOWN):
        new = world.tasks("web")[-1]
        world.now += 5
        world.settle()
        world.report(new.id, S.FAILED)
        world.settle()
        assert world.tasks("web")[-1].desired == expected
        assert len(wanted_on(world, "n1")) == 1
    world.settle()
    assert len(world.tasks("web")) == 3, "the policy allows one restart"


def test_without_room_elsewhere_nothing_is_stopped_before_the_deadline() -> None:
    world = cluster(2, cpus=1)
    whole = {"ContainerSpec": {"Image": "x"}, "Resources": {"Reservations": {"NanoCPUs": 10**9}}}
    world.service("web", replicas=2, template=whole)
    world.run()
    drain(world, "n1", parallelism=1, order="start-first", deadline=60.0)
    for _ in range(3):
        work_once(world)
        world.now += 15
    assert len(wanted_on(world, "n1")) == 1
    plan = world.decide("reconcile")
    assert plan.wake_at is not None
    assert plan.wake_at > world.now
    world.now = plan.wake_at
    world.settle()
    assert wanted_on(world, "n1") == []


def test_jobs_complete_where_they_are_until_the_deadline() -> None:
    world = cluster(1)
    for name, mode in (("one", {"ReplicatedJob": {}}), ("each", {"GlobalJob": {}})):
        world.service(name, Mode=mode)
    world.settle()
    world.node("n2")
    for name in ("one", "each"):
        world.report(world.tasks(name)[0].id, S.RUNNING)
    drain(world, "n1", parallelism=1, deadline=60.0)
    assert len(wanted_on(world, "n1")) == 2
    world.report(world.tasks("one")[0].id, S.COMPLETE)
    world.now += 60
    world.settle()
    assert wanted_on(world, "n1") == []
    assert len(world.tasks("one")) == 1, "it had completed"


def test_without_a_deadline_a_job_moves_like_others_never_two_at_a_time() -> None:
    world = cluster(1)
    world.service("one", Mode={"ReplicatedJob": {}})
    world.settle()
    world.node("n2")
    drain(world, "n1", parallelism=1, order="start-first")
    tasks = world.tasks("one")
    assert [task.desired for task in tasks] == [S.SHUTDOWN, S.COMPLETE]


def test_a_node_that_returns_keeps_what_is_left_and_gets_nothing_back() -> None:
    world = filled()
    drain(world, "n1", parallelism=1, order="start-first")
    work_once(world)
    activate(world, "n1")
    world.run()
    left = len(wanted_on(world, "n1"))
    assert 0 < left < 4
    assert len(world.running("web")) == 4
    before = {task.id for task in world.running("web")}
    world.run()
    assert {task.id for task in world.running("web")} == before


def test_a_node_being_drained_of_many_services_counts_them_together() -> None:
    world = cluster(1)
    for name in ("a", "b", "c"):
        world.service(name)
    world.run()
    world.node("n2", cpus=8)
    drain(world, "n1", parallelism=1)
    assert len(wanted_on(world, "n1")) == 2


def test_a_rebalance_evens_out_replicas_and_then_finds_nothing() -> None:
    world = filled(replicas=6)
    assert {move.origin for move in moves(world.snapshot, 10)} == {"n1"}
    assert len(moves(world.snapshot, 10)) == 4
    assert len(moves(world.snapshot, 3)) == 3, "the budget"
    asked = moves(world.snapshot, 10)
    held = world.snapshot.cluster
    assert held is not None
    world.put(msgspec.structs.replace(held, rebalance=Rebalance(tasks=tuple(m.task for m in asked))), key="cluster")
    world.settle()
    assert len([task for task in world.tasks("web") if task.desired >= S.SHUTDOWN]) == 1, "one at a time"
    for _ in range(20):
        work_once(world)
    assert sorted(len(wanted_on(world, f"n{n}")) for n in (1, 2, 3)) == [2, 2, 2]
    assert moves(world.snapshot, 10) == ()
    assert not world.decide("reconcile").changes


def test_what_wants_to_stand_together_or_fits_nowhere_else_is_not_moved() -> None:
    world = filled(replicas=4, template={"ContainerSpec": {"Image": "x"}, "Placement": {"Strategy": "pack"}})
    assert moves(world.snapshot, 10) == ()
    world = filled(replicas=4, template={"ContainerSpec": {"Image": "x"}, "Placement": {"Constraints": ["node.id==n1"]}})
    assert moves(world.snapshot, 10) == ()
    big = {"ContainerSpec": {"Image": "x"}, "Resources": {"Reservations": {"NanoCPUs": 2 * 10**9}}}
    world = cluster(1)
    world.service("web", replicas=3, template=big)
    world.run()
    world.node("n2", cpus=1)
    world.settle()
    assert moves(world.snapshot, 10) == ()


def test_an_old_order_names_tasks_that_are_gone_and_does_nothing() -> None:
    world = filled(replicas=2)
    world.put(Cluster(id="c", rebalance=Rebalance(tasks=("no-such-task",), parallelism=0)), key="cluster")
    assert not world.decide("reconcile").changes


def test_a_successor_of_an_update_that_must_leave_is_replaced_beside_the_old_task() -> None:
    world = filled(replicas=1, UpdateConfig={"Order": "start-first"})
    world.service("web", template={"ContainerSpec": {"Image": "new"}}, UpdateConfig={"Order": "start-first"})
    world.settle()
    successor = world.tasks("web")[-1]
    drain(world, successor.node_id, parallelism=1)
    held = [task for task in world.tasks("web") if task.desired < S.SHUTDOWN]
    assert [task.attempt for task in held] == [1, 3]
    world.run()
    assert len(world.running("web")) == 1
