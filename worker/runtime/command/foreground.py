"""Stands for a container's process while the caller waits: signals and the terminal passed on, its exit code answered.

One poll loop: a pipe that signals wake, the pidfd of the process, and with a terminal its master and our stdin. It knows a
pid, not what a container is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator

from worker.kernel import process as kernel_process
from worker.kernel import syscalls

_NOT_FORWARDED = frozenset(
    (
        signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH, signal.SIGTTIN,
        signal.SIGTTOU, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS,
        signal.SIGABRT, signal.SIGPROF, signal.SIGVTALRM, signal.SIGALRM,
    )
)  # fmt: skip
"""Faults and clocks are this process's own; window changes reach the other terminal by its size."""
_WHOLE = 65536


class Attended:
    """A process waited for. ``master``: its terminal's, or None when it has our stdio itself."""

    def __init__(self, pid: int, pidfd: int, master: int | None) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._master = master
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pending = b""
        self._input_open = True

    def prepare(self) -> None:
        """From here on signals are the process's, not ours."""
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for number in signal.valid_signals() - _NOT_FORWARDED | {signal.SIGWINCH, signal.SIGCHLD}:
            # Real-time signals below 34 belong to the C library.
            if number not in (32, 33):
                signal.signal(number, lambda *_: None)
        if self._master is not None:
            os.set_blocking(self._master, False)
            self._copy_size()

    def wait(self) -> int:
        """The exit code, 128 and the number when a signal ended it."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        ended = False
        while not ended:
            self._watch_terminal(poll)
            for fd, events in poll.poll():
                if fd == self._wake:
                    self._take_signals()
                elif fd == self._pidfd:
                    ended = True
                elif fd == self._master:
                    self._serve_master(events, poll)
                else:
                    self._read_input(poll)
        _, status = os.waitpid(self._pid, 0)
        if self._master is not None:
            self._drain()
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    def _watch_terminal(self, poll: select.poll) -> None:
        if self._master is None:
            return
        poll.register(self._master, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._input_open and not self._pending:
            poll.register(0, select.POLLIN)
        else:
            with contextlib.suppress(KeyError):
                poll.unregister(0)

    def _take_signals(self) -> None:
        for number in os.read(self._wake, 4096):
            if number == signal.SIGCHLD:
                self._reap_others()
            elif number == signal.SIGWINCH:
                self._copy_size()
            else:
                kernel_process.send_signal(self._pidfd, number)

    def _reap_others(self) -> None:
        """Orphans that came to us; the process itself is left for ``wait``."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if found.si_pid == self._pid:
                    return
                os.waitpid(found.si_pid, 0)

    def _copy_size(self) -> None:
        if self._master is not None:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _serve_master(self, events: int, poll: select.poll) -> None:
        assert self._master is not None
        if events & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                self._pending = self._pending[os.write(self._master, self._pending) :]
        if events & (select.POLLIN | select.POLLHUP) and not self._copy_output():
            # Nobody holds the terminal now; the process may live on without.
            poll.unregister(self._master)
            with contextlib.suppress(KeyError):
                poll.unregister(0)
            os.close(self._master)
            self._master = None

    def _copy_output(self) -> bool:
        """One piece of what the process has printed; False when there is no more to come."""
        assert self._master is not None
        try:
            data = os.read(self._master, _WHOLE)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        _write_all(1, data)
        return bool(data)

    def _drain(self) -> None:
        """What is still in the terminal when the process has ended; what others print later is not waited for."""
        assert self._master is not None
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        while poll.poll(0):
            if not self._copy_output():
                return

    def _read_input(self, poll: select.poll) -> None:
        data = os.read(0, _WHOLE)
        if data:
            self._pending = data
            return
        self._input_open = False
        # A terminal's end of file is a character.
        self._pending = b"\x04"

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for fd in (self._wake, self._woken, *([] if self._master is None else [self._master])):
            os.close(fd)


@contextlib.contextmanager
def attended(pid: int, pidfd: int, master: int | None, *, adopt: bool) -> Iterator[Attended]:
    """Take the caller's terminal (raw, when there is one) and signals for a child ``pid``; give back at the end.

    ``adopt``: be the subreaper of what it leaves.
    """
    if adopt:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    result = Attended(pid, pidfd, master)
    before = termios.tcgetattr(0) if master is not None and os.isatty(0) else None
    result.prepare()
    try:
        if before is not None:
            tty.setraw(0)
        yield result
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        result.close()


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        # The caller has gone; the process need not.
        pass
