"""One thing at a time that the machine lacks, and what is told of it: descriptors and room for a shim, cgroup controllers."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.containers.conftest import CONTROLLERS, wait_until
from tests.worker.containers.endurance.chaos import a_world
from tests.worker.containers.endurance.test_faults import filler, small
from tests.worker.containers.endurance.world import IMAGE, World
from worker.containers.shim_client import Shim

pytestmark = pytest.mark.root

SLEEP = ["sh", "-c", "trap 'exit 7' TERM; sleep 1000 & while :; do wait; done"]


@pytest.fixture
def world(tmp_path: Path, archive: bytes) -> Iterator[World]:
    with a_world(tmp_path, archive, 1) as made:
        yield made


def run(world: World, name: str, command: list[str], **settings: Any) -> str:
    body = {"Image": IMAGE, "Cmd": command, "HostConfig": settings}
    ident: str = world.api.must("POST", f"/containers/create?name={name}", body)["Id"]
    world.api.must("POST", f"/containers/{name}/start")
    return ident


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def handles_term(world: World, name: str) -> bool:
    pid = world.state(name)["Pid"]
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_shim_without_descriptors_refuses_execs_and_tells_the_exit(world: World) -> None:
    ident = run(world, "box", SLEEP)
    assert world.out("exec", "box", "echo", "before") == "before"
    wait_until(lambda: handles_term(world, "box"), "it handles SIGTERM")
    found = world.shim(ident)
    assert found is not None
    shim = found[0]
    used = descriptors(shim)
    former = resource.prlimit(shim, resource.RLIMIT_NOFILE)
    for more in range(7):
        resource.prlimit(shim, resource.RLIMIT_NOFILE, (max(map(int, os.listdir(f"/proc/{shim}/fd"))) + 1 + more, former[1]))
        done = world.docker("exec", "box", "echo", "hi", code=None)
        assert (done.returncode, done.stdout) == (0, "hi\n") or "open files" in done.stdout, (more, done)
    resource.prlimit(shim, resource.RLIMIT_NOFILE, former)
    wait_until(lambda: descriptors(shim) <= used, f"the shim holds no more than {used} descriptors")
    assert world.out("exec", "box", "echo", "after") == "after"
    resource.prlimit(shim, resource.RLIMIT_NOFILE, (used, former[1]))
    world.docker("stop", "-t", "10", "box")
    assert world.state("box")["ExitCode"] == 7
    world.docker("rm", "box")


def test_what_a_full_disk_takes_of_a_log_is_counted_and_stops_nobody(tmp_path: Path, archive: bytes) -> None:
    with a_world(tmp_path, archive, 1, small("data", 24)) as world:
        fill, empty = filler(world, "data")
        ident = run(world, "box", ["sh", "-c", "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.01; done"])
        before = world.state("box")

        def lost() -> int:
            return int(asyncio.run(state_of(world, ident))["lost_log_bytes"])

        assert lost() == 0
        fill()
        try:
            wait_until(lambda: lost() > 500, "log bytes are lost and counted")
        finally:
            empty()
        counted = lost()
        last = int(world.out("logs", "--tail", "1", "box").split()[1])
        wait_until(lambda: int(world.out("logs", "--tail", "1", "box").split()[1]) > last + 10, "the log goes on")
        assert world.state("box")["Pid"] == before["Pid"]
        assert lost() == counted
        log = world.seen(world.root / "data" / "containers" / ident / f"{ident}-json.log")
        numbers = [int(json.loads(line)["log"].split()[1]) for line in log.read_text().splitlines()]
        assert numbers == sorted(set(numbers)), "entries are torn or doubled"
        world.docker("rm", "-f", "box")


async def state_of(world: World, ident: str) -> dict[str, Any]:
    shim = await Shim.connect(world.run_directory(ident))
    try:
        return await shim.state()
    finally:
        shim.close()


def hidden(*controllers: str) -> Any:
    """The node's mounts without these v1 hierarchies."""

    def prepared(world: World) -> None:
        for name in controllers:
            subprocess.run(world.inside("umount", str(CONTROLLERS / name)), check=True)

    return prepared


REFUSED, DROPPED = "refused", "dropped"
# controller | HostConfig that needs it | what becomes of that
NEEDS = {
    "memory": ({"Memory": 64 << 20}, DROPPED, "memory limit capabilities"),
    "pids": ({"PidsLimit": 50}, DROPPED, "PIDs limit capabilities"),
    "cpu": ({"NanoCpus": 500_000_000}, REFUSED, "NanoCPUs can not be set"),
    "cpuset": ({"CpusetCpus": "0"}, DROPPED, "cpuset"),
    "blkio": ({"BlkioWeight": 300}, DROPPED, "Block I/O weight"),
}
needs_v1 = pytest.mark.skipif(
    not (CONTROLLERS / "memory" / "tasks").exists(), reason="the machine has no cgroup v1 hierarchies"
)


@needs_v1
@pytest.mark.parametrize("pool", [0, 1])
def test_without_any_controller_that_a_container_can_do_without(tmp_path: Path, archive: bytes, pool: int) -> None:
    with a_world(tmp_path, archive, pool, hidden(*NEEDS, "freezer")) as world:
        assert world.out("run", "--rm", IMAGE, "echo", "hi") == "hi"
        run(world, "box", SLEEP)
        for name, (settings, fate, words) in NEEDS.items():
            answer = world.api.call(
                "POST", f"/containers/create?name=with-{name}", {"Image": IMAGE, "Cmd": ["true"], "HostConfig": settings}
            )
            assert words in answer.text, (name, answer)
            assert answer.status == (400 if fate == REFUSED else 201), (name, answer)
            if fate == DROPPED:
                world.api.must("POST", f"/containers/with-{name}/start")
                assert json.loads(world.api.call("POST", f"/containers/with-{name}/wait").text)["StatusCode"] == 0
        paused = world.docker("pause", "box", code=1)
        assert "freezer" in paused.stderr
        assert world.state("box")["Status"] == "running"
        wait_until(lambda: handles_term(world, "box"), "it handles SIGTERM")
        assert world.out("exec", "box", "echo", "in") == "in"
        world.docker("stop", "-t", "10", "box")
        assert world.state("box")["ExitCode"] == 7
        world.clear()


@needs_v1
@pytest.mark.long
@pytest.mark.parametrize("name", ["memory", "freezer", "pids", "cpuset", "cpu", "blkio"])
def test_without_one_controller(tmp_path: Path, archive: bytes, name: str) -> None:
    with a_world(tmp_path, archive, 1, hidden(name)) as world:
        run(world, "box", SLEEP)
        wait_until(lambda: handles_term(world, "box"), "it handles SIGTERM")
        world.kill(signal.SIGKILL)
        world.start()
        world.docker("stop", "-t", "10", "box")
        assert world.state("box")["ExitCode"] == 7
        world.clear()


@needs_v1
def test_without_the_device_controller_no_container_runs(tmp_path: Path, archive: bytes) -> None:
    with a_world(tmp_path, archive, 1, hidden("devices")) as world:
        done = world.docker("run", "--rm", IMAGE, "true", code=None)
        assert done.returncode in (125, 126, 127, 128), done
        assert "devices" in done.stderr
        assert "mount it" in done.stderr
        world.clear()
