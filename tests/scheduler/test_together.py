"""Groups of services: who belongs to one, whom it waits for, and that it is written as one."""

from __future__ import annotations

import dataclasses

import pytest

from covey.model.task_states import TaskState as S
from scheduler.passes import TASKS, Pass
from scheduler.plan import AssignTasks
from scheduler.verify import verify
from scheduler.writes import groups
from tests.scheduler.apply import World
from tests.scheduler.test_placement import asking, cluster, message, places


def test_a_service_that_is_stopped_is_not_waited_for() -> None:
    world = cluster(2)
    world.service("a", replicas=2, template=asking(Group="job"), Labels={"covey.stopped": "true"})
    world.service("b", replicas=2, template=asking(Group="job"))
    world.run()
    assert len(places(world, "b")) == 2


def test_a_service_that_has_left_the_group_does_not_hold_it_up_with_what_it_made_before() -> None:
    world = cluster(2, cpus=2)
    world.service("large", replicas=2, template=asking(cpus=9, Group="job"))
    world.service("b", replicas=2, template=asking(cpus=1, Group="job"))
    world.run()
    assert places(world, "b") == []
    world.service("large", replicas=2, template=asking(cpus=9))
    world.commit(world.decide("placement"))
    assert len([task for task in world.tasks("b") if task.state == S.ASSIGNED]) == 2


def test_a_service_that_joins_the_group_brings_what_it_made_before() -> None:
    """What it made before counts, until its update has replaced it."""
    world = cluster(2, cpus=2)
    world.service("filler", replicas=2, template=asking(cpus=2))
    world.run()
    world.service("a", replicas=3, template=asking(cpus=1))
    world.run()
    world.service("a", replicas=3, template=asking(cpus=1, Group="job"), UpdateConfig={"Parallelism": 1})
    world.commit(world.decide("placement"))
    assert message(world, "a").startswith("group job has no place for all of its tasks together")
    world.run()
    assert places(world, "a") == []
    world.service("filler", replicas=1, template=asking(cpus=2))
    world.run()
    assert places(world, "a") == [], "two of three have room"
    world.service("filler", replicas=0, template=asking(cpus=2))
    world.run()
    assert len(places(world, "a")) == 3


def test_an_update_of_what_waits_for_its_group_does_not_wait_for_it_slot_by_slot() -> None:
    world = cluster(2, cpus=2)
    world.service("a", replicas=3, template=asking(cpus=9, Group="job"), UpdateConfig={"Parallelism": 1})
    world.run()
    world.service("a", replicas=3, template=asking(cpus=1, Group="job"), UpdateConfig={"Parallelism": 1})
    world.run()
    assert len(places(world, "a")) == 3


def test_what_has_done_its_work_is_not_waited_for() -> None:
    world = cluster(2)
    template = {**asking(Group="job"), "RestartPolicy": {"Condition": "on-failure", "Delay": 0}}
    world.service("a", replicas=3, template=template)
    world.run()
    done, also, failed = world.running("a")
    for task, state in ((done, S.COMPLETE), (also, S.COMPLETE), (failed, S.FAILED)):
        world.report(task.id, state)
    world.run()
    assert len(places(world, "a")) == 1


def test_who_is_to_start_after_another_of_the_group_is_not_waited_for() -> None:
    world = cluster(2)
    world.service("db", template=asking(Group="job"))
    world.service("web", template=asking(Group="job"), DependsOn=[{"Service": "db"}])
    world.service("other", template=asking(Group="two"), DependsOn=[{"Service": "missing"}])
    world.service("third", template=asking(Group="two"))
    world.run()
    assert len(places(world, "db")) == len(places(world, "web")) == 1
    assert places(world, "third") == []
    assert message(world, "third") == "group two waits for all of its tasks: 1 of 2 are there"


def one_pass(world: World) -> list[tuple[str, ...]]:
    """The ids of tasks that get their nodes in the next pass, by what is written together."""
    work = Pass(world.snapshot, world.now, world.settings, TASKS)
    for _ in work.steps():
        pass
    written = [tuple(w.id for w in group.writes if getattr(w.value, "state", None) == S.ASSIGNED) for group in work.groups]
    return [ids for ids in written if ids]


@pytest.mark.parametrize(("replicas", "transactions"), [(20, 1), (21, 42)])
def test_a_group_is_written_at_once_if_one_transaction_can_hold_it(replicas: int, transactions: int) -> None:
    world = cluster(3)
    world.run()
    for name in ("a", "b"):
        world.service(name, replicas=replicas, template=asking(Group="job"))
    assert len(one_pass(world)) == transactions


def test_a_group_of_very_large_specs_is_not_written_at_once() -> None:
    world = cluster(3)
    world.run()
    template = asking(Group="job")
    template["ContainerSpec"] = {"Image": "x", "Env": ["BLOB=" + "x" * 30_000]}
    world.service("a", replicas=20, template=template)
    assert len(one_pass(world)) == 20


def test_of_a_group_of_which_one_cannot_have_its_node_any_more_nobody_is_placed() -> None:
    world = cluster(2, cpus=2)
    world.service("a", replicas=3, template=asking(cpus=1, Group="job"))
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    plan = world.decide("placement")
    (change,) = plan.changes
    assert isinstance(change, AssignTasks)
    assert len(list(groups(plan, world.snapshot, world.now))) == 1
    spoilt = dataclasses.replace(plan, changes=(dataclasses.replace(change, node_ids=("n1", "n1", "n1")), change))
    accepted, refused = verify(spoilt, world.snapshot)
    assert accepted.changes == (change,), "and what was counted for them is free again"
    assert len(refused) == 1
