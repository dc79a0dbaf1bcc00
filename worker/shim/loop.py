"""The shim's event loop: descriptors that become ready, timers, and children that end. Single-threaded, on epoll.

It knows nothing of containers. A callback that raises ends the shim, and with it its container: callbacks catch what
they can answer for.
"""

from __future__ import annotations

import os
import select
import time

from worker.kernel.bare import Callable, signal

READ, WRITE, HANGUP, PRIORITY = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLPRI


class Timer:
    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._new: set[int] = set()
        self._timers: list[Timer] = []
        self._running = True
        self._quiet: tuple[float, Callable[[], None]] | None = None
        self._disturbed = True
        self._pipe: tuple[int, ...] = ()

    def add(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready; hang-ups and errors are always told."""
        self._epoll.register(fd, mask)
        self._callbacks[fd] = callback
        self._new.add(fd)

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        self._timers.append(timer)
        return timer

    def watch_children(self, callback: Callable[[int, int], None]) -> None:
        """Reap every child, also who has ended before, and call ``callback(pid, wait status)`` in ``run``.

        SIGCHLD has a handler: the zygote's.
        """
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.write(write, b"\0")

        def reap(_: int) -> None:
            try:
                os.read(read, 4096)
            except BlockingIOError:
                pass
            try:
                while True:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        return
                    callback(pid, status)
            except ChildProcessError:
                pass

        self.add(read, READ, reap)
        self._pipe = (read, write)

    def when_quiet(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it once nothing has happened for so long and no timer runs; again only after something has happened."""
        self._quiet = (seconds, call)

    def close(self) -> None:
        """Let go of the kernel's objects; what was added is its owners' to close."""
        self._epoll.close()
        for fd in self._pipe:
            os.close(fd)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            ready = self._epoll.poll(self._timeout())
            if ready:
                self._disturbed = True
            elif not self._timers and self._disturbed and self._quiet:
                self._disturbed = False
                self._quiet[1]()
            self._new.clear()
            for fd, events in ready:
                # A callback before this one may have removed it, and even added what has got its number since.
                callback = self._callbacks.get(fd)
                if callback is not None and fd not in self._new:
                    callback(events)
            self._fire_timers()

    def _timeout(self) -> float:
        if not self._timers:
            return self._quiet[0] if self._quiet and self._disturbed else -1
        return max(0.0, min(timer.when for timer in self._timers) - time.monotonic())

    def _fire_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        due = [timer for timer in self._timers if timer.when <= now]
        self._timers = [timer for timer in self._timers if timer.when > now and timer.call is not None]
        for timer in due:
            if timer.call is not None:
                timer.call()
