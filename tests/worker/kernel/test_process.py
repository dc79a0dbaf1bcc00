"""A process is its pid and its start time."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from worker.kernel import process, syscalls


def test_alive_then_zombie_then_gone():
    child = subprocess.Popen(["sleep", "60"])
    started = process.start_time(child.pid)
    assert started is not None
    assert process.is_alive(child.pid, started)
    assert not process.is_alive(child.pid, started + 1), "another process with that pid"
    assert not process.kill_verified(child.pid, started + 1, signal.SIGKILL)
    assert child.poll() is None
    assert process.kill_verified(child.pid, started, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(child.pid, started), "a zombie does not run"
    child.wait()
    assert process.start_time(child.pid) is None
    assert not process.kill_verified(child.pid, started, signal.SIGKILL)


def test_a_name_with_spaces_and_brackets():
    script = "import time, pathlib; pathlib.Path('/proc/self/comm').write_text('a) R 1 (b'); print(flush=True); time.sleep(60)"
    child = subprocess.Popen(["python3", "-c", script], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        started = process.start_time(child.pid)
        assert started is not None
        assert process.is_alive(child.pid, started)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_errors_name_the_call():
    with pytest.raises(OSError, match="setns: Invalid argument") as caught:
        syscalls.setns(0)
    assert caught.value.errno == 22
