"""Log mode non-blocking: entries wait in a bounded ring for a process of their own to write them, never the container.

A disk that hangs then holds up that process alone. A ring that is full drops the newest entries, as Docker's does, and
counts them; an entry larger than the ring is taken when the ring is empty. The writer ends when its shim does, after all
it was sent. It is forked, not threaded: a process with threads must not fork containers.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from worker.kernel import syscalls
from worker.kernel.bare import deque, signal
from worker.shim.logfile import LogFile
from worker.shim.loop import WRITE, Loop

DEFAULT_SIZE = 1_000_000
_LENGTH = struct.Struct(">I")
_FLUSH = _LENGTH.pack(0)
_ANSWER = struct.Struct(">Q")
_PATIENCE = 5.0
_FORK_AGAIN = 1.0


class Ring:
    """A log like ``log``, which is written by another process: ``limit`` bytes of entries at most wait for it here."""

    def __init__(self, loop: Loop, log: LogFile, limit: int = DEFAULT_SIZE) -> None:
        self._loop = loop
        self._log = log
        self._limit = limit
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._sending = b""
        self._watched = False
        self._postponed = False
        self._socket: _socket.socket | None = None
        self.dropped = 0
        log.sink = self._take
        # The writer opens it for itself; that it can be opened is known by now.
        log.close()

    @property
    def lost_bytes(self) -> int:
        """As of the last flush."""
        return self._log.lost_bytes

    def write(self, stream: int, data: bytes) -> None:
        self._log.write(stream, data)

    def end(self, stream: int) -> None:
        self._log.end(stream)

    def _take(self, entries: list[bytes]) -> None:
        tried = False
        for entry in entries:
            if self._full(entry) and not tried:
                # The writer may have room for a whole ring more.
                self._send()
                tried = self._full(entry)
            if self._full(entry):
                self.dropped += 1
            else:
                self._queue.append(entry)
                self._waiting += len(entry)
        self._send()

    def _full(self, entry: bytes) -> bool:
        return bool(self._queue) and self._waiting + len(entry) > self._limit

    def _writer(self) -> _socket.socket | None:
        """The writer's socket; None while there can be no further process."""
        if self._socket is None:
            ours, theirs = _socket.socketpair()
            try:
                if os.fork() == 0:
                    try:
                        _write_all(theirs, self._log)
                    finally:
                        os._exit(0)
            except OSError:
                ours.close()
                return None
            finally:
                theirs.close()
            ours.setblocking(False)
            self._socket = ours
        return self._socket

    def _next(self) -> bytes:
        if not self._sending and self._queue:
            entry = self._queue.popleft()
            self._waiting -= len(entry)
            self._sending = _LENGTH.pack(len(entry)) + entry
        return self._sending

    def _send(self) -> None:
        """As much as the writer takes now."""
        writer = self._writer()
        if writer is None:
            self._send_later(_FORK_AGAIN)
            return
        try:
            while data := self._next():
                sent = writer.send(data, _socket.MSG_NOSIGNAL)
                self._sending = data[sent:]
        except BlockingIOError:
            self._watch(True)
        except OSError:
            # Somebody killed it: what it had not written is lost, what waits goes to its successor.
            self._drop_writer()
            self._send_later(0)
        else:
            self._watch(False)

    def _send_later(self, seconds: float) -> None:
        def again() -> None:
            self._postponed = False
            self._send()

        if not self._postponed:
            self._postponed = True
            self._loop.call_later(seconds, again)

    def _watch(self, wanted: bool) -> None:
        assert self._socket is not None
        if wanted and not self._watched:
            self._loop.add(self._socket.fileno(), WRITE, lambda _: self._send())
        elif self._watched and not wanted:
            self._loop.remove(self._socket.fileno())
        self._watched = wanted

    def _drop_writer(self) -> None:
        """Let it write what it has been sent, and end; half an entry that it was sent counts as dropped."""
        if self._socket is not None:
            self._watch(False)
            self._socket.close()
            self._socket = None
        self.dropped += bool(self._sending)
        self._sending = b""

    def flush(self) -> None:
        """Blocks until all that waits is in the file, for five seconds at most; what is not by then is dropped."""
        if self._socket is None:
            return
        self._watch(False)
        deadline = time.monotonic() + _PATIENCE
        try:
            while data := self._next():
                self._socket.settimeout(max(0.01, deadline - time.monotonic()))
                sent = self._socket.send(data, _socket.MSG_NOSIGNAL)
                self._sending = data[sent:]
            self._socket.sendall(_FLUSH)
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            (self._log.lost_bytes,) = _ANSWER.unpack(self._socket.recv(_ANSWER.size, _socket.MSG_WAITALL))
            self._socket.setblocking(False)
        except (OSError, struct.error):
            self._drop_writer()
            self.dropped += len(self._queue)
            self._queue.clear()
            self._waiting = 0

    def close(self) -> None:
        self._drop_writer()


def _write_all(sock: _socket.socket, log: LogFile) -> None:
    """The writer: entries come with their length before them, 0 asks for an answer once all before it is written."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kept = os.dup2(sock.detach(), 3)
    syscalls.close_range(4)
    syscalls.prctl(syscalls.PR_SET_NAME, b"covey-log")
    log.sink = log.store
    log.open()
    inbox = bytearray()
    poll = select.poll()
    poll.register(kept, select.POLLIN)
    while True:
        poll.poll()
        data = os.read(kept, 1 << 16)
        if not data:
            return
        inbox += data
        entries: list[bytes] = []
        at = 0
        while len(inbox) >= at + 4:
            (length,) = _LENGTH.unpack_from(inbox, at)
            if length == 0:
                log.store(entries)
                entries = []
                os.write(kept, _ANSWER.pack(log.lost_bytes))
            elif len(inbox) < at + 4 + length:
                break
            else:
                entries.append(bytes(inbox[at + 4 : at + 4 + length]))
            at += 4 + length
        del inbox[:at]
        if entries:
            log.store(entries)
