"""Rolling updates and rollbacks: every parameter, their interplay, and that no leader carries anything in its head."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from covey.model import versions
from covey.model.objects import Name, Node
from covey.model.resources import NANO
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import World
from tests.scheduler.rollouts import Rollout, policy


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("parallelism", [0, 1, 2, 3])
def test_at_most_so_many_slots_are_down_and_none_if_new_tasks_start_first(parallelism: int, order: str) -> None:
    world = Rollout(5, policy(Parallelism=parallelism, Order=order))
    world.ask("v2")
    world.live(20)
    assert world.images() == ["v2"] * 5
    assert world.most_down == (0 if order == "start-first" else parallelism or 5)
    assert (world.state, world.status.message) == ("completed", "update completed")


def test_the_delay_lies_between_a_task_that_runs_and_the_next_batch() -> None:
    world = Rollout(4, policy(Parallelism=2, Delay=10))
    began = world.now
    world.ask("v2")
    world.live(0)
    assert world.images().count("v2") == 2
    world.live(9.5)
    assert world.images().count("v2") == 2
    assert world.decide("reconcile").wake_at == began + 10
    world.live(1)
    assert world.images().count("v2") == 4


def test_an_update_is_complete_when_the_last_task_has_been_watched_for_the_monitor() -> None:
    world = Rollout(2, policy(Parallelism=0, Monitor=7))
    began = world.now
    world.ask("v2")
    world.live(6.5)
    assert (world.state, world.status.message, world.status.started_at) == ("updating", "update in progress", began)
    assert world.decide("reconcile").wake_at == began + 7
    world.live(1)
    assert (world.state, world.status.completed_at) == ("completed", began + 7)


@pytest.mark.parametrize("image", ["bad", "slow"])
def test_the_first_failure_pauses_and_the_rest_stays_as_it_is(image: str) -> None:
    world = Rollout(4, policy(Parallelism=1, Delay=2))
    world.ask(image)
    world.live(12)
    assert world.state == "paused"
    failed = next(t for t in world.tasks("web") if t.rollout == 2)
    assert world.status.message == f"update paused due to failure or early termination of task {failed.id}"
    assert world.images().count("v1") == 3


def test_who_fails_after_the_monitor_is_no_failure_of_the_update() -> None:
    world = Rollout(3, policy(Parallelism=1, Monitor=2))
    world.lasts = 3.0
    world.ask("slow")
    world.live(30)
    assert "v1" not in world.images()
    assert world.state == "completed"


def test_with_action_continue_failures_stop_nothing() -> None:
    world = Rollout(3, policy(Parallelism=1, FailureAction="continue"))
    world.ask("bad")
    world.live(30)
    assert world.images() == []
    assert world.state == "completed"


@pytest.mark.parametrize(("ratio", "failing", "paused"), [(0.5, 2, False), (0.5, 3, True), (0.25, 1, False), (0.25, 2, True)])
def test_so_large_a_share_of_the_slots_may_fail(ratio: float, failing: int, paused: bool) -> None:
    world = Rollout(4, policy(Parallelism=4, MaxFailureRatio=ratio))
    world.ask("v2")
    world.settle()
    world.work()
    world.settle()
    for task in [t for t in world.tasks("web") if t.spec_version == 2][:failing]:
        world.report(task.id, S.FAILED)
    world.live(20)
    assert world.state == ("paused" if paused else "completed")


def test_a_slot_that_crashes_again_and_again_is_one_failure() -> None:
    world = Rollout(4, policy(Parallelism=1, MaxFailureRatio=0.25, Delay=30))
    world.ask("v2")
    world.settle()
    world.work()
    world.settle()
    for _ in range(12):
        for task in [t for t in world.running("web") if t.slot == 1] or [world.tasks("web")[0]]:
            if world.snapshot.state(task) <= S.RUNNING:
                world.report(task.id, S.FAILED)
        world.live(1.5)
    assert world.state == "updating"
    assert any(t.rollout for t in world.tasks("web") if t.slot == 1), "what it did is not forgotten meanwhile"


def test_a_failure_rolls_back_with_the_rollback_s_own_parameters() -> None:
    world = Rollout(4, policy(Parallelism=2, FailureAction="rollback"), policy(Parallelism=1, Monitor=2, Delay=3))
    old = dict(world.snapshot.services["web"].spec)
    world.ask("bad")
    began = world.now
    world.live(0)
    service = world.snapshot.services["web"]
    assert service.spec == old
    assert (service.previous_spec, service.spec_version, service.generation) == (None, 1, 3)
    assert (world.state, world.status.generation, world.status.started_at) == ("rollback_started", 3, began)
    assert world.status.message.startswith("update rolled back due to failure or early termination of task ")
    kept = world.index.objects("past_spec")["web.2"]
    assert kept.spec["TaskTemplate"]["ContainerSpec"]["Image"] == "bad"  # type: ignore[attr-defined]
    world.live(8)
    assert world.images() == ["v1"] * 4
    assert (world.state, world.status.message) == ("rollback_completed", "rollback completed")
    assert world.most_down == 2


def test_a_rollback_that_fails_is_paused_and_never_rolled_back() -> None:
    world = Rollout(3, policy(Parallelism=2, FailureAction="rollback"), policy(Parallelism=1))
    world.ask("bad-1")
    world.settle()
    for task in [t for t in world.tasks("web") if t.spec_version == 2]:
        if world.snapshot.state(task) >= S.ASSIGNED and task.desired == S.READY:
            world.report(task.id, S.FAILED)
    world.settle()
    assert world.state == "rollback_started"
    for _ in range(3):
        for task in [t for t in world.tasks("web") if t.rollout == 3]:
            if world.snapshot.state(task) <= S.RUNNING:
                world.report(task.id, S.FAILED)
        world.settle()
    assert world.state == "rollback_paused"
    assert world.status.message.startswith("rollback paused due to failure or early termination of task ")


def test_a_service_that_cannot_be_rolled_back_is_paused_and_says_why() -> None:
    ports = {"EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}}
    world = Rollout(2, policy(FailureAction="rollback"), **ports)
    world.ask("bad", EndpointSpec={"Ports": []})
    world.put(Name(id="other"), key="port/8080%2Ftcp")
    world.live(3)
    assert world.state == "paused"
    assert world.status.message.endswith("cannot be rolled back: port 8080/tcp is in use by service other now")


def test_a_rollback_takes_its_ports_back_and_gives_up_the_others() -> None:
    world = Rollout(2, policy(FailureAction="rollback"), EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]})
    world.ask("bad", EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 9090}]})
    world.put(Name(id="web"), key="port/9090%2Ftcp")
    world.live(3)
    assert set(world.snapshot.names) == {"port/8080%2Ftcp"}


def rolled_back(world: Rollout) -> None:
    service = world.snapshot.services["web"]
    world.put(versions.reverted(service, versions.previous(service), world.now))


def test_a_rollback_by_request_swaps_the_specs() -> None:
    world = Rollout(3, policy(Parallelism=1))
    world.ask("v2")
    world.live(20)
    rolled_back(world)
    world.live(0)
    assert (world.state, world.status.message) == ("rollback_started", "manually requested rollback")
    world.live(6)
    assert world.state == "rollback_completed"
    assert world.images() == ["v1"] * 3
    rolled_back(world)
    world.live(20)
    assert world.images() == ["v2"] * 3


def test_a_rollback_before_anything_was_replaced_replaces_nothing() -> None:
    world = Rollout(3, policy(Parallelism=1))
    before = {t.id for t in world.running("web")}
    world.ask("v2")
    rolled_back(world)
    world.live(0)
    assert world.state == "rollback_completed"
    assert {t.id for t in world.tasks("web")} == before


def test_a_newer_update_supersedes_one_that_is_going_on() -> None:
    world = Rollout(4, policy(Parallelism=2))
    world.ask("v2")
    world.settle()
    world.ask("v3")
    world.live(20)
    assert world.images() == ["v3"] * 4
    assert world.most_down == 2
    assert world.state == "completed"
    assert sum(t.spec_version == 2 for t in world.tasks("web")) <= 2


@pytest.mark.parametrize("same", [False, True])
def test_the_next_update_resumes_one_that_is_paused(same: bool) -> None:
    world = Rollout(3, policy(Parallelism=1))
    world.ask("bad")
    world.live(5)
    assert world.state == "paused"
    if same:
        world.replicas = 4
        world.ask("bad")
        world.live(0)
        assert world.status.generation == 3
        assert len({t.slot for t in world.tasks("web") if t.rollout == 3}) == 1
    else:
        world.ask("v3")
        world.live(30)
        assert world.images() == ["v3"] * 3
        assert world.state == "completed"


def test_a_forced_update_replaces_tasks_that_are_as_they_should_be() -> None:
    world = Rollout(3, policy(Parallelism=1))
    before = {t.id for t in world.running("web")}
    template = {**world.snapshot.services["web"].spec["TaskTemplate"], "ForceUpdate": 1}
    world.service("web", replicas=3, template=template, **world.asked)
    world.live(20)
    assert len(world.running("web")) == 3
    assert not before & {t.id for t in world.running("web")}
    assert world.most_down == 1


def test_a_change_of_constraints_replaces_only_tasks_whose_node_does_not_meet_them() -> None:
    world = Rollout(3, policy(Parallelism=1))
    template = dict(world.snapshot.services["web"].spec["TaskTemplate"])
    template["Placement"] = {"Constraints": ["node.hostname != n1"]}
    before = {t.node_id: t.id for t in world.running("web")}
    world.service("web", replicas=3, template=template, **world.asked)
    world.live(20)
    after = {t.id for t in world.running("web")}
    assert after & set(before.values()) == {before["n2"], before["n3"]}
    assert len(after) == 3


def test_platforms_that_come_and_go_replace_nothing_while_the_nodes_are_such() -> None:
    """``docker stack deploy --resolve-image changed`` keeps an image's digest and drops the platforms that came with it."""
    world = Rollout(3, policy(Parallelism=1))
    before = {t.id for t in world.running("web")}
    template = dict(world.snapshot.services["web"].spec["TaskTemplate"])
    for placement in ({"Platforms": [{"Architecture": "amd64", "OS": "linux"}]}, {}):
        world.service("web", replicas=3, template={**template, "Placement": placement}, **world.asked)
        world.live(20)
        assert {t.id for t in world.running("web")} == before
    other = {"Platforms": [{"Architecture": "riscv64", "OS": "linux"}]}
    world.service("web", replicas=3, template={**template, "Placement": other}, **world.asked)
    world.live(20)
    assert len(world.running("web")) == 2, "the first to be replaced finds no node, and the others stay"


def test_a_change_that_replaces_nothing_has_no_update_status() -> None:
    world = Rollout(3)
    world.replicas = 5
    world.ask("v1")
    world.live(2)
    assert len(world.running("web")) == 5
    assert world.shown is None


def test_tasks_that_ended_for_good_are_updated_in_turn() -> None:
    world = Rollout(3, policy(Parallelism=1, Delay=5), restart={"Condition": "none"})
    for task in world.running("web"):
        world.report(task.id, S.COMPLETE, exit_code=0)
    world.live(1)
    assert world.images() == []
    world.ask("v2")
    world.live(0)
    assert world.images() == ["v2"]
    world.live(12)
    assert world.images() == ["v2"] * 3


def test_an_old_task_that_dies_meanwhile_is_restarted_as_a_new_one_after_its_delay() -> None:
    world = Rollout(3, policy(Parallelism=1, Delay=100))
    world.ask("v2")
    world.live(0)
    victim = next(t for t in world.running("web") if t.spec_version == 1)
    world.report(victim.id, S.FAILED)
    world.settle()
    successor = next(t for t in world.tasks("web") if t.replaces == victim.id)
    assert (successor.spec_version, successor.rollout, successor.not_before) == (2, 0, world.now + 1)


def test_stop_first_waits_for_the_old_task_even_if_superseded() -> None:
    world = Rollout(1)
    old = world.running("web")[0]
    world.ask("v2")
    world.settle()
    world.ask("v3")
    world.settle()
    newest = world.tasks("web")[-1]
    assert (newest.spec_version, newest.desired) == (3, S.READY)
    for task in world.tasks("web"):
        if task.spec_version == 2 and world.snapshot.state(task) < S.SHUTDOWN and task.node_id:
            world.report(task.id, S.SHUTDOWN)
    world.settle()
    assert world.snapshot.tasks[newest.id].desired == S.READY, "the first one may still run"
    world.report(old.id, S.SHUTDOWN)
    world.settle()
    assert world.snapshot.tasks[newest.id].desired == S.RUNNING


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_a_global_service_is_updated_node_by_node(order: str) -> None:
    world = Rollout(0, policy(Parallelism=1, Order=order), Mode={"Global": {}})
    assert len(world.running("web")) == 3
    world.ask("v2")
    world.live(20)
    assert world.images() == ["v2"] * 3
    assert world.most_down == (1 if order == "stop-first" else 0)
    assert world.state == "completed"


def test_a_drain_meanwhile_does_not_let_more_be_taken_down() -> None:
    world = Rollout(6, policy(Parallelism=1))
    world.ask("v2")
    world.settle()
    flying = next(t for t in world.tasks("web") if t.rollout)
    assert flying.node_id
    world.put(msgspec.structs.replace(world.snapshot.nodes[flying.node_id].node, availability="drain"))
    world.settle()
    heir = next(t for t in world.tasks("web") if t.replaces == flying.id)
    assert heir.rollout == 2
    untouched = [t for t in world.tasks("web") if t.spec_version == 1 and t.node_id != flying.node_id and t.slot != flying.slot]
    assert {t.desired for t in untouched} == {S.RUNNING}


def test_stop_keeps_the_count_and_start_runs_it_again() -> None:
    world = Rollout(3)
    before = world.tasks("web")
    world.ask("v1", Labels={"covey.stopped": "true"})
    world.live(3)
    assert world.running("web") == []
    assert {t.id for t in world.tasks("web")} == {t.id for t in before}, "nothing is made while it is stopped"
    world.replicas = 2
    world.ask("v2")
    world.live(3)
    assert world.running("web") == []
    world.ask("v2", Labels={})
    world.live(3)
    assert world.images() == ["v2"] * 2


# -- no leader carries anything in its head ---------------------------------------------------------------------------

#: A failing history is long to shrink and short enough to read.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

POLICIES = st.fixed_dictionaries(
    {
        "Parallelism": st.integers(0, 3),
        "Delay": st.sampled_from([0, NANO, 3 * NANO]),
        "Monitor": st.sampled_from([NANO, 4 * NANO]),
        "FailureAction": st.sampled_from(["pause", "continue", "rollback"]),
        "MaxFailureRatio": st.sampled_from([0.0, 0.4]),
        "Order": st.sampled_from(["stop-first", "start-first"]),
    }
)


def sane(rollback: dict[str, Any]) -> dict[str, Any]:
    return {**rollback, "FailureAction": "pause" if rollback["FailureAction"] == "rollback" else rollback["FailureAction"]}


@pytest.mark.suite
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(st.data(), POLICIES, st.integers(1, 5))
def test_parallelism_bounds_what_is_down_in_any_history_without_failures(
    data: st.DataObject, update: dict[str, Any], replicas: int
) -> None:
    world = Rollout(replicas, update, sane(update))
    for number in range(2, 2 + data.draw(st.integers(1, 3), "updates")):
        if data.draw(st.integers(0, 3), "rollback") == 0 and world.snapshot.services["web"].previous_spec:
            rolled_back(world)
        else:
            world.ask(f"v{number}")
        for _ in range(data.draw(st.integers(0, 6), "rounds")):
            for name in data.draw(st.permutations(["reconcile", "allocate", "placement", "reap"]), "order"):
                world.commit(world.decide(name))
                world.look()
            if data.draw(st.booleans(), "work"):
                world.work()
            world.now += data.draw(st.sampled_from([0.0, 0.5, 2.0]), "time")
    world.live(60)
    most = update["Parallelism"] or replicas
    assert world.most_down <= (0 if update["Order"] == "start-first" else min(most, replicas))
    assert len(set(world.images())) == 1
    assert len(world.images()) == replicas
    assert world.state in ("completed", "rollback_completed")


@pytest.mark.suite
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(st.data(), POLICIES, POLICIES)
def test_another_leader_decides_alike_from_the_same_snapshot_at_any_point(
    data: st.DataObject, update: dict[str, Any], rollback: dict[str, Any]
) -> None:
    world = Rollout(4, update, sane(rollback))
    for image in data.draw(st.lists(st.sampled_from(["v2", "bad", "slow", "v3"]), min_size=1, max_size=3), "images"):
        world.ask(image)
        for _ in range(data.draw(st.integers(1, 6), "rounds")):
            plan = world.decide("reconcile")
            other = Rollout.__new__(Rollout)
            other.__dict__.update(world.__dict__)
            assert other.decide("reconcile") == plan
            world.commit(plan)
            world.commit(world.decide("reconcile"))  # what was rolled back is begun, and may be complete, once that is seen
            assert not world.decide("reconcile").changes, "fed its own result it wants no more"
            world.step()
            world.work()
            world.now += data.draw(st.sampled_from([0.0, 0.5, 2.0]), "time")
    world.ask("final")
    world.live(90)
    assert world.images() == ["final"] * 4
    assert world.shown is None or world.state == "completed", "there was nothing left to update, or it is done"


def test_a_node_that_comes_back_with_old_tasks_of_a_global_service_is_updated_late() -> None:
    world = Rollout(0, policy(Parallelism=1), Mode={"Global": {}})
    world.put(Node(id="n3", name="n3", availability="pause"))
    world.ask("v2")
    world.live(20)
    assert sorted(world.images()) == ["v1", "v2", "v2"]
    assert world.state == "completed"
    world.put(Node(id="n3", name="n3"))
    world.live(10)
    assert world.images() == ["v2"] * 3
    assert world.state == "completed"


def test_what_a_former_update_started_beside_a_task_that_is_wanted_again_takes_no_ones_turn() -> None:
    """Found by the property test: given up in the same decision, it was still counted as under way in it, and not after it."""
    world = Rollout(2, policy(Parallelism=0, Order="start-first"))
    world.replicas = 3
    world.ask("v2")
    world.commit(world.decide("reconcile"))
    assert [t.slot for t in world.tasks("web")] == [1, 1, 2, 2, 3]
    world.ask("v1", UpdateConfig=policy(Parallelism=1, Order="stop-first"))
    plan = world.decide("reconcile")
    world.commit(plan)
    assert not world.decide("reconcile").changes
    world.live(5)
    assert world.images() == ["v1"] * 3


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_what_waits_for_a_node_is_replaced_at_once_and_not_kept_beside_its_successor(order: str) -> None:
    world = World()
    world.node("n1", cpus=1)

    def ask(cpus: int, image: str) -> None:
        template = {"ContainerSpec": {"Image": image}, "Resources": {"Reservations": {"NanoCPUs": cpus * NANO}}}
        world.service("web", replicas=3, template=template, UpdateConfig={"Parallelism": 1, "Order": order})
        world.run()

    ask(2, "v1")
    ask(1, "v2")
    wanted = [(task.slot, task.spec["ContainerSpec"]["Image"]) for task in world.tasks("web") if task.desired == S.RUNNING]
    assert sorted(wanted) == [(1, "v2"), (2, "v2"), (3, "v2")]
    assert len(world.running("web")) == 1


def test_stop_first_after_start_first_takes_no_more_down_than_it_may() -> None:
    """What was about to start first runs nowhere yet, and what it was to follow still does, in every slot."""
    world = Rollout(4, policy(Parallelism=0, Order="start-first"))
    world.ask("v2")
    world.settle()
    assert len([task for task in world.tasks("web") if task.desired == S.RUNNING]) == 8
    world.ask("v3", UpdateConfig=policy(Parallelism=1, Order="stop-first"))
    world.live(20)
    assert world.most_down == 1
    assert world.images() == ["v3"] * 4
