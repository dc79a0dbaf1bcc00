"""A deterministic event loop on a virtual clock, in which processes can be stopped, continued and killed between steps.

A process is a context: every callback and asyncio.Task made within it belongs to it. Killing drops what it was going to
do next, wherever it stood, as SIGKILL would; stopping keeps that until it goes on, as SIGSTOP would.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future as ThreadFuture
from typing import Any


class Process:
    """Something that runs, until it is killed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.kept: list[_Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_CURRENT.set, self)


_CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Handle:
    __slots__ = ("_args", "_callback", "_cancelled", "_when", "context")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when: float) -> None:
        self._callback = callback
        self._args = args
        self.context = context
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when

    def run(self) -> None:
        self.context.run(self._callback, *self._args)


class SimLoop(asyncio.AbstractEventLoop):
    """``run_until(when)`` steps everything that is due, in order of time, then of request."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.faults: list[str] = []
        self.steps = 0

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Any:
        handle = _Handle(callback, args, context or contextvars.copy_context(), self._now)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Any:
        handle = _Handle(callback, args, context or contextvars.copy_context(), when)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > 2000:
            self._tasks = [task for task in self._tasks if not task.done()]
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """What would run in a thread runs at once: a journal is a list here."""
        done: asyncio.Future[Any] = self.create_future()
        result: ThreadFuture[Any] = ThreadFuture()
        try:
            result.set_result(func(*args))
            done.set_result(result.result())
        except Exception as error:
            done.set_exception(error)
        return done

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")

    def start(self, process: Process, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``coro`` as part of ``process``."""
        return self.create_task(coro, name=name, context=process.context.copy())

    def kill(self, process: Process) -> None:
        """The process does nothing ever again."""
        process.alive = False
        process.kept.clear()

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """SIGCONT: what became due meanwhile happens now."""
        process.stopped = False
        self._ready.extend(process.kept)
        process.kept.clear()

    def run_until(self, when: float) -> None:
        """Step until the clock shows ``when``."""
        asyncio._set_running_loop(self)
        try:
            while True:
                self._step_ready()
                if not self._timers or self._timers[0][0] > when:
                    break
                at, _, handle = heapq.heappop(self._timers)
                self._now = max(self._now, at)
                self._ready.append(handle)
            self._now = max(self._now, when)
        finally:
            asyncio._set_running_loop(None)

    def _step_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle.context.get(_CURRENT)
            if process is not None:
                if not process.alive:
                    continue
                if process.stopped:
                    process.kept.append(handle)
                    continue
            self.steps += 1
            handle.run()

    def end(self) -> None:
        """Forget everything that was under way, where it stands."""
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()


def current() -> Process | None:
    """The process whose step this is."""
    return _CURRENT.get()
