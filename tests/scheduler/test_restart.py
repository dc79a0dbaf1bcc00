"""The restart decision as a table: history, policy, now → again or not, and when."""

from itertools import pairwise

import pytest

from covey.model.objects import Task
from covey.model.resources import NANO
from covey.model.spec import RestartPolicy, read_restart
from covey.model.task_states import TaskState as S
from scheduler.restart import Attempt, backed_off, decide, record
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


# -- what Swarm lacks -------------------------------------------------------------------------------------------------


def test_back_off_doubles_after_the_first_restarts_is_bounded_and_jitters_by_the_task() -> None:
    delays = [backed_off(5.0, crashes, 3, 300.0, "t") for crashes in range(1, 40)]
    assert delays[:3] == [5.0, 5.0, 5.0]
    assert all(5 * 2**doubling <= delays[2 + doubling] <= 5 * 2**doubling * 1.25 for doubling in range(1, 6))
    assert max(delays) == delays[-1] == 300.0
    assert len({backed_off(5.0, 4, 3, 300.0, f"t{number}") for number in range(20)}) > 15
    assert backed_off(5.0, 4, 3, 300.0, "t") == backed_off(5.0, 4, 3, 300.0, "t")


@pytest.mark.parametrize(("delay", "limit"), [(5.0, 0.0), (600.0, 300.0), (0.0, 300.0)])
def test_no_back_off_where_there_is_no_room_for_it(delay: float, limit: float) -> None:
    assert backed_off(delay, 20, 3, limit, "t") == delay


def test_crashes_are_counted_and_forgotten_once_a_task_has_run_for_long() -> None:
    def after(crashes: int, state: S, ran: float) -> int:
        last = Attempt(Task(id="t", service_id="s", crashes=crashes, node_id="n1"), state)
        return record([last], ran, 60.0, 3).crashes

    assert after(4, S.FAILED, 59.0) == 5
    assert after(4, S.COMPLETE, 0.0) == 5
    assert after(4, S.FAILED, 60.0) == 0
    assert after(4, S.ORPHANED, 0.0) == 4
    assert after(4, S.SHUTDOWN, 0.0) == 4


@pytest.mark.parametrize(
    ("nodes", "states", "avoid"),
    [
        ("aaa", [S.FAILED] * 3, ("a",)),
        ("aa", [S.FAILED] * 2, ()),
        ("baa", [S.FAILED] * 3, ()),
        ("aaa", [S.FAILED, S.SHUTDOWN, S.FAILED], ()),
        ("aaa", [S.FAILED, S.REJECTED, S.FAILED], ("a",)),
        ("aaa", [S.COMPLETE] * 3, ()),
    ],
)
def test_a_node_is_avoided_from_the_third_crash_in_a_row_on_it(nodes: str, states: list[S], avoid: tuple[str, ...]) -> None:
    past = [
        Attempt(Task(id=f"t{at}", service_id="s", node_id=node, crashes=at), state)
        for at, (node, state) in enumerate(zip(nodes, states, strict=True))
    ]
    assert record(past, 0.0, 60.0, 3).avoid == avoid


def crash(world: World, times: int) -> list[float]:
    """Let the service crash at once so often; the delays it was given."""
    delays = []
    for _ in range(times):
        (task,) = world.running("web")
        world.report(task.id, S.FAILED, exit_code=1)
        world.settle()
        successor = world.tasks("web")[-1]
        delays.append(max(successor.not_before - world.now, 0.0))
        world.now = max(world.now, successor.not_before)
        world.run()
    return delays


def test_a_crash_loop_slows_down_by_default_beyond_the_history_that_is_kept() -> None:
    delays = crash(failing({}), 12)
    assert delays[:3] == [5, 5, 5]
    assert all(later > before for before, later in pairwise(delays[2:8]))
    assert delays[-1] == 300


def test_a_delay_that_was_asked_for_is_the_delay_unless_back_off_was_asked_for_too() -> None:
    assert crash(failing({"Delay": 2 * NANO}), 8) == [2] * 8
    assert max(crash(failing({"Delay": 2 * NANO, "BackoffLimit": 30 * NANO}), 8)) == 30
    assert crash(failing({"BackoffLimit": 0}), 8) == [5] * 8


def test_labels_ask_for_back_off_where_a_client_cannot_send_the_fields() -> None:
    spec = read_restart({"Delay": NANO}, {"covey.restart.backoff-limit": "1m30s", "covey.restart.backoff-reset": "10s"})
    assert (spec.backoff_limit, spec.backoff_reset) == (90, 10)
    assert read_restart({"BackoffLimit": NANO}, {"covey.restart.backoff-limit": "5m"}).backoff_limit == 1


def test_a_crash_loop_leaves_its_node() -> None:
    """Bin-packing would choose the fullest node again and again."""
    world = failing({"Delay": 0})
    world.service("filler", template={"ContainerSpec": {"Image": "x"}, "Resources": {"Reservations": {"NanoCPUs": NANO}}})
    world.run()
    for number in (2, 3):
        world.node(f"n{number}")
    crash(world, 4)
    assert {t.node_id for t in world.tasks("web")} == {"n1"}
    crash(world, 1)
    world.now += 2 * world.settings.failure_window
    (task,) = world.running("web")
    assert task.avoid == ("n1",)
    assert task.node_id != "n1"
    world.report(task.id, S.FAILED, started_at=world.now)
    world.run()
    assert world.running("web")[0].node_id != "n1", "not even when the failures there are long ago"
