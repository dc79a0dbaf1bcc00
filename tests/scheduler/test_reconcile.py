"""Which tasks should exist: slots filled, given up, replaced and healed."""

import msgspec
import pytest

from covey.model.objects import Node
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import World

PINNED = {"ContainerSpec": {"Image": "x"}, "Placement": {"Constraints": ["node.labels.disk == fast"]}}


def cluster(nodes: int = 3) -> World:
    world = World()
    for number in range(1, nodes + 1):
        world.node(f"n{number}")
    return world


def slots(world: World, service: str = "web") -> list[int]:
    return [task.slot for task in world.running(service)]


def test_replicas_fill_slots_from_one() -> None:
    world = cluster()
    world.service("web", replicas=3)
    world.run()
    assert slots(world) == [1, 2, 3]
    assert len({t.node_id for t in world.running("web")}) == 3


def test_scaling_down_gives_up_what_does_not_run_then_the_fullest_node() -> None:
    world = cluster(2)
    world.service("web", replicas=4)
    world.run()
    stuck = world.running("web")[0]
    world.report(stuck.id, S.FAILED)
    world.settle()
    world.service("web", replicas=3)
    world.run()
    assert slots(world) == [2, 3, 4]
    assert all(t.slot != stuck.slot for t in world.tasks("web")), "history of a slot that is given up goes too"
    by_node = [t.node_id for t in world.running("web")]
    fullest = max(set(by_node), key=by_node.count)
    world.service("web", replicas=2)
    world.run()
    assert sorted({t.node_id for t in world.running("web")}) == ["n1", "n2"]
    assert fullest in {t.node_id for t in world.running("web")}


def test_ids_of_a_slot_that_was_given_up_never_come_again() -> None:
    world = cluster()
    seen: set[str] = set()
    for replicas in (3, 1, 3, 1, 3):
        world.service("web", replicas=replicas)
        world.run()
        fresh = {t.id for t in world.tasks("web") if t.slot > 1}
        assert not fresh & seen
        seen |= fresh


def test_a_removed_service_leaves_nothing() -> None:
    world = cluster()
    world.network("net")
    world.service("web", replicas=3, EndpointSpec={"Ports": [{"TargetPort": 80}]})
    world.run()
    world.drop("service", "web")
    world.settle()
    assert {t.desired for t in world.tasks("web")} == {S.REMOVE}
    world.run()
    assert not world.snapshot.tasks
    assert not world.snapshot.statuses
    assert not world.snapshot.service_allocations


def test_a_drained_node_is_replaced_at_once_and_a_paused_one_keeps_what_it_has() -> None:
    world = cluster(2)
    world.service("web", replicas=2)
    world.run()
    for availability, expected in (("pause", {"n1", "n2"}), ("drain", {"n2"})):
        node = world.snapshot.nodes["n1"].node
        world.put(msgspec.structs.replace(node, availability=availability))
        world.settle()
        assert {t.desired for t in world.tasks("web") if t.node_id == "n1"} == (
            {S.RUNNING} if availability == "pause" else {S.SHUTDOWN}
        )
        world.run()
        assert {t.node_id for t in world.running("web")} == expected
    assert all(not t.not_before for t in world.running("web"))


def test_a_paused_node_gets_nothing_new() -> None:
    world = cluster(2)
    world.put(Node(id="n1", availability="pause"))
    world.service("web", replicas=3)
    world.run()
    assert {t.node_id for t in world.running("web")} == {"n2"}


def test_a_lost_node_is_refilled_without_the_delay() -> None:
    world = cluster(2)
    world.service("web", replicas=2)
    world.run()
    world.drop("session", "n1")
    world.settle()
    world.now += 60
    world.run()
    running = world.running("web")
    assert [t.node_id for t in running] == ["n2", "n2"]
    assert all(not t.not_before for t in running)
    orphan = next(t for t in world.tasks("web") if t.node_id == "n1")
    assert (orphan.state, orphan.desired) == (S.ORPHANED, S.SHUTDOWN)


def test_an_orphan_that_comes_back_is_stopped_and_the_slot_stays_with_its_successor() -> None:
    world = cluster(2)
    world.service("web", replicas=2)
    world.run()
    world.drop("session", "n1")
    world.settle()
    world.now += 60
    world.run()
    orphan = next(t for t in world.tasks("web") if t.node_id == "n1")
    world.session("n1")
    world.settle()
    assert world.snapshot.tasks[orphan.id].desired == S.SHUTDOWN
    world.report(orphan.id, S.SHUTDOWN)
    world.run()
    assert slots(world) == [1, 2]


def test_two_wanted_tasks_in_a_slot_become_one() -> None:
    world = cluster()
    world.service("web", replicas=1)
    world.run()
    first = world.running("web")[0]
    world.put(msgspec.structs.replace(first, id="twin", attempt=2, version=0))
    world.settle()
    assert [t.id for t in world.tasks("web") if t.desired == S.RUNNING] == [first.id], "the one that runs is kept"


def test_global_services_follow_the_nodes() -> None:
    world = cluster(2)
    world.node("n9", session=False)
    world.service("agent", Mode={"Global": {}})
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n1", "n2"}
    world.node("n3")
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n1", "n2", "n3"}
    world.put(Node(id="n1", availability="drain"))
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n2", "n3"}
    world.put(Node(id="n1"))
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n1", "n2", "n3"}
    world.drop("node", "n2")
    world.drop("session", "n2")
    world.run()
    assert {t.node_id for t in world.tasks("agent")} == {"n1", "n3"}
    assert "n2" not in world.snapshot.node_statuses


def test_a_global_task_waits_for_its_node_to_come_back() -> None:
    world = cluster(2)
    world.service("agent", Mode={"Global": {}})
    world.run()
    world.drop("session", "n1")
    world.settle()
    world.now += 60
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n2"}
    world.session("n1")
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n1", "n2"}


def test_global_services_obey_constraints_also_later() -> None:
    world = cluster(2)
    world.put(Node(id="n1", labels={"disk": "fast"}))
    world.service("agent", Mode={"Global": {}}, template=PINNED)
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n1"}
    world.put(Node(id="n1"))
    world.put(Node(id="n2", labels={"disk": "fast"}))
    world.run()
    assert {t.node_id for t in world.running("agent")} == {"n2"}


@pytest.mark.parametrize(("order", "most"), [("stop-first", 0), ("start-first", 0)])
@pytest.mark.parametrize("parallelism", [1, 2, 0])
def test_an_update_replaces_as_many_as_it_may_at_once(order: str, most: int, parallelism: int) -> None:
    world = cluster()
    config = {"Parallelism": parallelism, "Order": order}
    world.service("web", replicas=4, UpdateConfig=config)
    world.run()
    world.service("web", replicas=4, UpdateConfig=config, template={"ContainerSpec": {"Image": "new"}})
    worst_changing, fewest = 0, 4
    for _ in range(60):
        world.settle()
        old = [t for t in world.tasks("web") if t.spec_version == 1 and t.desired == S.RUNNING]
        new_running = [t for t in world.running("web") if t.spec_version == 2]
        new_starting = [t for t in world.tasks("web") if t.spec_version == 2 and t not in new_running]
        worst_changing = max(worst_changing, len(new_starting))
        fewest = min(fewest, len(old) + len(new_running))
        if not world.work():
            break
    assert {t.spec_version for t in world.running("web")} == {2}
    assert slots(world) == [1, 2, 3, 4]
    assert worst_changing == (parallelism or 4)
    if order == "start-first":
        assert fewest == 4
    else:
        assert fewest == 4 - (parallelism or 4)
    world.now += 5
    world.settle()
    update = world.snapshot.service_statuses["web"].update
    assert update is not None
    assert update.state == "completed"


def test_an_update_that_changes_only_the_replicas_replaces_nothing() -> None:
    world = cluster()
    world.service("web", replicas=2)
    world.run()
    before = {t.id for t in world.running("web")}
    world.service("web", replicas=3)
    world.run()
    assert before < {t.id for t in world.running("web")}
    assert "web" not in world.snapshot.service_statuses


def test_a_start_first_update_whose_tasks_fail_keeps_the_old_ones_and_waits_between_tries() -> None:
    world = cluster()
    config = {"Parallelism": 1, "Order": "start-first", "FailureAction": "continue"}
    world.service("web", replicas=1, UpdateConfig=config)
    world.run()
    world.service("web", replicas=1, UpdateConfig=config, template={"ContainerSpec": {"Image": "bad"}})
    for _ in range(3):
        world.settle()
        for task in world.tasks("web"):
            if task.spec_version == 2 and world.snapshot.state(task) < S.RUNNING and task.desired == S.RUNNING:
                world.report(task.id, S.FAILED)
        world.settle()
        assert [t.spec_version for t in world.running("web")] == [1]
        newest = world.tasks("web")[-1]
        assert (newest.desired, newest.not_before) == (S.READY, world.now + 5)
        world.now += 5
