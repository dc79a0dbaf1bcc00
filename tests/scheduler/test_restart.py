"""The restart decision as a table: history, policy, now → again or not, and when."""

import pytest

from covey.model.objects import Task
from covey.model.spec import RestartPolicy
from covey.model.task_states import TaskState as S
from scheduler.restart import Attempt, decide
from tests.scheduler.apply import World

NOW = 1000.0


def history(*states: S, every: float = 10.0, desired: S = S.RUNNING) -> list[Attempt]:
    """Attempts that ended in ``states``, made ``every`` seconds apart, the last just now."""
    made = [NOW - every * (len(states) - at) for at in range(len(states))]
    return [
        Attempt(Task(id=f"t{at}", service_id="s", created_at=created, updated_at=NOW, desired=desired), state)
        for at, (created, state) in enumerate(zip(made, states, strict=True))
    ]


@pytest.mark.parametrize(
    ("states", "policy", "again", "not_before"),
    [
        ([S.FAILED], RestartPolicy(), True, NOW + 5),
        ([S.COMPLETE], RestartPolicy(), True, NOW + 5),
        ([S.REJECTED], RestartPolicy(), True, NOW + 5),
        ([S.FAILED], RestartPolicy(condition="none"), False, 0),
        ([S.COMPLETE], RestartPolicy(condition="on-failure"), False, 0),
        ([S.FAILED], RestartPolicy(condition="on-failure"), True, NOW + 5),
        ([S.ORPHANED], RestartPolicy(), True, 0),
        ([S.ORPHANED], RestartPolicy(condition="none"), False, 0),
        ([S.SHUTDOWN], RestartPolicy(condition="none"), True, 0),
        ([S.FAILED] * 3, RestartPolicy(max_attempts=3), True, NOW + 5),
        ([S.FAILED] * 4, RestartPolicy(max_attempts=3), False, 0),
        ([S.FAILED] * 4, RestartPolicy(max_attempts=3, window=15), True, NOW + 5),
        ([S.FAILED] * 4, RestartPolicy(max_attempts=3, window=35), False, 0),
        ([S.ORPHANED, S.ORPHANED, S.FAILED], RestartPolicy(max_attempts=1), True, NOW + 5),
        ([S.FAILED, S.FAILED, S.ORPHANED], RestartPolicy(max_attempts=1), True, 0),
    ],
)
def test_verdict(states: list[S], policy: RestartPolicy, again: bool, not_before: float) -> None:
    verdict = decide(history(*states), policy, NOW, 5.0)
    assert (verdict.again, verdict.not_before) == (again, not_before)


def test_a_refusal_stays_one_when_the_window_has_moved_on() -> None:
    past = history(*[S.FAILED] * 4, desired=S.SHUTDOWN)
    policy = RestartPolicy(max_attempts=3, window=35)
    assert not decide(past, policy, NOW, 5.0).again
    assert not decide(past, policy, NOW + 3600, 5.0).again


def failing(restart: dict[str, object]) -> World:
    world = World()
    world.node("n1")
    world.service("web", template={"ContainerSpec": {"Image": "x"}, "RestartPolicy": restart})
    world.run()
    return world


def test_successor_is_made_at_once_prepared_and_held_back() -> None:
    world = failing({})
    first = world.running("web")[0]
    world.report(first.id, S.FAILED, exit_code=3)
    world.settle()
    _, second = world.tasks("web")
    assert (second.state, second.desired, second.not_before) == (S.ASSIGNED, S.READY, world.now + 5)
    assert second.replaces == first.id
    assert world.snapshot.tasks[first.id].desired == S.SHUTDOWN
    assert world.decide("reconcile").wake_at == second.not_before
    world.now += 4.9
    world.run()
    assert not world.running("web")
    world.now += 0.1
    world.run()
    assert [t.id for t in world.running("web")] == [second.id]


def test_max_attempts_are_counted_beyond_the_history_that_is_kept() -> None:
    world = failing({"MaxAttempts": 7, "Delay": 0})
    for _ in range(20):
        for task in world.running("web"):
            world.report(task.id, S.FAILED, exit_code=1)
        world.now += 1
        world.run()
    assert world.tasks("web")[-1].attempt == 8
    assert not world.running("web")


def test_the_last_attempt_stays_when_nothing_more_is_tried_and_an_update_tries_again() -> None:
    world = failing({"Condition": "none"})
    world.report(world.running("web")[0].id, S.COMPLETE, exit_code=0)
    world.run()
    assert [(t.attempt, t.desired) for t in world.tasks("web")] == [(1, S.SHUTDOWN)]
    world.service("web", template={"ContainerSpec": {"Image": "y"}, "RestartPolicy": {"Condition": "none"}})
    world.run()
    assert [t.attempt for t in world.running("web")] == [2]
