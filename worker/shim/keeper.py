"""The processes of a shim: the keeper, which stays and sleeps, and one at a time that works and goes again.

What CPython merely touches after a fork it copies: a process that has read requests, made a sandbox and followed a
handshake owns 2 MB. So the zygote's child, the keeper, forks once more and waits. The first worker starts the container,
whose first process it has be the keeper's child (CLONE_PARENT); when all is quiet it leaves what there is to know, with
its descriptors (worker.shim.handover), and ends. The keeper then waits for the first of them to become ready, and forks
the next worker for that. Each is the other's end: a worker dies with the keeper, and the keeper, and with it the
container, ends when a worker goes without a word. Here is how they part and meet; not what is in the message.
"""

from __future__ import annotations

import _socket
import marshal
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from worker.kernel import syscalls
from worker.runtime.sync import AF_UNIX, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET

MOST_FDS = 64
_ROOM = _socket.CMSG_LEN(MOST_FDS * 4)
_LIMIT = 1 << 17
_ENDED = struct.Struct("ii")
_FATAL = int(signal.SIGKILL)
_DONTWAIT = int(_socket.MSG_DONTWAIT)
_FORK_AGAIN = 0.1


READABLE, EXCEPTIONAL = select.POLLIN, select.POLLPRI


class Handed:
    """``body``: marshalled. ``ended``: (pid, wait status) of children that ended meanwhile. ``slept``: seconds since then."""

    __slots__ = ("body", "ended", "fds", "slept")

    def __init__(self, body: bytes, fds: Sequence[int]) -> None:
        self.body = body
        self.fds = fds
        self.ended: list[tuple[int, int]] = []
        self.slept = 0.0


class Channel:
    """The worker's end: ``fileno`` is readable when a child of the keeper's has ended."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def ended(self) -> tuple[int, int]:
        """(pid, wait status) of the next one."""
        data = self._socket.recv(_ENDED.size)
        if not data:
            # The keeper has been killed: its descriptors go before its children hear of it.
            os._exit(1)
        pid, status = _ENDED.unpack(data)
        return pid, status

    def hand_over(self, body: dict[str, Any], watched: Sequence[tuple[int, int]]) -> bool:
        """The last message; the caller ends then. False when the kernel would not take it, and nothing has happened.

        ``watched``: (descriptor, READABLE, EXCEPTIONAL or 0: for what it is to be woken).
        """
        fds = [fd for fd, _ in watched]
        data = bytes((len(fds), *(mask for _, mask in watched))) + marshal.dumps(body)
        if len(fds) > MOST_FDS or len(data) > _LIMIT:
            return False
        try:
            self._socket.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))], MSG_NOSIGNAL)
        except OSError:
            return False
        return True


def divide(asker: int, resume: Callable[[Handed, Channel], None]) -> Channel | None:
    """Fork. Answers the first worker's channel in it, and None in the keeper when its life is over.

    Later workers do ``resume``, and come out of here with None too. ``asker``: a descriptor that is the first one's alone.
    """
    name = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(name, b"covey-shim")
    os.close(name)
    worker, channel = fork()
    if worker == 0:
        return Channel(channel)
    os.close(asker)
    while True:
        handed = outlast(worker, channel)
        if handed is None:
            return None
        sleep(handed)
        while True:
            try:
                worker, channel = fork()
                break
            except OSError:
                time.sleep(_FORK_AGAIN)
        if worker == 0:
            resume(handed, Channel(channel))
            return None
        for fd in handed.fds:
            os.close(fd)


def fork() -> tuple[int, _socket.socket]:
    """(the worker's pid, the keeper's end); in the worker (0, its end)."""
    ours, theirs = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    keeper = os.getpid()
    worker = os.fork()
    if worker:
        theirs.close()
        return worker, ours
    ours.close()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _FATAL)
    if os.getppid() != keeper:
        os._exit(1)
    return 0, theirs


def outlast(worker: int, channel: _socket.socket) -> Handed | None:
    """Wait until the worker has ended, and tell it of other children that do; what it has handed over, None if nothing."""
    ended = []
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            break
        ended.append((pid, status))
        try:
            channel.send(_ENDED.pack(pid, status), _DONTWAIT | MSG_NOSIGNAL)
        except OSError:
            # It is about to end: what it leaves behind decides.
            pass
    try:
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    except OSError:
        # ECONNRESET: it ended without having heard of a child's end. The next read has what it said before.
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    channel.close()
    if not data:
        return None
    ((_, _, packed),) = rights
    handed = Handed(data, struct.unpack(f"{len(packed) // 4}i", packed))
    handed.ended = ended
    return handed


def sleep(handed: Handed) -> None:
    """Until there is something to do: the one long moment of a shim, spent in a process that has touched next to nothing."""
    began = time.monotonic()
    count = handed.body[0]
    poll = select.poll()
    for at in range(count):
        mask = handed.body[1 + at]
        if mask:
            poll.register(handed.fds[at], mask)
    if not handed.ended:
        poll.poll()
    handed.body = handed.body[1 + count :]
    handed.slept = time.monotonic() - began
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            handed.ended.append((pid, status))
    except ChildProcessError:
        pass
