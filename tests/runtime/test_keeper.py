"""A shim's keeper and workers: what an idle one owns; nothing is lost when they change; neither outlives the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from worker.containers.shim_client import Shim, exit_record
from worker.kernel import process

from .conftest import Box, Boxes, default_bundle, read_all, wait_until

pytestmark = [pytest.mark.root, pytest.mark.asyncio]

OWN_KIB = 850
"""Of an idle container's shim: 600 where this was written, and 2000 when it kept what its first worker touches."""
DEATH = 2.0
PATIENCE = 30.0
"""For a worker to leave: it stays longer each time it is needed."""


def workers(keeper: int) -> list[int]:
    """The shim's processes but the one that stays."""
    found = []
    for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        # One may leave while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text() == "covey-shim\n":
                found.append(int(pid))
    return found


async def asleep(box: Box) -> None:
    await wait_until("a shim without a worker", lambda: not workers(box.shim_pid), PATIENCE)


def own_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


async def next_exit(shim: Shim) -> tuple[Any, asyncio.Task[dict[str, Any]]]:
    """A listener that is connected now, and its next event."""
    events = shim.events()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await shim.state()
    return events, waiting


async def warm(boxes: Boxes, args: list[str]) -> Box:
    """A container out of a sandbox made ahead."""
    shim, directory, pid = await boxes.shim()
    config = default_bundle(boxes.rootfs, f"{boxes.parent}/{directory.name}")
    await shim.prepare({**config, "linux": {**config["linux"], "cgroupsPath": f"{boxes.parent}/ahead-{directory.name}"}})
    config["process"]["args"] = args
    (directory / "config.json").write_text(json.dumps(config))
    log = {"path": str(directory / "box.log"), "driver": "json-file"}
    init, _ = await shim.create(directory, config=config, log=log)
    await shim.start()
    return Box(shim, directory, pid, init, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [Boxes.start, warm], ids=["cold", "warm"])
async def test_the_shim_of_an_idle_container_owns_little(boxes, make):
    box = await make(boxes, ["sleep", "100"])
    events, waiting = await next_exit(box.shim)
    await asleep(box)
    # Pages that the zygote has written since are its last shim's; another one shows what a shim has for good.
    await boxes.start(["sleep", "100"])
    own = own_kib(box.shim_pid)
    assert own < OWN_KIB, f"{own} KiB"
    await box.shim.kill(signal.SIGKILL)
    assert (await waiting)["code"] == 137
    await events.aclose()


async def test_every_request_wakes_it(boxes):
    box = await boxes.start(["sh", "-c", "trap 'exit 7' TERM; while true; do sleep 0.05; done"])
    before = await box.shim.state()
    code, out, _ = await box.run_exec("first", ["echo", "one"])
    assert (code, out) == (0, b"one\n")
    await asleep(box)
    after = await box.shim.state()
    assert after == before
    assert after["pid"] == box.shim_pid
    assert (await box.shim.exec_state("first"))["exit_code"] == 0
    await asleep(box)
    assert (await box.run_exec("second", ["sh", "-c", "exit 5"]))[0] == 5
    await asleep(box)
    await box.shim.pause()
    await asleep(box)
    assert (await box.shim.state())["state"] == "paused"
    await box.shim.resume()
    assert box.init_pid in await box.shim.pids()
    events, waiting = await next_exit(box.shim)
    await asleep(box)
    await box.shim.kill(signal.SIGTERM)
    assert (await waiting)["code"] == 7
    await events.aclose()
    assert exit_record(box.directory)["exit_code"] == 7
    await box.shim.delete()


async def test_streams_go_on_where_they_were(boxes):
    script = 'printf half; read line; echo " $line"; cat | wc -c; echo error >&2'
    box = await boxes.start(["sh", "-c", script], stdin=True)
    await asleep(box)
    attachment = await box.shim.attach(stdin=True)
    await attachment.send(b"whole\n")
    await box.logged("half whole")
    attachment.close()
    await asleep(box)
    attachment = await box.shim.attach(stdin=True)
    await attachment.send(bytes(3 << 20))
    # Only if nobody else holds the pipe's end does the container read the end of it.
    await attachment.half_close()
    out, err = await read_all(attachment)
    assert (out, err) == (f"{3 << 20}\n".encode(), b"error\n")
    assert (await box.exit())["code"] == 0
    entries = [json.loads(line)["log"] for line in box.log.read_text().splitlines()]
    assert entries == ["half whole\n", f"{3 << 20}\n", "error\n"]


async def test_a_terminal_goes_along(boxes):
    box = await boxes.start(["sh", "-c", 'read line; stty size; echo "$line"'], process={"terminal": True})
    await asleep(box)
    await box.shim.resize(17, 53)
    await asleep(box)
    attachment = await box.shim.attach(stdin=True)
    await attachment.send(b"typed\n")
    out, _ = await read_all(attachment)
    assert b"17 53" in out
    assert out.endswith(b"typed\r\n")


async def test_output_wakes_it_and_is_logged(boxes):
    box = await boxes.start(["sh", "-c", "sleep 1; seq 1 2000; sleep 1; seq 2001 4000; exit 3"])
    await asleep(box)
    assert (await box.exit())["code"] == 3
    entries = [json.loads(line)["log"] for line in box.log.read_text().splitlines()]
    assert entries == [f"{number}\n" for number in range(1, 4001)]


async def test_an_exit_is_told_at_whatever_moment_it_comes(boxes):
    """Before, while and after the worker leaves: the end of each container reaches who has listened, once, and the disk."""

    async def told(box: Box) -> None:
        events, waiting = await next_exit(box.shim)
        event = await asyncio.wait_for(waiting, 10)
        assert (event["type"], event["code"]) == ("exit", 9)
        await events.aclose()
        assert exit_record(box.directory)["exit_code"] == 9
        assert json.loads(box.log.read_text())["log"] == "done\n"
        await box.shim.delete()

    started = []
    for number in range(40):
        box = await boxes.start(["sh", "-c", f"sleep {0.2 + 0.01 * number:.2f}; echo done; exit 9"])
        started.append(asyncio.ensure_future(told(box)))
    await asyncio.gather(*started)


@pytest.mark.parametrize("sleeping", [False, True], ids=["working", "asleep"])
async def test_the_keepers_death_is_the_containers(boxes, sleeping):
    box = await boxes.start(["sh", "-c", "trap '' TERM; while true; do sleep 0.05; done"])
    started = process.start_time(box.init_pid)
    if sleeping:
        await asleep(box)
        left: list[int] = []
    else:
        left = workers(box.shim_pid)
        assert left
    os.kill(box.shim_pid, signal.SIGKILL)
    await wait_until("the container's end", lambda: not process.is_alive(box.init_pid, started), DEATH)
    for pid in left:
        await wait_until("the worker's end", lambda pid=pid: not is_shim(pid), DEATH)


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
async def test_a_workers_death_is_the_containers(boxes, later):
    box = await boxes.start(["sh", "-c", "trap '' TERM; while true; do sleep 0.05; done"])
    started, keeper_started = process.start_time(box.init_pid), process.start_time(box.shim_pid)
    if later:
        await asleep(box)
        await box.shim.state()
    (worker,) = workers(box.shim_pid)
    os.kill(worker, signal.SIGKILL)
    await wait_until("the container's end", lambda: not process.is_alive(box.init_pid, started), DEATH)
    await wait_until("the keeper's end", lambda: not process.is_alive(box.shim_pid, keeper_started), DEATH)
    assert exit_record(box.directory) is None


def is_shim(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return False


async def test_a_container_of_the_hosts_pid_namespace_keeps_its_worker(boxes):
    """Its orphans come to the shim that has said it takes them, which the worker is."""
    kinds = ("network", "ipc", "uts", "mount", "cgroup")
    box = await boxes.start(["sleep", "100"], linux={"namespaces": [{"type": kind} for kind in kinds]})
    await asyncio.sleep(1.0)
    assert workers(box.shim_pid)
    started = process.start_time(box.init_pid)
    os.kill(box.shim_pid, signal.SIGKILL)
    await wait_until("the container's end", lambda: not process.is_alive(box.init_pid, started), DEATH)


async def test_one_that_is_woken_again_and_again_stays_awake_longer(boxes):
    box = await boxes.start(["sh", "-c", "while true; do sleep 0.9; echo tick; done"])
    await asleep(box)
    await box.logged("tick", 4)
    first = await wait_until("a worker", lambda: workers(box.shim_pid))
    await box.logged("tick", 8)
    assert workers(box.shim_pid) == first
