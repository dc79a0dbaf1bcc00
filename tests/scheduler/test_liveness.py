"""When a node is down, and what else could be the matter."""

import pytest

from covey.model.objects import Leader
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import World


def cluster(nodes: int = 5) -> World:
    world = World()
    for number in range(nodes):
        world.node(f"n{number}")
    world.settle()
    return world


def state(world: World, node: str) -> str:
    status = world.snapshot.node_statuses.get(node)
    return status.state if status else ""


def down_after(world: World, node: str, step: float = 0.25) -> float:
    """Seconds from now until ``node`` is down."""
    began = world.now
    while state(world, node) != "down":
        world.now += step
        world.settle()
        assert world.now - began < 300
    return world.now - began


def test_a_node_without_a_session_is_nothing_yet_and_ready_with_one() -> None:
    world = cluster(1)
    world.node("new", session=False)
    world.settle()
    assert (state(world, "n0"), state(world, "new")) == ("ready", "")


def test_a_silent_node_is_unknown_then_down_within_swarm_s_time() -> None:
    world = cluster()
    world.drop("session", "n1")
    world.settle()
    assert state(world, "n1") == "unknown"
    assert not world.snapshot.nodes["n1"].ready
    wake = world.decide("liveness").wake_at
    assert wake is not None
    total = world.settings.session_silence + down_after(world, "n1")
    assert 13.5 <= total <= 16.75
    assert wake <= world.now


def test_a_session_that_comes_back_in_time_is_no_more_than_that() -> None:
    world = cluster()
    world.service("web", replicas=5)
    world.run()
    before = {t.id for t in world.running("web")}
    world.drop("session", "n1")
    world.settle()
    world.now += 5
    world.settle()
    world.session("n1")
    world.now += 60
    world.run()
    assert state(world, "n1") == "ready"
    assert {t.id for t in world.running("web")} == before


def test_tasks_of_a_node_that_is_down_are_orphaned_at_once() -> None:
    world = cluster()
    world.service("web", replicas=5)
    world.run()
    world.drop("session", "n1")
    world.settle()
    down_after(world, "n1")
    lost = [t for t in world.tasks("web") if t.node_id == "n1"]
    assert [t.state for t in lost] == [S.ORPHANED]
    assert lost[0].message == "node n1 is down"


@pytest.mark.parametrize("trouble", ["new leader", "many at once"])
def test_the_grace_is_doubled_when_the_trouble_may_be_ours(trouble: str) -> None:
    world = cluster()
    usual = down_usually()
    if trouble == "new leader":
        world.now += 1
        world.put(Leader(node_id="m2", elected_at=world.now), key="leader")
        world.drop("session", "n1")
    else:
        for node in ("n1", "n2", "n3"):
            world.drop("session", node)
    world.settle()
    assert 1.6 * usual <= down_after(world, "n1") <= 2.5 * usual


def test_a_node_that_the_new_leader_has_met_gets_the_usual_grace() -> None:
    world = World()
    world.put(Leader(node_id="m1", elected_at=world.now - 1), key="leader")
    for number in range(5):
        world.node(f"n{number}")
    world.settle()
    world.drop("session", "n1")
    world.settle()
    assert down_after(world, "n1") <= 1.5 * down_usually()


def test_a_new_leader_gives_a_missing_node_its_grace_anew() -> None:
    world = cluster()
    world.drop("session", "n1")
    world.settle()
    world.now += 5
    world.put(Leader(node_id="m2", elected_at=world.now), key="leader")
    world.settle()
    assert down_after(world, "n1") >= 1.6 * down_usually()


def test_the_grace_grows_when_the_others_follow() -> None:
    world = cluster()
    world.drop("session", "n1")
    world.settle()
    world.now += 1
    world.drop("session", "n2")
    world.drop("session", "n3")
    world.settle()
    assert down_after(world, "n1") >= 1.6 * down_usually() - 1


def down_usually() -> float:
    world = cluster()
    world.drop("session", "n1")
    world.settle()
    return down_after(world, "n1")


def test_its_own_lateness_is_no_node_s_fault() -> None:
    world = cluster()
    world.drop("session", "n1")
    world.settle()
    world.now += 20
    plan = world.decide("liveness", late=15.0)
    world.commit(plan)
    assert state(world, "n1") == "unknown"
    assert not world.decide("liveness", late=15.0)
    world.session("n1")
    world.settle()
    assert state(world, "n1") == "ready"


def test_a_leader_that_is_always_late_declares_dead_nodes_down_all_the_same() -> None:
    world = cluster()
    world.drop("session", "n1")
    for _ in range(200):
        world.commit(world.decide("liveness", late=2.0))
        world.now += 1
    assert state(world, "n1") == "down"


def test_a_removed_node_loses_its_tasks_and_its_records() -> None:
    world = cluster(2)
    world.service("web", replicas=2)
    world.run()
    world.drop("node", "n1")
    world.run()
    assert [t.node_id for t in world.running("web")] == ["n0", "n0"]
    assert "n1" not in world.snapshot.node_statuses
    assert "n1" not in world.snapshot.node_infos
    assert all(t.node_id != "n1" for t in world.tasks("web"))
