"""The same work while the machine lacks something: room on a disk, open files, processes.

What is refused says what to do, leaves nothing half-done and nothing running; exits are told with their right codes all the
while, and when the lack is over all is well.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.containers.endurance.chaos import Run, a_world, report
from tests.worker.containers.endurance.test_deaths import SEED
from tests.worker.containers.endurance.world import World

pytestmark = pytest.mark.root

SAMPLE, WHOLE = 25, 300
SPACE = re.compile("free space|free the space")
FILES = re.compile("open files")


class Lack:
    """Something the machine lacks for a while, again and again; ``begin`` and ``end`` bring it about."""

    def __init__(self, seed: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._random = random.Random(f"{seed}-lack")
        self._begin, self._end = begin, end
        self._lacking = threading.Event()
        self._ended = 0.0
        self.times = 0

    def faulty(self) -> bool:
        """Whether it is lacked, or was a moment ago."""
        return self._lacking.is_set() or time.monotonic() < self._ended + 1.0

    def meanwhile(self) -> None:
        """One time of plenty and one of lack."""
        time.sleep(self._random.uniform(0.1, 0.6))
        self.during(lambda: time.sleep(self._random.uniform(0.1, 0.8)))

    def during(self, function: Callable[[], None]) -> None:
        self.times += 1
        self._lacking.set()
        try:
            self._begin()
            function()
        finally:
            self._end()
            self._ended = time.monotonic()
            self._lacking.clear()


def hurt(world: World, name: str, lack: Lack, starts: int, remedy: re.Pattern[str], deaths: bool) -> Run:
    began = time.monotonic()
    run = Run(world, SEED, starts, every=1.5, faulty=lack.faulty)
    run.go(deaths=False, meanwhile=lack.meanwhile if not deaths else lambda: dying(run, lack))
    run.finish()
    run.tally.counts["lacks"] = lack.times
    report(name, SEED, began, run)
    unhelpful = [words for words in run.tally.refusals if not remedy.search(words)]
    assert not unhelpful, "\n".join(unhelpful)
    return run


def dying(run: Run, lack: Lack) -> None:
    """A lack during which the daemon is killed and started again now and then."""
    lack.meanwhile()
    if run.random.random() < 0.4:
        lack.during(run.kill_daemon)


def small(directory: str, megabytes: int) -> Callable[[World], None]:
    """The node's ``directory`` (data or run) on a tmpfs of this size."""

    def prepared(world: World) -> None:
        place = world.root / directory
        place.mkdir(exist_ok=True)
        options = f"size={megabytes}m,mode=711"
        subprocess.run(world.inside("mount", "-t", "tmpfs", "-o", options, "small", str(place)), check=True)

    return prepared


def filler(world: World, directory: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """What fills the directory's tmpfs to the last byte, and what empties it again."""
    path = world.seen(world.root / directory) / "filler"

    def fill() -> None:
        with open(path, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 12))

    return fill, lambda: path.unlink(missing_ok=True)


@pytest.mark.parametrize(("directory", "megabytes", "pool"), [("data", 24, 3), ("run", 4, 3), ("run", 4, 0)])
def test_a_full_disk(tmp_path: Path, archive: bytes, directory: str, megabytes: int, pool: int) -> None:
    with a_world(tmp_path, archive, pool, small(directory, megabytes)) as world:
        lack = Lack(SEED, *filler(world, directory))
        hurt(world, f"full {directory} directory, pool of {pool}", lack, SAMPLE, SPACE, deaths=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("directory", "megabytes", "pool"), [("data", 24, 0), ("data", 24, 3), ("run", 4, 3), ("run", 4, 0)])
def test_a_full_disk_for_long(tmp_path: Path, archive: bytes, directory: str, megabytes: int, pool: int) -> None:
    with a_world(tmp_path, archive, pool, small(directory, megabytes)) as world:
        lack = Lack(SEED, *filler(world, directory))
        hurt(world, f"full {directory} directory, pool of {pool}", lack, WHOLE, SPACE, deaths=True)
