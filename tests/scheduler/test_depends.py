"""What new tasks wait for: services that are to be started, healthy or complete."""

from __future__ import annotations

from typing import Any

import pytest

from covey.model.dependencies import Dependency, parse_dependencies
from covey.model.task_states import TaskState as S
from scheduler.depends import circle
from tests.scheduler.apply import World

DB = {"ContainerSpec": {"Image": "db"}}
ONCE = {"Mode": {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 2}}}


def cluster() -> World:
    world = World()
    for number in range(1, 4):
        world.node(f"n{number}")
    return world


def web(world: World, depends_on: str = "", **more: Any) -> None:
    labels = {"covey.depends_on": depends_on} if depends_on else {}
    world.service("web", replicas=2, Labels=labels, **more)
    world.settle()


def messages(world: World) -> list[tuple[S, str]]:
    return [(world.snapshot.state(task), task.message) for task in world.tasks("web")]


def report(world: World, service: str, state: S, **fields: Any) -> None:
    for task in world.tasks(service):
        if world.snapshot.state(task) < state:
            world.report(task.id, state, **fields)
    world.settle()


def test_a_task_waits_without_a_node_and_says_for_what() -> None:
    world = cluster()
    web(world, "db=healthy")
    assert messages(world) == [
        (S.NEW, "waiting for service db, which does not exist: create it or update this service")
    ] * 2  # fmt: skip
    world.service("db", template=DB)
    world.settle()
    assert messages(world) == [(S.NEW, "waiting for service db to be healthy")] * 2
    report(world, "db", S.RUNNING, pid=7, health="healthy")
    assert [state for state, _ in messages(world)] == [S.ASSIGNED] * 2


def test_started_is_a_process_healthy_is_more() -> None:
    world = cluster()
    world.service("db", template=DB)
    web(world, "db")
    world.settle()
    report(world, "db", S.STARTING)
    assert messages(world) == [(S.NEW, "waiting for service db to start")] * 2, "its container is still being started"
    report(world, "db", S.STARTING)
    (task,) = world.tasks("db")
    world.put(world.snapshot.statuses[task.id].__class__(id=task.id, node_id=task.node_id, state=S.STARTING, pid=7))
    world.settle()
    assert [state for state, _ in messages(world)] == [S.ASSIGNED] * 2
    world.service("late", Labels={"covey.depends_on": "db=service_healthy"})
    world.settle()
    assert [task.message for task in world.tasks("late")] == ["waiting for service db to be healthy"]


@pytest.mark.parametrize("fields", [ONCE, {"replicas": 2}, {"Mode": {"GlobalJob": {}}}])
def test_completed_is_every_slot(fields: dict[str, Any]) -> None:
    world = cluster()
    world.service("migrate", template={"ContainerSpec": {"Image": "x"}, "RestartPolicy": {"Condition": "on-failure"}}, **fields)
    web(world, "migrate=completed")
    first, *others = world.tasks("migrate")
    world.report(first.id, S.COMPLETE)
    world.settle()
    assert messages(world) == [(S.NEW, "waiting for service migrate to complete")] * 2
    for other in others:
        world.report(other.id, S.COMPLETE)
    world.settle()
    assert [state for state, _ in messages(world)] == [S.ASSIGNED] * 2


def test_only_the_last_execution_of_a_job_counts() -> None:
    world = cluster()
    world.service("migrate", **ONCE)
    world.settle()
    report(world, "migrate", S.COMPLETE)
    world.service("migrate", **ONCE)
    world.settle()
    web(world, "migrate=completed")
    assert messages(world) == [(S.NEW, "waiting for service migrate to complete")] * 2


def test_what_runs_goes_on_whatever_becomes_of_what_it_waited_for() -> None:
    world = cluster()
    world.service("db", template=DB)
    web(world, "db")
    world.run()
    before = {task.id for task in world.running("web")}
    world.drop("service", "db")
    world.run()
    assert {task.id for task in world.running("web")} == before
    world.service("web", replicas=3, Labels={"covey.depends_on": "db"})
    world.settle()
    assert [task.slot for task in world.tasks("web") if "does not exist" in task.message] == [3]


def test_what_waits_takes_no_room_from_what_is_waited_for() -> None:
    world = World()
    world.node("n1", cpus=1)
    whole = {"ContainerSpec": {"Image": "x"}, "Resources": {"Reservations": {"NanoCPUs": 10**9}}}
    world.service("web", template=whole, Labels={"covey.depends_on": "migrate=completed"})
    world.settle()
    world.service("migrate", template=whole, Mode={"ReplicatedJob": {}})
    world.run()
    assert len(world.running("web")) == 1


def test_a_task_that_waits_goes_with_its_service_and_leaves_nothing() -> None:
    world = cluster()
    web(world, "db")
    world.drop("service", "web")
    world.settle()
    assert list(world.snapshot.tasks) == []


def test_both_ways_of_saying_it() -> None:
    spec = {
        "Name": "web",
        "DependsOn": [{"Service": "db", "Condition": "healthy"}, {"Service": "cache"}],
        "Labels": {"covey.depends_on": "db=started, migrate=service_completed_successfully"},
    }
    assert parse_dependencies(spec) == (
        Dependency("db", "healthy"),
        Dependency("cache", "started"),
        Dependency("migrate", "completed"),
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"DependsOn": "db"}, "DependsOn must be a list"),
        ({"DependsOn": [{"Condition": "healthy"}]}, r"DependsOn\[0\]: name the service"),
        ({"DependsOn": [{"Service": "db", "Condition": "happy"}]}, r"DependsOn\[0\]: condition 'happy' is none of"),
        ({"Labels": {"covey.depends_on": "a=b"}}, "label covey.depends_on: condition 'b' is none of"),
        ({"Name": "web", "Labels": {"covey.depends_on": "web"}}, "service web cannot wait for itself"),
    ],
)
def test_dependencies_that_cannot_be(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_dependencies(spec)


def test_circles() -> None:
    assert circle({"a": ["b"], "b": ["c"], "c": []}, "a") == ()
    assert circle({"a": ["x", "b"], "b": ["c"], "c": ["a"]}, "a") == ("a", "b", "c", "a")
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}, "a") == (), "a circle that a is not in is not a's"
