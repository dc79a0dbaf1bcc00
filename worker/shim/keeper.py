"""The processes of a shim: the keeper, which stays and sleeps, and one at a time that works and goes again.

What CPython merely touches after a fork it copies: a process that has read requests, made a sandbox and followed a
handshake owns 2 MB. So the zygote's child, the keeper, forks once more and waits. The first worker starts the container,
whose first process it has be the keeper's child (CLONE_PARENT); when all is quiet it leaves what there is to know, with
its descriptors (worker.shim.handover), and ends. The keeper then waits for the first of them to become ready, and forks
the next worker for that. Each is the other's end: a worker dies with the keeper, and the keeper, and with it the
container, ends when a worker goes without a word. Here is how they part and meet; not what is in the message.

A container asked for together with its shim needs no first worker: what the keeper forks is the container's process itself,
which answers for itself until it executes (worker.shim.direct), and then leaves all to the keeper, or before that to a
worker where something else is wanted of it.
"""

from __future__ import annotations

import _socket
import marshal
import os
import select
import struct
import time

from worker.kernel import syscalls
from worker.kernel.bare import Any, Callable, NoReturn, Sequence, signal
from worker.runtime import zygote
from worker.runtime.sync import AF_UNIX, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET

MOST_FDS = 64
_ROOM = _socket.CMSG_LEN(MOST_FDS * 4)
_LIMIT = 1 << 17
_ENDED = struct.Struct("ii")
_DONTWAIT = _socket.MSG_DONTWAIT
_FORK_AGAIN = 0.1
CLIENT = 1
"""Which descriptor of a container's process is the connection of whoever wants it."""
STARTED = zygote.frame({"events": True})
"""Its program runs, and the connection now carries events."""

LEAVES, EXECUTES, WAITS = 0, 1, 2
"""What who hands over does then: a worker ends; the container's process runs its program, or waits until it is told to."""
READABLE, EXCEPTIONAL = select.POLLIN, select.POLLPRI


class Handed:
    """``body``: marshalled. ``ended``: (pid, wait status) of children that ended meanwhile. ``slept``: seconds since then.

    ``masks``: for what to watch each of the descriptors. ``how``: LEAVES, EXECUTES or WAITS.
    """

    __slots__ = ("body", "ended", "fds", "how", "masks", "slept")

    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        end = 1 + len(fds)
        self.how = data[0]
        self.masks = data[1:end]
        self.body = data[end:]
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
        data = packed(LEAVES, body, watched)
        if len(watched) > MOST_FDS or len(data) > _LIMIT:
            return False
        try:
            send(self._socket, data, watched)
        except OSError:
            return False
        return True


def packed(how: int, body: dict[str, Any], watched: Sequence[tuple[int, int]]) -> bytes:
    return bytes((how, *(mask for _, mask in watched))) + marshal.dumps(body)


def send(sock: _socket.socket, data: bytes, watched: Sequence[tuple[int, int]]) -> None:
    fds = [fd for fd, _ in watched]
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))], MSG_NOSIGNAL)


def divide(asker: int, resume: Callable[[Handed, Channel], None]) -> Channel | None:
    """Fork. Answers the first worker's channel in it, and None in the keeper when its life is over.

    Later workers do ``resume``, and come out of here with None too. ``asker``: a descriptor that is the first one's alone.
    """
    _take_name()
    worker, channel = fork()
    if worker == 0:
        return Channel(channel)
    os.close(asker)
    handed = outlast(worker, channel)
    if handed is not None:
        sleep(handed)
        _keep(handed, resume)
    return None


def tend(
    given: Sequence[int], become: Callable[[_socket.socket, int], NoReturn], resume: Callable[[Handed, Channel], None]
) -> None:
    """Fork the container's process, which is to ``become`` it over (its channel to us, our pid), until our life is over.

    ``given``: descriptors that are that process's alone. Workers do ``resume``, and come out of here too. Raises OSError
    where there is no process to be had, and has done nothing then.
    """
    _take_name()
    ours, theirs = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    keeper = os.getpid()
    if syscalls.fork_into(syscalls.CLONE_NEWPID) == 0:
        ours.close()
        become(theirs, keeper)
    theirs.close()
    for fd in given:
        os.close(fd)
    handed = received(ours)
    if handed is None:
        # It could not become what was asked for, and has said so.
        return
    if handed.how == EXECUTES:
        # What it says now is the answer to its start, and its last; it says nothing when its program runs.
        words = ours.recv(_LIMIT)
        try:
            os.write(handed.fds[CLIENT], words or STARTED)
        except OSError:
            # Whoever wanted it is gone; the next one asks how it stands.
            pass
        if words:
            return
        ours.close()
        sleep(handed)
    else:
        ours.close()
    _keep(handed, resume)


def _keep(handed: Handed, resume: Callable[[Handed, Channel], None]) -> None:
    """Have one worker after the other see to what was ``handed`` over, and be asleep in between."""
    left: Handed | None = handed
    while left is not None:
        while True:
            try:
                worker, channel = fork()
                break
            except OSError:
                time.sleep(_FORK_AGAIN)
        if worker == 0:
            resume(left, Channel(channel))
            return
        for fd in left.fds:
            os.close(fd)
        left = outlast(worker, channel)
        if left is not None:
            sleep(left)


def _take_name() -> None:
    name = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(name, b"covey-shim")
    os.close(name)


def fork() -> tuple[int, _socket.socket]:
    """(the worker's pid, the keeper's end); in the worker (0, its end)."""
    ours, theirs = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    keeper = os.getpid()
    worker = os.fork()
    if worker:
        theirs.close()
        return worker, ours
    ours.close()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
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
    handed = received(channel)
    channel.close()
    if handed is not None:
        handed.ended = ended
    return handed


def received(channel: _socket.socket) -> Handed | None:
    """What is handed over there; None when the other end goes without a word."""
    try:
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    except OSError:
        # ECONNRESET: it ended without having heard of a child's end. The next read has what it said before.
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    if not data:
        return None
    ((_, _, numbers),) = rights
    return Handed(data, struct.unpack(f"{len(numbers) // 4}i", numbers))


def sleep(handed: Handed) -> None:
    """Until there is something to do: the one long moment of a shim, spent in a process that has touched next to nothing."""
    began = time.monotonic()
    poll = select.poll()
    for fd, mask in zip(handed.fds, handed.masks):
        if mask:
            poll.register(fd, mask)
    if not handed.ended:
        poll.poll()
    handed.slept = time.monotonic() - began
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            handed.ended.append((pid, status))
    except ChildProcessError:
        pass
