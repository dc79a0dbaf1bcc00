"""Sandboxes made ahead that die, whose daemon dies, or of which there are not enough: nobody notices, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.containers.conftest import wait_until, zygote_of
from tests.worker.containers.endurance.chaos import a_world, children
from tests.worker.containers.endurance.world import IMAGE, World
from worker.kernel import process

pytestmark = pytest.mark.root

POOL = 2
LOOK = 12.0


@pytest.fixture(scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory, archive: bytes) -> Iterator[World]:
    with a_world(tmp_path_factory.mktemp("pool"), archive, POOL) as made:
        yield made


@pytest.fixture
def world(_world: World) -> World:
    full(_world)
    return _world


def full(world: World) -> dict[str, tuple[int, int]]:
    """Waits until there are as many sandboxes as are wanted, each with its process; name → (shim, start time)."""

    def look() -> dict[str, tuple[int, int]]:
        found = {place.name: (shim, started) for place, shim, started in world.sandboxes() if children(shim)}
        return found if len(found) == POOL else {}

    found: dict[str, tuple[int, int]] = wait_until(look, f"{POOL} sandboxes are ready", LOOK)
    return found


def only(world: World, names: set[str]) -> bool:
    """Whether no cgroup, directory or shim of other sandboxes is there."""
    pool = world.root / "run" / "pool"
    cgroups = {one.name for one in world.cgroups() if one.name.startswith("sandbox-")}
    return cgroups == names and {one.name for one in pool.iterdir()} == names


@pytest.mark.parametrize("victim", ["process", "shim"])
def test_a_sandbox_that_dies_is_replaced_and_harms_no_start(world: World, victim: str) -> None:
    before = full(world)
    for shim, started in before.values():
        if victim == "shim":
            process.kill_verified(shim, started, signal.SIGKILL)
        else:
            os.kill(children(shim)[0], signal.SIGKILL)
    assert world.out("run", "--rm", IMAGE, "echo", "hi") == "hi"
    wait_until(lambda: not {*full(world)} & {*before}, "others have come", LOOK)
    wait_until(lambda: only(world, {*full(world)}), "nothing of the dead is left", LOOK)
    assert not any(process.is_alive(*one) for one in before.values())


def test_more_starts_than_sandboxes(world: World) -> None:
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda n: world.docker("run", "--rm", IMAGE, "sh", "-c", f"exit {n}", code=n), range(1, 9)))
    assert len(done) == 8
    wait_until(lambda: only(world, {*full(world)}), "the pool is full again", LOOK)


def test_sandboxes_end_with_a_daemon_that_is_killed_and_never_comes_back(world: World) -> None:
    before = full(world)
    world.kill(signal.SIGKILL)
    wait_until(lambda: only(world, set()), "nothing of the sandboxes is left")
    assert not any(process.is_alive(*one) for one in before.values())
    world.start()


def test_everybody_is_killed_at_once(world: World) -> None:
    before = full(world)
    victims = [zygote_of(world.root), *(shim for shim, _ in before.values())]
    assert world.daemon is not None
    world.daemon.send_signal(signal.SIGSTOP)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    world.kill(signal.SIGKILL)
    world.start()
    wait_until(lambda: only(world, {*full(world)}), "only the new sandboxes are there", LOOK)
    assert not {*full(world)} & {*before}


def workers(shim: int) -> list[int]:
    """The processes of a shim beside its keeper; the sandbox's is a child of the keeper too."""
    children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "covey-shim"]


@pytest.mark.parametrize("shim_dies", [False, True])
def test_a_daemon_killed_when_it_has_taken_a_sandbox(world: World, shim_dies: bool) -> None:
    """The sandbox's shim is held still, so that its daemon is killed after the socket has moved and before any answer."""
    before = full(world)

    def two_each() -> list[int]:
        pids = [pid for shim, _ in before.values() for pid in (shim, *workers(shim))]
        return pids if len(pids) == 2 * len(before) else []

    held: list[int] = wait_until(two_each, "each shim is a keeper and its worker", LOOK)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    ident = world.out("create", "--name", "box", IMAGE, "sh", "-c", "exit 5")
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(world.docker, "start", "box", code=None)
        taken = wait_until(lambda: (world.run_directory(ident) / "shim.sock").exists(), "the socket has moved")
        assert taken
        world.kill(signal.SIGKILL)
        assert starting.result().returncode != 0
    if shim_dies:
        for shim, started in before.values():
            process.kill_verified(shim, started, signal.SIGKILL)
    else:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    world.start()
    assert world.state("box")["Status"] in ("created", "exited")
    wait_until(lambda: only(world, {*full(world)}), "only the new sandboxes are there", LOOK)
    assert world.docker("start", "-a", "box", code=5)
    world.docker("rm", "box")
    wait_until(lambda: not world.leftovers(), "nothing is left")
    assert not any(process.is_alive(*one) for one in before.values())
