"""A plan that was right a moment ago: what still holds is accepted, the rest refused with a reason."""

import msgspec
import pytest

from covey.model.objects import Node, NodeStatus
from covey.model.task_states import TaskState as S
from scheduler.plan import (
    AllocateTasks,
    AssignTasks,
    CreateTasks,
    DeleteTasks,
    DropStatus,
    MoveTasks,
    Plan,
    PutNodeStatus,
)
from scheduler.verify import verify
from scheduler.writes import groups
from tests.scheduler.apply import World


def pending() -> World:
    """Two pending tasks that ask for one CPU each, two nodes with one and a half."""
    world = World()
    for name in ("n1", "n2"):
        world.node(name, cpus=1.5)
    template = {"ContainerSpec": {"Image": "x"}, "Resources": {"Reservations": {"NanoCPUs": 10**9}}}
    world.service("web", replicas=2, template=template)
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    return world


def test_what_holds_is_the_same_plan() -> None:
    world = pending()
    plan = world.decide("placement")
    assert verify(plan, world.snapshot) == (plan, ())


def test_an_assignment_to_a_node_that_left_is_refused_and_the_other_kept() -> None:
    world = pending()
    plan = world.decide("placement")
    world.put(Node(id="n1", availability="drain"))
    accepted, refusals = verify(plan, world.snapshot)
    assert [change.node_ids for change in accepted.changes if isinstance(change, AssignTasks)] == [("n2",)]
    assert [refusal.why for refusal in refusals] == ["no suitable node (1 node not available for new tasks)"]


def test_assignments_that_do_not_fit_together_are_accepted_as_far_as_they_do() -> None:
    world = pending()
    ids = tuple(world.snapshot.tasks)
    crowded = AssignTasks(ids, ("n1", "n1"), "test")
    accepted, refusals = verify(Plan(0, (crowded,)), world.snapshot)
    assert accepted.changes == (AssignTasks(ids[:1], ("n1",), "test"),)
    assert [refusal.why for refusal in refusals] == ["no suitable node (insufficient resources on 1 node)"]


def test_an_assigned_task_is_not_assigned_again() -> None:
    world = pending()
    plan = world.decide("placement")
    world.commit(plan)
    accepted, refusals = verify(plan, world.snapshot)
    assert not accepted
    assert {refusal.why for refusal in refusals} == {"the task is assigned and desired running"}


def test_desired_states_do_not_fall_and_the_dead_do_not_rise() -> None:
    world = pending()
    ids = tuple(world.snapshot.tasks)
    for wish in (MoveTasks(ids, "", desired=S.READY), MoveTasks(ids, "", state=S.NEW), MoveTasks(("no",), "")):
        accepted, refusals = verify(Plan(0, (wish,)), world.snapshot)
        assert not accepted
        assert len(refusals) == len(wish.ids)


def test_a_task_on_a_node_that_is_back_is_not_orphaned() -> None:
    world = pending()
    world.run()
    task = world.running("web")[0]
    wish = Plan(0, (MoveTasks((task.id,), "", state=S.ORPHANED),))
    assert not verify(wish, world.snapshot)[0]
    world.put(NodeStatus(id=task.node_id, state="down"))
    assert verify(wish, world.snapshot)[0]


def test_a_node_that_opened_a_session_is_not_put_down() -> None:
    world = pending()
    wish = Plan(0, (PutNodeStatus(NodeStatus(id="n1", state="down"), ""),))
    assert not verify(wish, world.snapshot)[0]
    world.drop("session", "n1")
    assert verify(wish, world.snapshot)[0]


def test_wanted_tasks_are_not_deleted_nor_those_that_may_run() -> None:
    world = pending()
    world.run()
    task = world.running("web")[0]
    wish = Plan(0, (DeleteTasks((task.id,), ""),))
    assert not verify(wish, world.snapshot)[0]
    world.put(msgspec.structs.replace(task, desired=S.REMOVE))
    assert not verify(wish, world.snapshot)[0]
    world.report(task.id, S.SHUTDOWN)
    assert verify(wish, world.snapshot)[0]


def test_tasks_are_not_made_twice_nor_for_what_is_gone() -> None:
    world = World()
    world.service("web", replicas=2)
    plan = world.decide("reconcile")
    change = plan.changes[0]
    assert isinstance(change, CreateTasks)
    first = next(change.tasks())
    world.put(first)
    accepted, refusals = verify(plan, world.snapshot)
    assert [c.slots for c in accepted.changes if isinstance(c, CreateTasks)] == [(2,)]
    assert [refusal.id for refusal in refusals] == [first.id]
    world.drop("task", first.id)
    world.put(msgspec.structs.replace(first, id="later", attempt=2))
    assert verify(plan, world.snapshot)[1][0].why == "its slot has the later task later"
    world.drop("service", "web")
    assert not verify(plan, world.snapshot)[0]


@pytest.mark.parametrize(
    "change",
    [
        AllocateTasks(("gone",), ((),), ""),
        DropStatus("service_status", "web", ""),
        DropStatus("node_status", "n1", ""),
    ],
)
def test_owners_are_looked_at(change: AllocateTasks | DropStatus) -> None:
    world = pending()
    accepted, refusals = verify(Plan(0, (change,)), world.snapshot)
    assert (accepted.changes, len(refusals)) == ((), 1)


def test_a_successor_and_the_end_of_its_predecessor_are_one_group() -> None:
    world = pending()
    world.run()
    first = world.running("web")[0]
    world.report(first.id, S.FAILED)
    plan = world.decide("reconcile")
    (group,) = groups(plan, world.snapshot, world.now)
    assert [(w.kind, w.expected_version) for w in group.writes] == [("task", 0), ("task", first.version)]
    assert group.cause == f"task {first.id} is failed: restarted after 5 s"


def test_what_changes_nothing_is_not_written() -> None:
    world = pending()
    world.run()
    task = world.running("web")[0]
    status = world.snapshot.node_statuses["n1"]
    same = (
        MoveTasks((task.id,), "", message=task.message),
        PutNodeStatus(msgspec.structs.replace(status, version=0), ""),
    )
    assert list(groups(Plan(0, same), world.snapshot, world.now)) == []
