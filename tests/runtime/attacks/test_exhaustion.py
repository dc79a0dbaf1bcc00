"""Using up what all share: processes, descriptors, memory. The host, the shim and the neighbours do not notice."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from worker.containers import defaults
from worker.kernel import process

from ..conftest import Box
from .conftest import PYTHON, Default, outcome

pytestmark = [pytest.mark.root, pytest.mark.asyncio]

_BOMB = """
import kit, os, signal, time
count = 0
try:
    while count < 300:
        if os.fork() == 0:
            signal.pause()
        count += 1
    words = "no limit"
except OSError as error:
    words = error.strerror
kit.tell(count=count, words=words)
time.sleep(60)
"""


async def _well(neighbour: Box, tag: str) -> None:
    """A neighbour answers, the machine can start a process."""
    code, out, _ = await neighbour.run_exec(tag, ["echo", "well"])
    assert (code, out) == (0, b"well\n")
    assert subprocess.run(["true"]).returncode == 0


async def test_a_fork_bomb_meets_its_limit(covey: Default):
    neighbour = await covey.start(["sleep", "60"])
    bomb = await covey.start([*PYTHON, _BOMB], host={"PidsLimit": 40})
    await bomb.logged("count")
    assert "Resource temporarily unavailable" in bomb.log.read_text()
    assert len(bomb.cgroup.pids()) == 40
    await _well(neighbour, "e")
    control = await covey.start([*PYTHON, _BOMB], host={"PidsLimit": -1})
    await control.logged("count")
    outcome("fork bomb", "PidsLimit -1", "no limit" in control.log.read_text())
    assert "no limit" in control.log.read_text()
    bomb_pids = bomb.cgroup.pids()
    await bomb.shim.kill(9)
    await bomb.exit()
    assert not [pid for pid in bomb_pids if os.path.exists(f"/proc/{pid}/ns/pid") and pid in bomb.cgroup.pids()]


async def test_a_container_has_a_limit_of_processes_by_default(covey: Default):
    box = await covey.start(["sleep", "60"])
    directory = box.cgroup.directory("pids")
    assert directory is not None
    assert Path(directory, "pids.max").read_text().strip() == str(defaults.PIDS_LIMIT) == "4096"


async def test_descriptors_run_out_inside_only(covey: Default):
    program = """
import kit, os, time
fds = []
try:
    while len(fds) < 100_000:
        fds.append(os.open("/dev/null", os.O_RDONLY))
    words = "no limit"
except OSError as error:
    words = error.strerror
os.close(fds.pop())
os.close(fds.pop())
kit.tell(count=len(fds), words=words)
time.sleep(60)
"""
    neighbour = await covey.start(["sleep", "60"])
    limits = {"Ulimits": [{"Name": "nofile", "Soft": 512, "Hard": 512}]}
    box = await covey.start([*PYTHON, program], host=limits)
    await box.logged("count")
    assert "Too many open files" in box.log.read_text()
    code, out, _ = await box.run_exec("e", ["echo", "well"])
    assert (code, out) == (0, b"well\n")
    await _well(neighbour, "e")


async def test_memory_runs_out_inside_only(covey: Default):
    program = "held = []\nfor _ in range(256):\n    held.append(bytearray(os.urandom(1) * (1 << 20)))\nkit.tell(held=len(held))"
    neighbour = await covey.start(["sleep", "60"])
    shim_started, zygote_started = process.start_time(neighbour.shim_pid), process.start_time(covey.zygote.pid)
    limited = {"Memory": 32 << 20, "MemorySwap": 32 << 20}
    result = await covey.run([*PYTHON, f"import kit, os\n{program}"], host=limited)
    assert result.code == 137
    assert result.exit["oom"] is True
    await _well(neighbour, "e")
    assert process.is_alive(neighbour.shim_pid, shim_started or 0)
    assert process.is_alive(covey.zygote.pid, zygote_started or 0)
    control = await covey.python(program, host={"Memory": 400 << 20})
    outcome("memory", "a limit of 400 MiB", control["held"] == 256)
    assert control["held"] == 256
