"""Children of the daemon: started once, adopted by pid and start time, restarted with back-off, ended for good."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from covey.clock import SystemClock
from covey.errors import Unavailable
from worker.children import BACKOFF, Child, ChildSpec
from worker.kernel.process import is_alive, start_time

SLEEPER = ("sleep", "1000")


class Quick(SystemClock):
    """The machine's clock, whose long sleeps are written down and not slept."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        if seconds >= BACKOFF[0]:
            self.pauses.append(seconds)
        await asyncio.sleep(min(seconds, 0.01))


def spec(directory: Path, argv: tuple[str, ...] = SLEEPER, **more: Any) -> ChildSpec:
    return ChildSpec("child", argv, directory / "child.json", directory / "logs" / "child.log", **more)


async def wait_until(condition: Callable[[], bool], what: str, state: Callable[[], Any] = lambda: "") -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited 10 s for {what}: {state()}"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def kept(child: Child) -> AsyncIterator[Child]:
    """``child`` with its ``run`` running; only that ends here, not the process."""
    running = asyncio.create_task(child.run())
    try:
        yield child
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.mark.asyncio
async def test_a_child_outlives_its_daemon_and_the_next_daemon_adopts_it(tmp_path: Path) -> None:
    async with kept(Child(spec(tmp_path), SystemClock())) as first:
        await first.wait_ready(5)
        pid = first.pid
    born = start_time(pid)
    assert born
    assert is_alive(pid, born)
    async with kept(Child(spec(tmp_path), SystemClock())) as second:
        await second.wait_ready(5)
        assert second.pid == pid
    await second.end(5)
    assert not is_alive(pid, born)
    assert not (tmp_path / "child.json").exists()


@pytest.mark.asyncio
async def test_a_pid_that_another_process_has_now_is_not_adopted_and_not_ended(tmp_path: Path) -> None:
    stranger = subprocess.Popen(SLEEPER)
    try:
        born = start_time(stranger.pid)
        assert born
        state = {"pid": stranger.pid, "start_time": born - 1, "argv": list(SLEEPER)}
        (tmp_path / "child.json").write_text(json.dumps(state))
        async with kept(Child(spec(tmp_path), SystemClock())) as child:
            await child.wait_ready(5)
            assert child.pid != stranger.pid
        await child.end(5)
        (tmp_path / "child.json").write_text(json.dumps(state))
        await child.end(5)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.asyncio
async def test_the_end_of_an_adopted_child_is_seen_and_it_is_started_again(tmp_path: Path) -> None:
    async with kept(Child(spec(tmp_path), SystemClock())) as first:
        await first.wait_ready(5)
    async with kept(Child(spec(tmp_path), SystemClock())) as second:
        await second.wait_ready(5)
        old = second.pid
        os.kill(old, signal.SIGKILL)
        await wait_until(lambda: second.pid not in (0, old), "a new process", second.statistics)
        assert second.restarts == 1
        assert json.loads((tmp_path / "child.json").read_text())["pid"] == second.pid
    await second.end(5)


@pytest.mark.asyncio
async def test_one_that_dies_at_once_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    clock = Quick()
    async with kept(Child(spec(tmp_path, ("sh", "-c", "exit 3")), clock)) as child:
        await wait_until(lambda: len(clock.pauses) >= 9, "nine deaths", child.statistics)
    assert clock.pauses[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    assert child.statistics()["fault"] == "ended with 3"


@pytest.mark.suite
@pytest.mark.asyncio
async def test_one_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    argv = ("sh", "-c", "echo the port is taken >&2; exit 7")
    async with kept(Child(spec(tmp_path, argv, ready=never), Quick())) as child:
        with pytest.raises(Unavailable, match=r"child did not come up: ended with 7; its last words: the port is taken"):
            await child.wait_ready(1.0)


@pytest.mark.asyncio
async def test_a_program_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    async with kept(Child(spec(tmp_path, ("/nowhere/etcd",)), SystemClock())) as child:
        with pytest.raises(Unavailable, match=r"/nowhere/etcd: No such file or directory"):
            await child.wait_ready(30)
    assert time.monotonic() - began < 5


@pytest.mark.asyncio
async def test_one_that_ignores_sigterm_is_killed_after_the_patience(tmp_path: Path) -> None:
    stubborn = ("sh", "-c", "trap '' TERM; echo up; exec sleep 1000")
    async with kept(Child(spec(tmp_path, stubborn), SystemClock())) as child:
        log = tmp_path / "logs" / "child.log"
        await wait_until(lambda: log.exists() and "up" in log.read_text(), "the child to ignore SIGTERM", child.statistics)
    pid, born, began = child.pid, start_time(child.pid) or 0, time.monotonic()
    await child.end(0.3)
    assert not is_alive(pid, born)
    assert time.monotonic() - began >= 0.3


@pytest.mark.asyncio
async def test_a_record_without_a_start_time_is_no_child(tmp_path: Path) -> None:
    (tmp_path / "child.json").write_text(json.dumps({"pid": os.getpid(), "start_time": None}))
    async with kept(Child(spec(tmp_path), SystemClock())) as child:
        await child.wait_ready(5)
        assert child.pid != os.getpid()
    await child.end(5)


@pytest.mark.asyncio
async def test_preparation_comes_before_every_start(tmp_path: Path) -> None:
    marks: list[int] = []
    child = Child(spec(tmp_path, ("true",), prepare=lambda: marks.append(1)), Quick())
    async with kept(child):
        await wait_until(lambda: child.restarts >= 2, "two restarts", child.statistics)
    assert len(marks) > child.restarts - 1
