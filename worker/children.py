"""The daemon's child processes (manager, etcd): started once, adopted ever after, restarted when they die.

A child outlives the daemon that started it. Its pid and start time stand in a file; a daemon that comes back takes over
the process that matches, and starts a new one only if there is none. It decides when to restart (back-off 100 ms to 8 s);
what the child does, and whether it answers, is known by who declares it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covey.clock import Clock
from covey.errors import Unavailable
from worker.kernel.process import is_alive, kill_verified, start_time
from worker.processes import wait_gone

log = logging.getLogger(__name__)

BACKOFF = (0.1, 8.0)
#: A child that lived this long has earned a quick restart.
STEADY = 10.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start: ``argv`` with ``environment`` added to ours, in ``directory``, its output appended to ``log_path``.

    ``prepare`` is called before every start; ``ready`` returns when the child serves, which ``wait_ready`` waits for by
    ``patience`` seconds.
    """

    name: str
    argv: Sequence[str]
    state_path: Path
    log_path: Path
    directory: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    ready: Callable[[], Awaitable[None]] | None = None
    patience: float = 30.0


class Child:
    """One child process, kept alive while ``run`` runs. Ending ``run`` leaves it; ``end`` ends it."""

    def __init__(self, spec: ChildSpec, clock: Clock) -> None:
        self.spec = spec
        self._clock = clock
        self.pid = 0
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._serving = asyncio.Event()
        self._fault = ""

    def statistics(self) -> dict[str, Any]:
        """Pid (0: not running), how often it was restarted, and its last fault."""
        return {"pid": self.pid, "restarts": self.restarts, "fault": self._fault}

    async def wait_ready(self, patience: float | None = None) -> None:
        """Until the child serves. Raises Unavailable with the end of its log when it does not in time."""
        try:
            async with asyncio.timeout(patience or self.spec.patience):
                await self._serving.wait()
            came_up = self.pid != 0
        except TimeoutError:
            came_up = False
        if not came_up:
            raise Unavailable(f"{self.spec.name} did not come up: {self._fault or 'no answer'}; {self._last_words()}")

    async def run(self) -> None:
        """Adopt or start, wait for its end, start again; until cancelled."""
        pause = BACKOFF[0]
        while True:
            began = self._clock.monotonic()
            try:
                if not self._adopt():
                    await self._start()
                await self._attend()
            except OSError as fault:
                self._fault = f"{self.spec.argv[0]}: {fault.strerror or fault}"
                log.error("%s cannot be started: %s", self.spec.name, self._fault)
                # Who waits need not wait for what does not exist.
                self.pid = 0
                self._serving.set()
            self._serving.clear()
            self.pid = 0
            if self._clock.monotonic() - began > STEADY:
                pause = BACKOFF[0]
            await self._clock.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])
            self.restarts += 1

    async def end(self, patience: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after ``patience`` seconds; returns when the process is gone. ``run`` must have ended."""
        recorded = self._recorded()
        self.spec.state_path.unlink(missing_ok=True)
        if recorded is None:
            return
        pid, started = recorded
        for number, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            kill_verified(pid, started, number)
            deadline = self._clock.monotonic() + wait
            while is_alive(pid, started) and self._clock.monotonic() < deadline:
                await self._clock.sleep(0.02)
            if not is_alive(pid, started):
                return

    def _recorded(self) -> tuple[int, int] | None:
        """Pid and start time of the process on record, if it lives; one that died at once has no start time on record."""
        try:
            state = json.loads(self.spec.state_path.read_text())
            pid, started = int(state["pid"]), int(state["start_time"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (pid, started) if is_alive(pid, started) else None

    def _adopt(self) -> bool:
        recorded = self._recorded()
        if recorded is None:
            return False
        self.pid = recorded[0]
        log.info("adopted %s, pid %d", self.spec.name, self.pid)
        return True

    async def _start(self) -> None:
        self.spec.prepare()
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.spec.state_path.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(self.spec.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                cwd=self.spec.directory,
                env={**os.environ, **self.spec.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        self.pid = self._process.pid
        state = {"pid": self.pid, "start_time": start_time(self.pid), "argv": list(self.spec.argv)}
        fresh = self.spec.state_path.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        fresh.rename(self.spec.state_path)
        log.info("started %s, pid %d", self.spec.name, self.pid)

    async def _attend(self) -> None:
        """Until the process has ended; meanwhile say when it serves."""
        announce = asyncio.create_task(self._announce(), name=f"{self.spec.name}: readiness")
        try:
            code = await self._ended()
        finally:
            announce.cancel()
            with suppress(asyncio.CancelledError):
                await announce
        self._fault = f"ended with {code}" if code is not None else "ended"
        log.warning("%s, pid %d, %s; %s", self.spec.name, self.pid, self._fault, self._last_words())

    async def _announce(self) -> None:
        if self.spec.ready is not None:
            await self.spec.ready()
        self._serving.set()

    async def _ended(self) -> int | None:
        if self._process is not None and self._process.pid == self.pid:
            return await self._process.wait()
        await wait_gone(self.pid)
        return None

    def _last_words(self) -> str:
        try:
            with open(self.spec.log_path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        return f"its last words: {lines[-1][:300]}" if lines else f"its log is {self.spec.log_path}"
