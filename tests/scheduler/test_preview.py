"""A plan for people is what then happens: made by the real decisions, without touching the world it is made from."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from covey.model import versions
from covey.model.objects import Network, NodeInfo, Service, Task
from covey.model.task_states import TaskState
from scheduler.preview import course
from scheduler.preview.frozen import frozen
from scheduler.preview.preview import Outcome, Preview, plan
from tests.scheduler.apply import World

MIB = 1024 * 1024


def changed(world: World, service_id: str, **spec: Any) -> Service:
    """The service as an update would store it; ``image``, ``replicas`` and ``cpus`` are short for what they name."""
    held = world.snapshot.services.get(service_id)
    whole = dict(held.spec) if held else {"Name": service_id, "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}
    template = dict(whole["TaskTemplate"])
    if (image := spec.pop("image", None)) is not None:
        template["ContainerSpec"] = {**template["ContainerSpec"], "Image": image}
    if (cpus := spec.pop("cpus", None)) is not None:
        template["Resources"] = {"Reservations": {"NanoCPUs": int(cpus * 1e9)}}
    template |= spec.pop("template", {})
    if (replicas := spec.pop("replicas", None)) is not None:
        whole["Mode"] = {"Replicated": {"Replicas": replicas}}
    whole |= {"TaskTemplate": template, **spec}
    if held is None:
        return Service(id=service_id, spec=whole, created_at=world.now, updated_at=world.now)
    touched = whole["TaskTemplate"] != held.spec["TaskTemplate"]
    return msgspec.structs.replace(
        held, spec=whole, previous_spec=held.spec, spec_version=held.spec_version + touched, updated_at=world.now, version=0
    )


def preview(world: World, *services: Service, remove: tuple[str, ...] = (), **more: Any) -> Preview:
    """The plan, twice and on a world that is checked to stay as it is."""
    wanted: dict[str, Service | None] = {service.id: service for service in services}
    wanted |= dict.fromkeys(remove)
    with world.index.freeze_check() as snapshot:
        found = plan(snapshot, wanted, world.now, world.settings, **more)
        assert plan(frozen(snapshot), wanted, world.now, world.settings, **more) == found
    assert found.revision == world.index.revision
    return found


def only(found: Preview) -> Outcome:
    (outcome,) = found.outcomes
    return outcome


def actions(outcome: Outcome) -> dict[str, int]:
    return {name: count for name in ("create", "replace", "keep", "destroy") if (count := outcome.count(name))}


@pytest.fixture
def world() -> World:
    made = World()
    for number in range(1, 4):
        made.node(f"n{number}", cpus=4)
    made.settle()
    return made


def running(world: World, service_id: str, **spec: Any) -> None:
    world.put(changed(world, service_id, **spec))
    world.run()


def test_a_new_service_is_created_and_each_task_has_its_node(world: World) -> None:
    outcome = only(preview(world, changed(world, "web", replicas=3)))
    assert (outcome.action, actions(outcome), outcome.waiting) == ("create", {"create": 3}, 0)
    assert {step.to_node for step in outcome.steps} == {"n1", "n2", "n3"}
    assert [step.slot for step in outcome.steps] == [1, 2, 3]
    assert outcome.explained is not None
    assert outcome.explained.node_id == outcome.steps[0].to_node
    assert all(edit.kind == "added" for edit in outcome.edits)


def test_nothing_to_do_is_nothing(world: World) -> None:
    running(world, "web", replicas=3)
    found = preview(world, changed(world, "web"))
    assert not found
    assert (only(found).action, actions(only(found)), only(found).edits) == ("none", {"keep": 3}, ())


def test_scaling_leaves_the_other_tasks_in_place(world: World) -> None:
    running(world, "web", replicas=2)
    assert actions(only(preview(world, changed(world, "web", replicas=5)))) == {"create": 3, "keep": 2}
    down = only(preview(world, changed(world, "web", replicas=1)))
    assert (down.action, actions(down)) == ("update", {"keep": 1, "destroy": 1})


def test_labels_of_the_service_touch_no_task(world: World) -> None:
    running(world, "web", replicas=2)
    outcome = only(preview(world, changed(world, "web", Labels={"a": "b"})))
    assert (outcome.action, actions(outcome)) == ("update", {"keep": 2})
    assert [edit.path for edit in outcome.edits] == ["Labels[a]"]


@pytest.mark.parametrize(("parallelism", "batches"), [(1, [1, 2, 3, 4, 5]), (2, [1, 1, 2, 2, 3]), (0, [1] * 5)])
@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_a_template_is_rolled_out_in_batches(world: World, parallelism: int, batches: list[int], order: str) -> None:
    policy = {"Parallelism": parallelism, "Order": order}
    running(world, "web", replicas=5, UpdateConfig=policy)
    outcome = only(preview(world, changed(world, "web", image="busybox:2")))
    assert actions(outcome) == {"replace": 5}
    assert sorted(step.batch for step in outcome.steps) == batches
    assert (outcome.order, outcome.parallelism) == (order, parallelism)
    assert all(step.from_node and step.to_node and step.task_id for step in outcome.steps)


def test_what_finds_no_node_says_why_with_numbers_and_what_would_help(world: World) -> None:
    outcome = only(preview(world, changed(world, "big", replicas=2, cpus=6)))
    assert outcome.waiting == 2
    assert {step.message for step in outcome.steps} == {"no suitable node (insufficient resources on 3 nodes)"}
    assert outcome.explained is not None
    assert len(outcome.explained.verdicts) == 3
    assert all("6 CPUs and 0 MiB asked for, 4 CPUs" in verdict.reason for verdict in outcome.explained.verdicts)
    assert outcome.advice[0].startswith("reserve at most 4 CPUs (6 asked for): it then fits on n")


def test_an_update_that_finds_no_node_stops_and_says_what_is_left(world: World) -> None:
    running(world, "web", replicas=3)
    outcome = only(preview(world, changed(world, "web", cpus=6)))
    assert actions(outcome) == {"replace": 3}
    assert [step.batch for step in sorted(outcome.steps, key=lambda step: -step.batch)] == [1, 0, 0]
    assert outcome.waiting == 1


def test_a_service_is_removed_with_all_its_tasks_and_makes_room(world: World) -> None:
    running(world, "old", replicas=3, cpus=4)
    alone = only(preview(world, changed(world, "new", replicas=3, cpus=3)))
    assert alone.waiting == 3
    found = preview(world, changed(world, "new", replicas=3, cpus=3), remove=("old",))
    new, old = found.outcomes
    assert (old.action, actions(old)) == ("remove", {"destroy": 3})
    assert (actions(new), new.waiting) == ({"create": 3}, 0)


def test_global_services_have_nodes_for_slots(world: World) -> None:
    running(world, "agent", Mode={"Global": {}})
    elsewhere = {"Placement": {"Constraints": ["node.id!=n2"]}}
    assert actions(only(preview(world, changed(world, "agent", template=elsewhere)))) == {"keep": 2, "destroy": 1}
    outcome = only(preview(world, changed(world, "agent", image="busybox:2", template=elsewhere)))
    assert actions(outcome) == {"replace": 2, "destroy": 1}
    gone = next(step for step in outcome.steps if step.action == "destroy")
    assert (gone.slot, gone.node_id) == (0, "n2")


def test_networks_that_come_with_it_are_taken_to_be_there(world: World) -> None:
    service = changed(world, "web", replicas=1, template={"Networks": [{"Target": "back"}]})
    outcome = only(preview(world, service))
    assert "does not exist" in outcome.steps[0].message
    network = Network(id="planned", spec={"Name": "back", "Driver": "overlay"}, created_at=world.now)
    assert only(preview(world, service, networks=[network])).steps[0].to_node


def test_a_long_rollout_is_seen_from_its_beginning_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running(world, "web", replicas=8)
    monkeypatch.setattr(course, "ROUNDS", 6)
    found = preview(world, changed(world, "web", image="busybox:2"))
    outcome = only(found)
    assert not found.complete
    assert actions(outcome) == {"replace": 8}
    assert 0 < sum(step.batch > 0 for step in outcome.steps) < 8
    assert outcome.waiting == 0


def test_services_that_are_not_asked_about_are_not_touched(world: World) -> None:
    running(world, "other", replicas=2)
    world.put(changed(world, "other", replicas=5))
    found = preview(world, changed(world, "web", replicas=1))
    assert [outcome.service_id for outcome in found.outcomes] == ["web"]
    assert not found.displaced


def test_a_task_that_was_restarted_and_waits_for_its_delay_is_no_change(world: World) -> None:
    running(world, "web", replicas=2)
    world.report(world.running("web")[0].id, TaskState.FAILED)
    world.settle()
    assert not preview(world, changed(world, "web"))


def test_batches_tell_the_delays_before_them(world: World) -> None:
    policy = {"Parallelism": 2, "Delay": 10 * 10**9, "Monitor": 3 * 10**9}
    running(world, "web", replicas=5, UpdateConfig=policy)
    held = world.snapshot.services["web"]
    spec = {**held.spec, "TaskTemplate": {"ContainerSpec": {"Image": "busybox:2"}}}
    found = preview(world, versions.updated(held, spec, world.now))
    assert found.complete
    assert [(step.batch, step.after) for step in only(found).steps] == [(1, 0), (1, 0), (2, 10), (2, 10), (3, 20)]


def test_a_job_is_planned_to_its_end(world: World) -> None:
    job = {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 5}}
    service = msgspec.structs.replace(changed(world, "sum", Mode=job), job_iteration=1, executed_at=world.now)
    outcome = only(preview(world, service))
    assert (outcome.job, actions(outcome), outcome.waiting) == (True, {"create": 5}, 0)


def test_who_is_pushed_aside_by_a_priority_is_named(world: World) -> None:
    running(world, "low", replicas=3, cpus=3)
    found = preview(world, changed(world, "high", replicas=1, cpus=3, template={"Placement": {"Priority": 10}}))
    (task,) = found.displaced
    assert (task.service_name, "preempted" in task.cause) == ("low", True)
    assert only(found).steps[0].to_node == task.node_id


def test_who_is_pushed_aside_takes_room_elsewhere_in_its_turn(world: World) -> None:
    running(world, "low", replicas=3, cpus=3)
    high = changed(world, "high", replicas=1, cpus=3, template={"Placement": {"Priority": 10}})
    ahead = course.Course(world.snapshot, {"high": high}, world.now, world.settings)
    assert list(ahead.steps())
    assert [task.service_id for task in map(ahead.world.tasks.__getitem__, ahead.made)].count("low") == 1


def test_what_is_placed_together_or_not_at_all_is_planned_so(world: World) -> None:
    together = {"Placement": {"Group": "g"}}
    one = changed(world, "one", replicas=3, cpus=3, template=together)
    other = changed(world, "other", replicas=1, cpus=3, template=together)
    found = preview(world, one, other)
    assert [outcome.waiting for outcome in found.outcomes] == [3, 1]
    assert all("group g has no place for all" in step.message for outcome in found.outcomes for step in outcome.steps)
    smaller = changed(world, "other", replicas=1, cpus=1, template=together)
    assert [outcome.waiting for outcome in preview(world, one, smaller).outcomes] == [0, 0]


def test_a_plan_waits_for_delays_that_something_waits_for(world: World) -> None:
    running(world, "web", replicas=1, template={"RestartPolicy": {"Delay": 5 * 10**9}})
    world.report(world.running("web")[0].id, TaskState.FAILED)
    world.settle()
    running_late = course.Course(world.snapshot, {"web": changed(world, "web", Labels={"a": "b"})}, world.now, world.settings)
    assert list(running_late.steps())
    assert (running_late.complete, running_late.now) == (True, world.now + 5)
    states = [running_late.world.state(task) for task in running_late.world.tasks_of("web")]
    assert TaskState.RUNNING in states


def random_world(rng: random.Random) -> World:
    world = World()
    for number in range(rng.randint(1, 6)):
        world.node(f"n{number}", cpus=rng.choice((1, 2, 4)), labels={"zone": rng.choice("ab")})
    world.settle()
    for number in range(rng.randint(0, 4)):
        running(world, f"s{number}", **random_change(rng))
    return world


def random_change(rng: random.Random) -> dict[str, Any]:
    change: dict[str, Any] = {"cpus": rng.choice((0, 0.5, 1)), "image": f"busybox:{rng.randint(1, 3)}"}
    change["UpdateConfig"] = {"Parallelism": rng.randint(0, 3), "Order": rng.choice(("stop-first", "start-first"))}
    placement: dict[str, Any] = {"MaxReplicas": rng.choice((0, 0, 2)), "Strategy": rng.choice(("", "spread", "pack"))}
    if rng.random() < 0.2:
        placement["Priority"] = rng.choice((1, 5))
    if rng.random() < 0.3:
        placement["Constraints"] = [f"node.labels.zone=={rng.choice('ab')}"]
    if rng.random() < 0.2:
        placement["Preferences"] = [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]
    change["template"] = {"Placement": placement}
    if rng.random() < 0.2:
        return {**change, "Mode": {"Global": {}}}
    return {**change, "replicas": rng.randint(0, 5)}


def standing(world: World, service_id: str) -> dict[tuple[int, str], tuple[str, str]]:
    """Slot → id and node of the task that fills it."""
    return {
        (task.slot, "" if task.slot else task.node_id): (task.id, task.node_id if task.state >= TaskState.ASSIGNED else "")
        for task in world.tasks(service_id)
        if task.desired < TaskState.SHUTDOWN and world.snapshot.state(task) <= TaskState.RUNNING
    }


@pytest.mark.parametrize("seed", range(40))
def test_what_is_planned_is_what_then_happens(seed: int) -> None:
    check_plan(seed)


@pytest.mark.long
def test_what_is_planned_is_what_then_happens_on_many_worlds() -> None:
    for seed in range(100, 2000):
        check_plan(seed)


def check_plan(seed: int) -> None:
    rng = random.Random(seed)
    world = random_world(rng)
    service_id = f"s{rng.randint(0, 4)}"
    held = world.snapshot.services.get(service_id)
    change = random_change(rng)
    if held is not None:
        change.pop("Mode", None)
        if "Global" in held.spec["Mode"]:
            change.pop("replicas", None)
    service = changed(world, service_id, **change)
    found = preview(world, service)
    outcome = only(found)
    before = standing(world, service_id)
    others = {task.id for task in world.snapshot.tasks.values() if wanted(task) and task.service_id != service_id}
    world.put(service)
    world.run()
    after = standing(world, service_id)
    for step in outcome.steps:
        key = (step.slot, step.node_id)
        old, new = before.get(key), after.get(key)
        if step.action == "destroy":
            assert old is not None
            assert new is None
        elif step.action == "keep" or (step.action == "replace" and not step.batch):
            assert old == new
        else:
            assert (step.task_id or None) == (old[0] if old else None)
            assert new is not None
            assert new[1] == step.to_node
            assert new != old
    assert {(step.slot, step.node_id) for step in outcome.steps} == {*before, *after}
    still = {task.id for task in world.snapshot.tasks.values() if wanted(task)}
    assert {task.task_id for task in found.displaced} == others - still


def wanted(task: Task) -> bool:
    return task.desired < TaskState.SHUTDOWN


def test_a_service_on_a_silent_node_is_planned_as_far_as_it_goes(world: World) -> None:
    running(world, "web", replicas=3)
    silent = next(task.node_id for task in world.running("web") if task.slot == 1)
    world.drop("session", silent)
    info = world.snapshot.node_infos[silent]
    assert isinstance(info, NodeInfo)
    outcome = only(preview(world, changed(world, "web", image="busybox:2")))
    assert actions(outcome) == {"replace": 3}
    assert [(step.slot, step.batch) for step in outcome.steps] == [(1, 1), (2, 0), (3, 0)]
