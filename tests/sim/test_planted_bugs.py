"""The simulation's own test: every planted bug is found within 500 seeds, the seed that found it last tried first."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim import bugs, job_bugs, scarce_bugs
from tests.sim.bugs import Plant
from tests.sim.oracles import Broken
from tests.sim.simulation import run

pytestmark = pytest.mark.suite

SEEDS = 500
BUGS = {**bugs.BUGS, **job_bugs.BUGS, **scarce_bugs.BUGS}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def seeds(hint: int) -> Iterator[int]:
    yield hint
    yield from (seed for seed in range(1, SEEDS + 1) if seed != hint)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_planted_bug_is_found(plant: Plant) -> None:
    for seed in seeds(BUGS[plant]):
        try:
            with plant():
                run(seed)
        except Broken as found:
            print(f"{plant.__name__}: {found}")
            return
    raise AssertionError(f"{plant.__name__} was not found within {SEEDS} seeds")
