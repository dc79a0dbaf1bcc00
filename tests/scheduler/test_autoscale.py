"""How many replicas samples ask for."""

from __future__ import annotations

import pytest

from scheduler.autoscale import Policy, Sample, advise

POLICY = Policy(minimum=2, maximum=10, target=0.5, cool_down=300)
NOW = 10_000.0


def samples(*values: float, since: float = 600) -> list[Sample]:
    """Every task at its value each 30 s, from ``since`` seconds ago until now."""
    times = [NOW - since + 30 * step for step in range(int(since // 30) + 1)]
    return [Sample(f"t{number}", at, value) for at in times for number, value in enumerate(values)]


def replicas(held: list[Sample], asked: int, running: int | None = None, policy: Policy = POLICY) -> int:
    tasks = [f"t{number}" for number in range(asked if running is None else running)]
    return advise(policy, asked, tasks, held, NOW).replicas


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.5, 0.5, 0.5), 3),
        ((0.54, 0.54, 0.54), 3),
        ((0.75, 0.75, 0.75), 5),
        ((0.9, 0.3, 0.9), 5),
        ((5.0, 5.0, 5.0), 6),
        ((0.1, 0.1, 0.1), 2),
        ((0.0, 0.0, 0.0), 2),
    ],
)
def test_in_proportion_within_bounds_and_no_more_than_twice(values: tuple[float, ...], expected: int) -> None:
    assert replicas(samples(*values), 3) == expected


def test_never_beyond_the_bounds() -> None:
    assert replicas(samples(*[5.0] * 8), 8) == 10
    assert replicas([], 1) == 2
    assert replicas([], 12) == 10


def test_a_dip_does_not_undo_what_a_peak_needed_until_the_cool_down_is_over() -> None:
    busy = [Sample(f"t{n}", NOW - ago, 0.5) for n in range(6) for ago in range(100, 700, 30)]
    idle = [Sample(f"t{n}", NOW - ago, 0.1) for n in range(6) for ago in range(0, 90, 30)]
    assert replicas(busy + idle, 6) == 6
    assert replicas(samples(*[0.1] * 6), 6) == 2


def test_a_service_that_is_younger_than_its_cool_down_does_not_shrink() -> None:
    assert replicas(samples(*[0.1] * 6, since=120), 6) == 6


def test_stale_samples_and_those_of_others_do_not_count() -> None:
    old = [Sample("t0", NOW - 400, 5.0), Sample("t1", NOW - 400, 5.0)]
    assert replicas(old, 3) == 3
    others = [Sample("gone", NOW, 5.0)]
    assert replicas(others, 3) == 3
    assert "no running task" in advise(POLICY, 3, ["t0"], others, NOW).why


def test_stopped_services_stay_stopped_when_they_may() -> None:
    assert replicas(samples(5.0), 0, policy=POLICY._replace(minimum=0)) == 0


def test_fed_its_own_advice_under_the_same_load_it_comes_to_rest() -> None:
    load, asked = 4.0, 2
    for _ in range(10):
        asked = replicas(samples(*[load / asked] * asked), asked)
    assert asked == 8
    assert replicas(samples(*[load / asked] * asked), asked) == asked
