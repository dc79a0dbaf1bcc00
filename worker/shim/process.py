"""One process of a container as the shim sees it: its launch, its streams, its exit. The first one and execs alike.

It is told by the loop, and tells its owner by callbacks. Which states a container has is worker.shim.container.
"""

from __future__ import annotations

import os
import time

from worker.kernel.bare import Any, Callable, Sequence, signal, suppress
from worker.runtime import sync
from worker.runtime.birth import Birth
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Prepare, Stdio
from worker.runtime.mount_options import MappedTree
from worker.runtime.process import Launch, launch
from worker.shim.logs import Log
from worker.shim.loop import READ, Loop
from worker.shim.streams import Streams

# What a shell, and Docker after it, answers for a program that could not be run.
LAUNCH_EXIT = {"not-found": 127, "not-executable": 126}

# created, exec or error, end of file.
_LAST_WORDS = 4

Answer = Callable[["RuntimeFault | None"], None]


class Process:
    """exit_code: None while it lives; then its status, or 128 + signal."""

    def __init__(self, loop: Loop, log: Log | None, on_exit: Callable[[Process], None]) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._answer: Answer | None = None
        self._launch: Launch | None = None
        self.streams = Streams(loop, log)
        self.pid = 0
        self.start_time = 0
        self.started_at: float | None = None
        self.started = False
        self.exit_code: int | None = None
        self.exit_signal: int | None = None
        self.fault: RuntimeFault | None = None

    def create(
        self,
        birth: Birth,
        prepare: Prepare,
        group: Cgroup,
        *,
        stdin: bool,
        answer: Answer,
        entered_pid: int | None = None,
        sandbox: bool = False,
        trees: Sequence[MappedTree] = (),
        on_request: Callable[[Launch, str, dict[str, Any]], None] | None = None,
        sibling: bool = False,
    ) -> None:
        """Fork it up to where it waits for ``start`` (a ``sandbox``: for ``claim``, which gives it its streams).

        ``answer`` gets None or the fault. ``on_request``: told of what it asks its parent for (see Launch.on_request).
        The rest as in ``launch``.
        """
        pipes = not birth.terminal and not sandbox
        stdio = self.streams.make_pipes(stdin=stdin) if pipes else Stdio(None, None, None)
        try:
            self._launch = launch(birth, prepare, stdio, group, entered_pid, trees, sibling=sibling)
        except BaseException:
            self.streams.close()
            raise
        finally:
            Streams.release(stdio)
        self.pid, self.start_time = self._launch.pid, self._launch.start_time
        self._answer = answer
        launched = self._launch
        if on_request is not None:
            launched.on_request = lambda kind, body: on_request(launched, kind, body)
        self.streams.pump()
        self._loop.add(self._launch.channel.fileno(), READ, lambda _: self._on_handshake())
        if self._launch.phase == "failed":
            self._settle(self._launch.fault)

    @property
    def over(self) -> bool:
        """Whether nothing will come of it any more."""
        return self.exit_code is not None and self.streams.ended

    def be_over(self, pid: int, code: int) -> None:
        """Be a process that was over in another process of the shim."""
        self.pid, self.exit_code, self.started = pid, code, True
        self.streams.ended = True

    @property
    def pidfd(self) -> int:
        assert self._launch is not None
        return self._launch.pidfd

    def resume(self, pid: int, pidfd: int, start_time: int, started_at: float | None) -> None:
        """Be a process that another process of the shim has started; its streams ``take`` what there is of them."""
        self._launch = Launch.running(pid, pidfd, start_time)
        self.pid, self.start_time = pid, start_time
        self.started, self.started_at = True, started_at

    def follow(self, handshake: int) -> None:
        """After ``resume``: it has not been started yet, and waits for that at the other end of ``handshake``."""
        channel = sync.adopt(handshake)
        channel.socket.setblocking(False)
        self._launch = Launch.waiting(self.pid, self.pidfd, self.start_time, channel)
        self.started, self.started_at = False, None
        self._loop.add(handshake, READ, lambda _: self._on_handshake())

    def claim(self, bundle: str, init: bool, log: Log | None, birth: Birth, *, stdin: bool, answer: Answer) -> None:
        """Have a ready sandbox become the container of ``bundle``; the rest as in ``create``."""
        assert self._launch is not None
        self._answer = answer
        self.streams = Streams(self._loop, log)
        stdio = Stdio(None, None, None) if birth.terminal else self.streams.make_pipes(stdin=stdin)
        try:
            self._launch.claim(bundle, init, stdio)
        except OSError as error:
            self._settle(RuntimeFault("kernel", f"the sandbox has gone: {error.strerror}", "claim"))
        finally:
            Streams.release(stdio)
        self.streams.pump()

    def start(self, answer: Answer) -> None:
        assert self._launch is not None
        self._answer = answer
        try:
            self._launch.start()
        except OSError as error:
            self._settle(RuntimeFault("kernel", f"the process has gone: {error.strerror}", "start"))

    def _on_handshake(self) -> None:
        assert self._launch is not None
        if not self._launch.on_readable():
            return
        if self._launch.phase in ("created", "ready"):
            if self._launch.console is not None:
                self.streams.take_console(self._launch.console)
                self.streams.pump()
            self._settle(None)
            return
        self._loop.remove(self._launch.channel.fileno())
        self._launch.channel.close()
        if self._launch.phase == "started":
            self.begun()
        self._settle(self._launch.fault)

    def begun(self) -> None:
        self.started = True
        self.started_at = time.time()

    def ended(self, code: int) -> None:
        """``code`` as os.waitstatus_to_exitcode has it: negative for a signal."""
        self.exit_signal = -code if code < 0 else None
        self.exit_code = 128 - code if code < 0 else code
        if not self.started and self.fault is not None and code >= 0:
            self.exit_code = LAUNCH_EXIT.get(self.fault.code, 128)

    @property
    def warnings(self) -> list[str]:
        """What of the bundle the process has left out."""
        return self._launch.warnings if self._launch is not None else []

    def fail(self, fault: RuntimeFault) -> None:
        """End it for a fault of its surroundings, which is the answer to whoever waits."""
        self.signal(signal.SIGKILL)
        self._settle(fault)

    def _settle(self, fault: RuntimeFault | None) -> None:
        self.fault = self.fault or fault
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(fault)

    def signal(self, number: int) -> bool:
        """False when it has ended."""
        return self.exit_code is None and self._launch is not None and self._launch.signal(number)

    def signal_group(self, number: int) -> bool:
        """As ``signal``, and to what it has started that has not left its process group."""
        if self.exit_code is not None or not self.pid:
            return False
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        return True

    def on_reaped(self, status: int) -> None:
        """The kernel's wait status has come: take the last words of the handshake and the pipes, then tell."""
        assert self._launch is not None
        code = os.waitstatus_to_exitcode(status)
        if self._launch.phase != "started":
            self._hear_last_words(self._launch.channel)
        self.ended(code)
        self._launch.close()
        self.streams.drain()
        self._on_exit(self)
        self.streams.process_ended()

    def _hear_last_words(self, channel: sync.Channel) -> None:
        for _ in range(_LAST_WORDS):
            if channel.fileno() >= 0:
                self._on_handshake()
        if channel.fileno() >= 0:
            self._loop.remove(channel.fileno())
            channel.close()
