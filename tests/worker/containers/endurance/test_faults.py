"""The same work while the machine lacks something: room on a disk, open files, processes.

What is refused says what to do, leaves nothing half-done and nothing running; exits are told with their right codes all the
while, and when the lack is over all is well.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.containers.conftest import CONTROLLERS, zygote_of
from tests.worker.containers.endurance.chaos import Run, a_world, report
from tests.worker.containers.endurance.test_deaths import SEED
from tests.worker.containers.endurance.world import World

pytestmark = pytest.mark.root

SAMPLE, WHOLE = 25, 300
LACKS = 5
"""At least so many times something is lacked, however fast the starts are."""
SPACE = re.compile("free space|now: try again")
FILES = re.compile("open files|now: try again")
PROCESSES = re.compile("limit of processes")


class Lack:
    """Something the machine lacks for a while, again and again; ``begin`` and ``end`` bring it about."""

    def __init__(self, seed: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._random = random.Random(f"{seed}-lack")
        self._begin, self._end = begin, end
        self._lacking = threading.Event()
        self._ended = 0.0
        self.told: Callable[[], None] = lambda: None

    def faulty(self) -> bool:
        """Whether it is lacked, or was a moment ago."""
        return self._lacking.is_set() or time.monotonic() < self._ended + 1.0

    def meanwhile(self) -> None:
        """One time of plenty and one of lack."""
        time.sleep(self._random.uniform(0.1, 0.6))
        self.during(lambda: time.sleep(self._random.uniform(0.1, 0.8)))

    def during(self, function: Callable[[], None]) -> None:
        self._lacking.set()
        try:
            self._begin()
            function()
        finally:
            self._end()
            self._ended = time.monotonic()
            self._lacking.clear()
            self.told()


def hurt(world: World, name: str, lack: Lack, starts: int, remedy: re.Pattern[str], deaths: bool) -> Run:
    began = time.monotonic()
    run = Run(world, SEED, starts, every=1.5, faulty=lack.faulty, lacks=LACKS)
    lack.told = lambda: run.tally.add("lack")
    run.go(deaths=False, meanwhile=lack.meanwhile if not deaths else lambda: dying(run, lack))
    run.finish()
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


@pytest.mark.parametrize(("directory", "megabytes", "pool"), [("data", 24, 3), ("run", 4, 3)])
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


def few_files(who: Callable[[], int]) -> tuple[Callable[[], None], Callable[[], None]]:
    """What leaves the process ``who`` answers a few more open files than it has, and what gives it back its limit."""
    chosen = random.Random(SEED)
    limited: list[tuple[int, tuple[int, int]]] = []

    def begin() -> None:
        with contextlib.suppress(OSError):
            pid = who()
            former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            most = max(int(one) for one in os.listdir(f"/proc/{pid}/fd")) + 1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + chosen.randrange(8), former[1]))
            limited.append((pid, former))

    def end() -> None:
        while limited:
            pid, former = limited.pop()
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, former)

    return begin, end


def daemon_of(world: World) -> Callable[[], int]:
    def pid() -> int:
        assert world.daemon is not None
        return world.daemon.pid

    return pid


@pytest.mark.parametrize("who", ["daemon", "zygote"])
def test_few_open_files(tmp_path: Path, archive: bytes, who: str) -> None:
    with a_world(tmp_path, archive, 2) as world:
        chosen = daemon_of(world) if who == "daemon" else lambda: zygote_of(world.seen(world.root))
        hurt(world, f"few open files for the {who}", Lack(SEED, *few_files(chosen)), SAMPLE, FILES, deaths=False)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("who", ["daemon", "zygote"])
def test_few_open_files_for_long(tmp_path: Path, archive: bytes, who: str) -> None:
    with a_world(tmp_path, archive, 2) as world:
        chosen = daemon_of(world) if who == "daemon" else lambda: zygote_of(world.seen(world.root))
        hurt(world, f"few open files for the {who}", Lack(SEED, *few_files(chosen)), WHOLE, FILES, deaths=False)


def few_processes(world: World) -> tuple[Callable[[], None], Callable[[], None]]:
    """What lets the zygote and its shims fork no more, and what ends that."""
    limit = CONTROLLERS / "pids" / world.cgroup.strip("/") / "shims" / "pids.max"
    return lambda: write(limit, "1"), lambda: write(limit, "max")


def write(path: Path, text: str) -> None:
    path.write_text(text)


needs_pids = pytest.mark.skipif(not (CONTROLLERS / "pids").is_dir(), reason="no v1 hierarchy has the pids controller")


def without_processes(root: Path, archive: bytes, pool: int, starts: int) -> None:
    with a_world(root, archive, pool) as world:
        zygote = zygote_of(world.root)
        run = hurt(world, f"no processes, pool of {pool}", Lack(SEED, *few_processes(world)), starts, PROCESSES, deaths=False)
        assert zygote_of(world.root) == zygote, "the zygote died of it"
        assert run.tally.refusals, "nothing was refused: the fault did not come about"


@needs_pids
def test_no_process_to_be_had(tmp_path: Path, archive: bytes) -> None:
    without_processes(tmp_path, archive, 2, SAMPLE)


@needs_pids
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pool", [0, 2])
def test_no_process_to_be_had_for_long(tmp_path: Path, archive: bytes, pool: int) -> None:
    without_processes(tmp_path, archive, pool, WHOLE)
