"""Limits hold, are read back, change, and out-of-memory is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from worker.runtime import cgroups
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
MIB = 1 << 20
DENY_ALL = {"allow": False, "access": "rwm"}


def resources(**limits):
    return {"resources": {"devices": [DENY_ALL], **limits}}


def read(box, controller, file):
    from worker.runtime.cgroups import read

    return read(f"{box.cgroup.directory(controller)}/{file}").strip()


def v1_only(boxes):
    from worker.runtime.cgroups import Cgroup

    if Cgroup(boxes.parent).version != 1:
        pytest.skip("names files of cgroup v1")


async def test_out_of_memory(boxes):
    box = await boxes.make(
        ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
        linux=resources(memory={"limit": 16 * MIB, "swap": 16 * MIB}),
    )
    events = box.shim.events()
    first = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    await box.shim.start()
    seen = [await first]
    async with asyncio.timeout(10):
        async for event in events:
            seen.append(event)
            if event["type"] == "exit":
                break
    assert seen[0] == {"type": "oom"}, seen
    assert (seen[-1]["code"], seen[-1]["oom"]) == (137, True), seen


async def test_a_childs_death_by_memory_is_the_containers_flag_too(boxes):
    result = await boxes.sh(
        "dd if=/dev/zero of=/dev/null bs=64M count=1; exit 5",
        linux=resources(memory={"limit": 16 * MIB, "swap": 16 * MIB}),
    )
    assert (result.code, result.exit["oom"]) == (5, True), result


async def test_process_limit(boxes):
    result = await boxes.sh("for i in 1 2 3 4 5 6; do sleep 1 & done; echo done", linux=resources(pids={"limit": 4}))
    assert "fork" in result.err, result


@contextlib.contextmanager
def nested_cpusets(boxes) -> Iterator[tuple[str, Cgroup]]:
    """(the cpuset directory of a parent, a group in it), neither of them made; both removed in the end."""
    v1_only(boxes)
    parent = Cgroup(f"{boxes.parent}/cpusets")
    child = Cgroup(f"{parent.path}/child")
    found = parent.directory("cpuset")
    if found is None:
        pytest.skip("no hierarchy has the controller cpuset")
    try:
        yield found, child
    finally:
        assert child.remove()
        assert parent.remove()


@pytest.mark.parametrize("whose", ["parent", "own"])
async def test_an_empty_cpuset_is_filled_by_whoever_finds_it(boxes, whose):
    """Its maker, another daemon on the machine, is between mkdir and the writes, or was killed there."""
    with nested_cpusets(boxes) as (found, child):
        os.makedirs(f"{found}/child" if whose == "own" else found)
        child.create()
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        child.add(process.pid)
        process.communicate()
        above = cgroups.read(f"{os.path.dirname(found)}/cpuset.cpus")
        assert cgroups.read(f"{found}/child/cpuset.cpus").strip() == above.strip()


async def test_a_new_cpuset_has_its_parents_processors_from_the_kernel(boxes):
    with nested_cpusets(boxes) as (found, child):
        child.create()
        assert cgroups.read(f"{found}/cgroup.clone_children") == "1\n"
        os.mkdir(f"{found}/untouched")
        for file in ("cpuset.cpus", "cpuset.mems"):
            untouched, made, above = (cgroups.read(f"{found}/{name}{file}") for name in ("untouched/", "child/", ""))
            assert untouched == made == above != "\n"


async def test_cpu_and_cpuset(boxes):
    v1_only(boxes)
    cpu = {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"}
    box = await boxes.start(["sleep", "60"], linux=resources(cpu=cpu))
    assert read(box, "cpu", "cpu.shares") == "512"
    assert read(box, "cpu", "cpu.cfs_quota_us") == "20000"
    assert read(box, "cpu", "cpu.cfs_period_us") == "50000"
    assert read(box, "cpuset", "cpuset.cpus") == "0"
    _, out, _ = await box.run_exec("e", ["grep", "Cpus_allowed_list", "/proc/self/status"])
    assert out.split()[1] == b"0"


async def test_update_grows_and_shrinks(boxes):
    v1_only(boxes)
    box = await boxes.start(["sleep", "60"], linux=resources(memory={"limit": 16 * MIB, "swap": 16 * MIB}))
    for size in (64, 8):
        await box.shim.update({"memory": {"limit": size * MIB, "swap": size * MIB}, "pids": {"limit": size}})
        assert read(box, "memory", "memory.limit_in_bytes") == str(size * MIB)
        assert read(box, "memory", "memory.memsw.limit_in_bytes") == str(size * MIB)
        assert read(box, "pids", "pids.max") == str(size)
    code, _, _ = await box.run_exec("e", ["sh", "-c", "echo x >/dev/null && cat /dev/null"])
    assert code == 0, "an update must leave the device rules as they were"


async def test_impossible_limits_name_the_field(boxes):
    with pytest.raises(RuntimeFault, match=r"cpu\.cpus: .*cpuset\.cpus"):
        await boxes.make(["true"], linux=resources(cpu={"cpus": "900"}))
    with pytest.raises(RuntimeFault, match=r"memory\.swap.*below"):
        await boxes.make(["true"], linux=resources(memory={"limit": 32 * MIB, "swap": 16 * MIB}))


async def test_devices_are_denied(boxes):
    v1_only(boxes)
    script = "mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null bs=512 count=1; echo x >/dev/null && echo fine"
    tmp = {"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]}
    result = await boxes.sh(script, mounts=[tmp])
    assert result.out == "fine\n"
    assert "Operation not permitted" in result.err
    allowed = {"devices": [DENY_ALL, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}]}
    box = await boxes.start(["sleep", "60"], linux={"resources": allowed})
    assert "c 10:229 r" in read(box, "devices", "devices.list").splitlines()


async def test_stats(boxes):
    box = await boxes.start(
        ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 60 & echo ready; wait"],
        linux=resources(memory={"limit": 32 * MIB}, pids={"limit": 9}),
    )
    await box.logged("ready")
    stats = await box.shim.stats()
    assert stats["cpu"]["total_ns"] > 1_000_000
    assert 0 < stats["memory"]["usage"] < 32 * MIB == stats["memory"]["limit"]
    assert stats["pids"] == {"current": 2, "limit": 9}
    assert stats["oom_kills"] == 0
    assert len(await box.shim.pids()) == 2


async def test_pause_and_resume(boxes):
    box = await boxes.start(["sh", "-c", "while :; do echo tick; sleep 0.01; done"])
    await box.logged("tick")
    await box.shim.pause()
    assert (await box.shim.state())["state"] == "paused"
    with pytest.raises(RuntimeFault, match="is paused, not running"):
        await box.shim.pause()
    before = box.log.stat().st_size
    await asyncio.sleep(0.1)
    assert box.log.stat().st_size == before
    await box.shim.resume()
    ticks = box.log.read_text().count("tick")
    await box.logged("tick", ticks + 2)


async def test_a_paused_container_can_be_killed(boxes):
    box = await boxes.start(["sleep", "60"])
    await box.shim.pause()
    await box.shim.kill(signal.SIGKILL)
    assert (await box.exit())["code"] == 137
