"""Histories of a whole control plane: as many seeds as fit, each with its oracles. See tests/sim/simulation.py.

COVEY_SIM_SECONDS (25) bounds the time, COVEY_SIM_SEEDS asks for a number of seeds instead; ``--long`` runs 20,000.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.sim.faults import FAULTS
from tests.sim.simulation import EVENTS, Report, run
from tests.sim.simulation import FAULTS as FEWEST_FAULTS

SECONDS = float(os.environ.get("COVEY_SIM_SECONDS", "25"))
SEEDS = int(os.environ.get("COVEY_SIM_SEEDS", "0"))
MANY = 400
"""So many seeds together have seen everything that the table below names."""

SEEN_IN_MANY = (
    *(f"fault: {kind.__name__}" for kind in FAULTS),
    *(f"crash: {where}, {when}" for where in ("store", "journal") for when in ("before", "after")),
    *(f"leader: {state}" for state in ("new", "assigned", "orphaned")),
    *(f"worker: {state}" for state in ("preparing", "ready", "running", "complete", "shutdown", "failed", "rejected")),
    *(f"node: {state}" for state in ("ready", "unknown", "down")),
    *(f"update: {state}" for state in ("updating", "paused", "completed", "rollback_started", "rollback_paused")),
    "update: rollback_completed",
    "leader: rolled back",
    "client: service rolled back",
    "assignment: complete",
    "assignment: increment",
    "machines exchanged",
    "moves of a drain step by step",
    "store answers lost",
    "tasks of jobs",
    "scarce worlds",
    "preempted",
    "groups placed",
    "tasks that had to wait",
    "terms",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The parts log every mishap, and mishaps are what this is about."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def kept_seeds() -> list[int]:
    lines = (Path(__file__).with_name("seeds.txt")).read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def check(report: Report) -> Report:
    assert report.events >= EVENTS, report
    assert report.faults >= FEWEST_FAULTS, report
    return report


def digest_of(seed: int) -> str:
    return run(seed).digest


def check_seed(seed: int) -> Report:
    logging.disable(logging.CRITICAL)
    return check(run(seed))


class Tally:
    """What many histories were made of, together."""

    def __init__(self) -> None:
        self.seeds = 0
        self.events = 0
        self.faults = 0
        self.healed: list[float] = []
        self.coverage: Counter[str] = Counter()
        self.began = time.perf_counter()

    def add(self, report: Report) -> None:
        self.seeds += 1
        self.events += report.events
        self.faults += report.faults
        self.healed.append(report.healed_after)
        self.coverage += report.coverage

    def take(self, reports: Iterable[Report]) -> None:
        for report in reports:
            self.add(report)

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.began
        healed = sorted(self.healed)
        lines = [
            f"simulation: {self.seeds} seeds, {self.events} events, {self.faults} faults in {seconds:.0f} s"
            f" ({self.seeds / seconds:.1f} seeds/s); at rest {healed[len(healed) // 2]:.0f} s after the last fault, at most"
            f" {healed[-1]:.0f} s",
            f"  scarcity: {self.coverage['scarce worlds']} worlds, {self.coverage['preempted']} preemptions,"
            f" {self.coverage['groups placed']} groups placed, {self.coverage['tasks that had to wait']} tasks had to wait",
            "  seen: " + ", ".join(f"{name} {count}" for name, count in sorted(self.coverage.items())),
        ]
        return "\n".join(lines)


def conclude(tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{tally}")
    if tally.seeds >= MANY:
        assert [what for what in SEEN_IN_MANY if not tally.coverage[what]] == []


def test_the_same_seed_makes_the_same_history_in_any_process() -> None:
    seeds = (1, 2, 3, 7)
    once = [digest_of(seed) for seed in seeds]
    assert digest_of(7) == once[-1]
    assert len(set(once)) == len(seeds)
    code = "import logging; logging.disable(50); from tests.sim.simulation import run"
    code += f"; print(*(run(seed).digest for seed in {seeds}))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == once


@pytest.mark.parametrize("seed", kept_seeds())
def test_seeds_that_once_broke_an_oracle(seed: int) -> None:
    check(run(seed))


@pytest.mark.timeout(900)
def test_no_oracle_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    seed = 0
    while seed < SEEDS if SEEDS else time.perf_counter() - tally.began < SECONDS:
        seed += 1
        tally.add(check(run(seed)))
    conclude(tally, capsys)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_twenty_thousand_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with ProcessPoolExecutor() as pool:
        tally.take(pool.map(check_seed, range(1, 20_001), chunksize=20))
    conclude(tally, capsys)
