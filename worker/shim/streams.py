"""A process's stdin, stdout and stderr: pumped from its pipes or terminal to the log and to whoever is attached.

No attacher loses output: while one has too much undelivered, the pumps of that process rest, and the process waits as
it would for a slow terminal. An attacher is ended only after the exit status can be asked for. Which frames a
connection speaks is worker.shim.connection.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios

from worker.kernel.bare import Protocol, suppress
from worker.runtime.init import Stdio
from worker.shim.logs import Log
from worker.shim.loop import READ, WRITE, Loop

STDIN, STDOUT, STDERR = 0, 1, 2
_NAMES = ("stdin", "stdout", "stderr")
_CHUNK = 65536
_STDIN_HIGH = 262144
_AFTER_EXIT = 2.0
# More than the largest pipe holds, and an end to reading from a descendant that writes for ever.
_DRAIN_CHUNKS = 32


class Attacher(Protocol):
    """Who receives output; ``full`` while too much of it is undelivered."""

    @property
    def full(self) -> bool: ...

    def push(self, stream: int, data: bytes) -> None: ...

    def end(self) -> None: ...

    def resume_reading(self) -> None: ...


class Streams:
    """The descriptors of one process on our side, and its attachers."""

    def __init__(self, loop: Loop, log: Log | None) -> None:
        self._loop = loop
        self._log = log
        self._outputs: dict[int, int] = {}
        self._resting = False
        self._stdin = -1
        self._stdin_queue = bytearray()
        self._stdin_closing = False
        self._console = -1
        self._attachers: list[Attacher] = []
        self._exited = False
        self.ended = False

    def make_pipes(self, *, stdin: bool) -> Stdio:
        """Pipes for a process without a terminal; the child's ends are closed by ``release`` after the fork."""
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(3 if stdin else 2):
                pipes.append(os.pipe2(os.O_CLOEXEC))
        except OSError:
            for ends in pipes:
                os.close(ends[0])
                os.close(ends[1])
            raise
        child_stdin = None
        if stdin:
            child_stdin, self._stdin = pipes.pop()
            os.set_blocking(self._stdin, False)
        for stream, (read, _) in zip((STDOUT, STDERR), pipes):
            os.set_blocking(read, False)
            self._outputs[read] = stream
        return Stdio(child_stdin, pipes[0][1], pipes[1][1])

    @staticmethod
    def release(stdio: Stdio) -> None:
        for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
            if fd is not None:
                os.close(fd)

    def take_console(self, master: int) -> None:
        os.set_blocking(master, False)
        self._console = master
        self._outputs[master] = STDOUT
        self._stdin = os.dup(master)

    @property
    def at_rest(self) -> bool:
        """Whether nobody is attached and nothing is under way: another process that has ``descriptors`` could go on."""
        hung_up = self._console >= 0 and self._console not in self._outputs
        return not (self._attachers or self._stdin_queue or self._stdin_closing or self._exited or hung_up)

    def descriptors(self) -> list[tuple[str, int]]:
        """What ``take`` takes: (stdin, stdout, stderr or console, our end of it)."""
        if self._console >= 0:
            return [("console", self._console)]
        found = [(_NAMES[stream], fd) for fd, stream in self._outputs.items()]
        return found if self._stdin < 0 else [("stdin", self._stdin), *found]

    def take(self, name: str, fd: int) -> None:
        if name == "console":
            self.take_console(fd)
        elif name == "stdin":
            self._stdin = fd
        else:
            self._outputs[fd] = _NAMES.index(name)

    def pump(self) -> None:
        """Begin to read output."""
        for fd in self._outputs:
            self._loop.add(fd, READ, lambda _, fd=fd: self._on_output(fd))  # type: ignore[misc]

    def attach(self, attacher: Attacher) -> None:
        self._attachers.append(attacher)
        if self.ended:
            attacher.end()

    def detach(self, attacher: Attacher) -> None:
        if attacher in self._attachers:
            self._attachers.remove(attacher)
        self.relieve()

    def relieve(self) -> None:
        """An attacher has room again or is gone: read on unless another one is full."""
        if self._resting and not any(attacher.full for attacher in self._attachers):
            self._resting = False
            for fd in self._outputs:
                self._loop.modify(fd, READ)

    def _on_output(self, fd: int) -> None:
        if self._resting:
            # epoll tells a hang-up even of a descriptor nobody wants to read; what is left is bounded by the pipe.
            self._drain_one(fd)
        else:
            self._read(fd)

    def _read(self, fd: int) -> bool:
        """Pass one chunk on; False when there is none now or never again."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            # A terminal whose last user has gone answers EIO.
            if error.errno != errno.EIO:
                raise
            data = b""
        stream = self._outputs[fd]
        if not data:
            self._close_output(fd)
            return False
        if self._log is not None:
            self._log.write(stream, data)
        for attacher in self._attachers:
            attacher.push(stream, data)
        if not self._resting and any(attacher.full for attacher in self._attachers):
            self._resting = True
            for other in self._outputs:
                self._loop.modify(other, 0)
        return True

    def _drain_one(self, fd: int) -> None:
        for _ in range(_DRAIN_CHUNKS):
            if fd not in self._outputs or not self._read(fd):
                return

    def _close_output(self, fd: int) -> None:
        self._loop.remove(fd)
        stream = self._outputs.pop(fd)
        if self._log is not None:
            self._log.end(stream)
        os.close(fd)
        if self._exited and not self._outputs:
            self._finish()

    def _finish(self) -> None:
        if self.ended:
            return
        self.ended = True
        self.close_stdin(now=True)
        self._console = -1
        if self._log is not None:
            self._log.flush()
        for attacher in list(self._attachers):
            attacher.end()

    def drain(self) -> None:
        """The process has ended: take what its pipes still hold."""
        for fd in list(self._outputs):
            self._drain_one(fd)
        if self._log is not None:
            # Whoever hears of the exit finds the whole log.
            self._log.flush()

    def process_ended(self) -> None:
        """Its exit is known to all: end the attachers, soon even if a descendant keeps the pipes open."""
        self._exited = True
        if not self._outputs:
            self._finish()
        else:
            self._loop.call_later(_AFTER_EXIT, self.close)

    def skip(self) -> None:
        """Forget what the pipes hold: whoever made the process has written it, not the process."""
        for fd in self._outputs:
            with suppress(BlockingIOError):
                while os.read(fd, _CHUNK):
                    pass

    def discard(self) -> None:
        """As ``close``, of pipes that nobody has begun to read."""
        self._log = None
        self.close()

    def close(self) -> None:
        """Let go of everything, read or not."""
        self._exited = True
        for fd in list(self._outputs):
            self._close_output(fd)
        self._finish()

    def write_stdin(self, data: bytes) -> bool:
        """Queue input; False when the sender should wait for ``resume_reading``."""
        if self._stdin < 0 or self._stdin_closing:
            return True
        waiting = bool(self._stdin_queue)
        self._stdin_queue += data
        if not waiting:
            self._flush_stdin()
        return len(self._stdin_queue) < _STDIN_HIGH

    def close_stdin(self, *, now: bool = False) -> None:
        """Half-close after what is queued; a terminal has no end of input but the one typed."""
        if self._stdin < 0 or (self._console >= 0 and not now):
            return
        self._stdin_closing = True
        if now or not self._stdin_queue:
            self._drop_stdin()

    def _flush_stdin(self) -> None:
        try:
            while self._stdin_queue:
                written = os.write(self._stdin, memoryview(self._stdin_queue)[:_CHUNK])
                del self._stdin_queue[:written]
        except BlockingIOError:
            self._loop.remove(self._stdin)
            self._loop.add(self._stdin, WRITE, lambda _: self._on_stdin_room())
            return
        except OSError:
            self._drop_stdin()
            return
        self._loop.remove(self._stdin)
        if self._stdin_closing:
            self._drop_stdin()

    def _on_stdin_room(self) -> None:
        self._flush_stdin()
        if len(self._stdin_queue) < _STDIN_HIGH // 2:
            for attacher in list(self._attachers):
                attacher.resume_reading()

    def _drop_stdin(self) -> None:
        self._loop.remove(self._stdin)
        os.close(self._stdin)
        self._stdin = -1
        self._stdin_queue.clear()
        for attacher in list(self._attachers):
            attacher.resume_reading()

    def resize(self, height: int, width: int) -> bool:
        """Set the terminal's size; False when the process has none."""
        if self._console < 0:
            return False
        fcntl.ioctl(self._console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        return True
