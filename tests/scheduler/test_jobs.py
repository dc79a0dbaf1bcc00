"""Jobs: how many tasks an execution has, what becomes of those that fail, and of the executions before it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from covey.model.objects import Node, Task
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import World


def cluster(nodes: int = 3) -> World:
    world = World()
    for number in range(1, nodes + 1):
        world.node(f"n{number}")
    return world


def job(
    world: World,
    total: int = 3,
    most: int | None = None,
    *,
    everywhere: bool = False,
    policy: dict[str, Any] | None = None,
    image: str = "x",
) -> None:
    """Make or update the job "job", and let the leader settle."""
    numbers = {"TotalCompletions": total, "MaxConcurrent": total if most is None else most}
    mode: dict[str, Any] = {"GlobalJob": {}} if everywhere else {"ReplicatedJob": numbers}
    world.service("job", template={"ContainerSpec": {"Image": image}, "RestartPolicy": policy or {}}, Mode=mode)
    world.settle()


def wanted(world: World) -> list[Task]:
    """Tasks that are wanted and not over."""
    state = world.snapshot.state
    return [task for task in world.tasks("job") if task.desired <= S.COMPLETE and state(task) < S.COMPLETE]


def in_state(world: World, state: S) -> list[Task]:
    return [task for task in world.tasks("job") if world.snapshot.state(task) == state]


def end(world: World, state: S, *tasks: Task) -> None:
    for task in tasks:
        world.report(task.id, state)
    world.settle()


def test_tasks_of_a_job_are_to_complete_and_stay_completed() -> None:
    world = cluster()
    job(world, 3)
    assert [(task.slot, task.desired, task.job_iteration) for task in wanted(world)] == [(n, S.COMPLETE, 1) for n in (1, 2, 3)]
    end(world, S.COMPLETE, *wanted(world))
    assert len(in_state(world, S.COMPLETE)) == 3
    assert wanted(world) == []
    assert {task.desired for task in world.tasks("job")} == {S.COMPLETE}


def test_never_more_at_a_time_nor_more_completions_than_asked_for() -> None:
    world = cluster()
    job(world, 7, most=3)
    seen = 0
    while tasks := wanted(world):
        assert len(tasks) == min(3, 7 - seen)
        end(world, S.COMPLETE, tasks[0])
        seen += 1
    assert seen == 7
    assert sorted(task.slot for task in in_state(world, S.COMPLETE)) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("total", "most"), [(0, 2), (3, 0)])
def test_a_job_that_asks_for_nothing_or_nothing_at_a_time_has_no_tasks(total: int, most: int) -> None:
    world = cluster()
    job(world, total, most)
    assert world.tasks("job") == []


def test_a_task_that_fails_is_followed_after_the_delay_and_keeps_its_place_meanwhile() -> None:
    world = cluster()
    job(world, 3, most=1, policy={"Delay": 5 * 10**9})
    (first,) = wanted(world)
    end(world, S.FAILED, first)
    (second,) = wanted(world)
    assert (second.slot, second.attempt, second.desired, second.replaces) == (1, 2, S.READY, first.id)
    world.now += 5
    world.settle()
    (second,) = wanted(world)
    assert second.desired == S.COMPLETE
    end(world, S.COMPLETE, second)
    assert [task.slot for task in wanted(world)] == [2]


@pytest.mark.parametrize(
    ("policy", "attempts"), [({"Condition": "none"}, 1), ({"Condition": "on-failure", "MaxAttempts": 2, "Delay": 0}, 3)]
)
def test_a_slot_the_policy_gives_up_stays_empty_and_makes_room(policy: dict[str, Any], attempts: int) -> None:
    world = cluster()
    job(world, 2, most=1, policy=policy)
    for _ in range(attempts):
        end(world, S.FAILED, *wanted(world))
    (other,) = wanted(world)
    assert other.slot == 2
    end(world, S.COMPLETE, other)
    assert wanted(world) == []
    assert len(in_state(world, S.FAILED)) == attempts


def test_on_any_what_completed_is_done_all_the_same() -> None:
    world = cluster()
    job(world, 1, policy={"Condition": "any", "Delay": 0})
    end(world, S.COMPLETE, *wanted(world))
    assert wanted(world) == []


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_update_executes_the_job_again(everywhere: bool) -> None:
    world = cluster(2)
    job(world, 2, everywhere=everywhere)
    done, running = wanted(world)
    end(world, S.COMPLETE, done)
    world.report(running.id, S.RUNNING)
    job(world, 2, everywhere=everywhere)
    again = wanted(world)
    assert len(again) == 2
    assert {task.job_iteration for task in again} == {2}
    assert world.snapshot.tasks[running.id].desired == S.REMOVE
    assert world.snapshot.tasks[done.id].desired == S.COMPLETE, "what completed before is history"
    world.report(running.id, S.SHUTDOWN)
    world.settle()
    assert running.id not in world.snapshot.tasks
    assert not {task.id for task in again} & {done.id, running.id}


def test_former_executions_are_kept_like_tasks_of_a_slot() -> None:
    world = cluster()
    for execution in range(1, 9):
        job(world, 2)
        end(world, S.COMPLETE, *wanted(world))
        kept = {task.job_iteration for task in world.tasks("job")}
        assert kept == set(range(max(1, execution - 5), execution + 1))


def test_a_job_on_every_node_has_one_completion_on_each_and_on_those_that_join() -> None:
    world = cluster(2)
    job(world, everywhere=True)
    assert [(task.slot, task.node_id) for task in wanted(world)] == [(0, "n1"), (0, "n2")]
    end(world, S.COMPLETE, *wanted(world))
    world.node("n3")
    world.settle()
    assert [task.node_id for task in wanted(world)] == ["n3"]


def test_what_a_drained_node_had_not_completed_goes_on_elsewhere() -> None:
    world = cluster(2)
    job(world, 2)
    done, moved = sorted(wanted(world), key=lambda task: task.node_id)
    end(world, S.COMPLETE, done)
    world.put(msgspec.structs.replace(world.snapshot.nodes[moved.node_id].node, availability="drain"))
    world.settle()
    (task,) = wanted(world)
    assert (task.slot, task.replaces) == (moved.slot, moved.id)
    assert task.node_id == done.node_id


def test_a_global_job_leaves_a_drained_node_and_comes_back() -> None:
    world = cluster(2)
    job(world, everywhere=True)
    world.put(Node(id="n1", name="n1", availability="drain"))
    world.settle()
    assert [task.node_id for task in wanted(world)] == ["n2"]
    world.put(Node(id="n1", name="n1"))
    world.settle()
    assert [task.node_id for task in wanted(world)] == ["n1", "n2"]


def test_a_node_that_is_lost_takes_no_completion_with_it() -> None:
    world = cluster(2)
    job(world, 2)
    done, lost = wanted(world)
    end(world, S.COMPLETE, done)
    world.drop("session", done.node_id)
    world.now += 60
    world.settle()
    assert world.snapshot.state(done) == S.COMPLETE
    assert [task.id for task in wanted(world)] == [lost.id]
    world.drop("session", lost.node_id)
    world.session(done.node_id)
    world.settle()
    world.now += 60
    world.settle()
    (again,) = wanted(world)
    assert (again.slot, again.replaces, again.attempt) == (lost.slot, lost.id, 2)


def test_a_decision_made_twice_makes_one_key() -> None:
    world = cluster()
    world.service("job", Mode={"ReplicatedJob": {"TotalCompletions": 2, "MaxConcurrent": 2}})
    assert world.decide("reconcile") == world.decide("reconcile")


def test_a_task_lost_with_its_node_is_not_run_twice_when_the_policy_is_never_and_makes_room() -> None:
    world = cluster(2)
    job(world, 2, most=1, policy={"Condition": "none"})
    (lost,) = wanted(world)
    world.drop("session", lost.node_id)
    world.settle()
    world.now += 60
    world.settle()
    assert world.snapshot.state(world.snapshot.tasks[lost.id]) == S.ORPHANED
    assert [task.slot for task in wanted(world)] == [2]


def test_a_task_that_completes_while_it_is_being_replaced_ends_its_successor() -> None:
    world = cluster(2)
    job(world, 2, most=1)
    (first,) = wanted(world)
    world.put(msgspec.structs.replace(world.snapshot.nodes[first.node_id].node, availability="drain"))
    world.settle()
    (second,) = wanted(world)
    end(world, S.COMPLETE, first)
    assert world.snapshot.tasks[second.id].desired == S.SHUTDOWN
    assert [task.slot for task in wanted(world)] == [2]


def test_a_slot_whose_task_was_told_to_leave_and_failed_meanwhile_still_counts_as_one_in_progress() -> None:
    world = cluster(1)
    job(world, total=5, most=1)
    (task,) = wanted(world)
    world.report(task.id, S.RUNNING)
    world.put(msgspec.structs.replace(world.snapshot.tasks[task.id], desired=S.SHUTDOWN))
    end(world, S.FAILED, task)
    world.settle()
    assert [(task.slot, task.attempt) for task in wanted(world)] == [(1, 2)]
