"""The terminal joined to a container: stdin in, output out, resizes and signals passed on, until the streams end.

It decides who waits for whom: a thread sends stdin, because a full pipe in one direction must not stop the other. What runs
at the other end, and how it is told of signals and sizes, is given by the caller.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

from covey.engine_api.framing import STDERR, SYSTEM_ERROR, Decoder
from covey.engine_api.light import Hijacked, Response

DETACH_KEYS = b"\x10\x11"
_PIECE = 64 * 1024
#: Not passed on: they cannot be caught, or they are this process's own business.
_OWN = {"SIGKILL", "SIGSTOP", "SIGCHLD", "SIGWINCH", "SIGPIPE", "SIGURG", "SIGTTIN", "SIGTTOU", "SIGTSTP", "SIGCONT",
        "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS", "SIGPROF", "SIGVTALRM", "SIGALRM", "SIGIO",
        "SIGSTKFLT", "SIGXCPU", "SIGXFSZ", "SIGPWR"}  # fmt: skip


class Detached(Exception):
    """The user typed the detach keys: the container goes on."""


def write(descriptor: int, data: bytes) -> None:
    """All of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def show_frames(response: Response, tty: bool) -> None:
    """A log stream to stdout and stderr, as it comes."""
    decoder = Decoder()
    for piece in response:
        if tty:
            write(1, piece)
            continue
        for frame in decoder.feed(piece):
            write(2 if frame.stream in (STDERR, SYSTEM_ERROR) else 1, frame.payload)


@contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Stdin without echo, line editing and signals, as it was before afterwards."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def terminal_size() -> tuple[int, int] | None:
    """(rows, columns) of the terminal; None without one."""
    for descriptor in (1, 0):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            return size.lines, size.columns
    return None


class Session:
    """One attachment. ``on_signal(name)`` is called for signals to pass on, ``on_resize(rows, columns)`` with a TTY."""

    def __init__(
        self,
        stream: Hijacked,
        *,
        tty: bool,
        stdin: bool,
        on_signal: Callable[[str], None] | None = None,
        on_resize: Callable[[int, int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._tty = tty
        self._stdin = stdin
        self._on_signal = on_signal
        self._on_resize = on_resize
        self._wake, self._woken = socket.socketpair()
        self._detached = False

    def run(self) -> None:
        """Until the other end closes. Raises Detached when the user typed the detach keys."""
        with self._signals(), raw_terminal(self._tty and self._stdin):
            if self._stdin:
                threading.Thread(target=self._send_stdin, daemon=True).start()
            try:
                self._receive()
            finally:
                self._stream.close()
        if self._detached:
            raise Detached

    def _receive(self) -> None:
        decoder = Decoder()
        while not self._detached:
            if not self._stream.pending():
                ready, _, _ = select.select([self._stream.fileno(), self._woken.fileno()], [], [])
                if self._woken.fileno() in ready:
                    self._heard(self._woken.recv(64))
                if self._stream.fileno() not in ready:
                    continue
            try:
                data = self._stream.receive()
            except ConnectionResetError:
                return
            if not data:
                return
            if self._tty:
                write(1, data)
                continue
            for frame in decoder.feed(data):
                write(2 if frame.stream in (STDERR, SYSTEM_ERROR) else 1, frame.payload)

    def _send_stdin(self) -> None:
        held = b""
        with suppress(OSError):
            while data := os.read(0, _PIECE):
                if self._tty:
                    held = (held + data)[-len(DETACH_KEYS) :]
                    if held == DETACH_KEYS:
                        self._detached = True
                        self._wake.send(b"\0")
                        return
                self._stream.send(data)
            self._stream.close_write()

    def _heard(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self.resize()
            elif number and self._on_signal is not None:
                self._on_signal(signal.Signals(number).name)

    def resize(self) -> None:
        """Tell the other end how large the terminal is."""
        if self._tty and self._on_resize is not None and (size := terminal_size()) is not None:
            self._on_resize(*size)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop instead of ending the process."""
        wanted = {signal.SIGWINCH} if self._tty else set()
        if self._on_signal is not None:
            wanted |= {one for one in signal.Signals if one.name not in _OWN and one < signal.SIGRTMIN}
        before: Mapping[signal.Signals, object] = {one: signal.signal(one, _nothing) for one in sorted(wanted)}
        self._wake.setblocking(False)
        old = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for one, handler in before.items():
                signal.signal(one, handler)  # type: ignore[arg-type]


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has told the loop."""
