"""What a container, or a bundle, does to the shim: names too long, disks too full, users changed, cgroups of others."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from worker.containers.shim_client import exit_record, sweep
from worker.kernel import process
from worker.runtime.errors import RuntimeFault

from ..conftest import Boxes, wait_until

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
PATH = {"env": ["PATH=/bin:/sbin"], "cwd": "/"}


async def test_an_execs_user_has_no_capability_and_only_its_groups(boxes: Boxes):
    running = await boxes.start(["sleep", "60"])
    script = "id -G; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status"
    _, out, _ = await running.run_exec("u", ["sh", "-c", script], user={"uid": 33, "gid": 33, "additionalGids": [44]})
    groups, *sets = out.decode().splitlines()
    assert groups.split() == ["33", "44"]
    assert [line.split()[1] for line in sets] == ["0000000000000000"] * 4


async def test_a_name_of_a_hundred_kibibytes_breaks_no_handshake(boxes: Boxes):
    running = await boxes.start(["sleep", "60"])
    await running.shim.exec("long", {**PATH, "args": ["x" * 100_000]})
    with pytest.raises(RuntimeFault) as caught:
        await running.shim.exec_start("long")
    assert caught.value.code == "not-found"
    assert (await running.shim.state())["state"] == "running"


async def test_a_disk_that_takes_no_exit_record(boxes: Boxes):
    """The shim lives, tells the exit itself, and writes the record as soon as it can."""
    box = await boxes.start(["sleep", "60"])
    (box.directory / "exit.json.tmp").mkdir()
    await box.shim.kill(signal.SIGKILL)
    assert (await box.exit())["code"] == 137
    assert exit_record(box.directory) is None
    (box.directory / "exit.json.tmp").rmdir()
    async with asyncio.timeout(5):
        while (record := exit_record(box.directory)) is None:
            await asyncio.sleep(0.01)
    assert record["exit_code"] == 137


async def test_a_container_that_changed_its_user_ends_with_its_shim_when_swept(boxes: Boxes):
    """The kernel forgets the death signal of a process that changes its user itself; the daemon's sweep ends it."""
    box = await boxes.start(["busybox", "su", "-s", "/bin/sh", "user", "-c", "echo ready; exec sleep 60"])
    await box.logged("ready")
    started, shim_started = process.start_time(box.init_pid), process.start_time(box.shim_pid)
    os.kill(box.shim_pid, signal.SIGKILL)
    await wait_until("end of the shim", lambda: not process.is_alive(box.shim_pid, shim_started))
    async with asyncio.timeout(5):
        while not sweep(box.directory):
            await asyncio.sleep(0.01)
    assert not process.is_alive(box.init_pid, started)
    assert not box.cgroup.exists()


async def test_a_cgroup_that_others_are_in_is_refused_and_they_live(boxes: Boxes):
    """Its processes would be killed when the container ends."""
    other = await boxes.start(["sleep", "60"])
    started = process.start_time(other.init_pid)
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, linux={"cgroupsPath": other.cgroup.path})
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match=r"holds 1 processes.*cgroupsPath"):
        await shim.create(directory)
    await shim.delete()
    assert process.is_alive(other.init_pid, started)
    assert other.cgroup.pids() == [other.init_pid]
