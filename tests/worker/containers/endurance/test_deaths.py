"""A thousand starts and stops while daemon, zygote, shims and sandboxes are killed at random moments.

No container is lost or doubled, every exit code is right, running processes stay the same, and at the end nothing is
left. The sample in the suite is drawn anew each day; ``COVEY_SEED`` repeats one.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest

from tests.worker.containers.endurance.chaos import Run, a_world, report

pytestmark = pytest.mark.root

SEED = os.environ.get("COVEY_SEED") or datetime.date.today().isoformat()
SAMPLE, WHOLE = 40, 1000


def endure(root: Path, archive: bytes, pool: int, starts: int) -> None:
    began = time.monotonic()
    with a_world(root, archive, pool) as world:
        run = Run(world, SEED, starts)
        run.go()
        run.finish()
        report(f"pool of {pool}", SEED, began, run)


@pytest.mark.parametrize("pool", [0, 3])
def test_a_sample_of_starts_and_deaths(tmp_path: Path, archive: bytes, pool: int) -> None:
    endure(tmp_path, archive, pool, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pool", [0, 3])
def test_a_thousand_starts_and_deaths(tmp_path: Path, archive: bytes, pool: int) -> None:
    endure(tmp_path, archive, pool, WHOLE)
