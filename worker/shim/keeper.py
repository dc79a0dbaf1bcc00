"""The two processes of a shim: the keeper, which stays, and the launcher, which starts the container and then goes.

What CPython merely touches after a fork it copies: a process that has read requests, made a sandbox and followed a
handshake owns 2 MB for as long as its container lives. So the zygote's child, the keeper, forks once more and waits; the
launcher does the work, with the container's first process as the keeper's child (CLONE_PARENT), and hands over what has
come of it (worker.shim.handover) when it is quiet. Each is the end of the other until then: the launcher dies with the
keeper, and the keeper, and with it the container, ends when the launcher goes without a word. Here is how they part, what
one tells the other of children that have ended, and how the message travels; not what is in it.
"""

from __future__ import annotations

import _socket
import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Any

from worker.kernel import syscalls
from worker.runtime import compact_json
from worker.runtime.sync import AF_UNIX, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET

MOST_FDS = 64
_ROOM = _socket.CMSG_LEN(MOST_FDS * 4)
_LIMIT = 1 << 17
_ENDED = struct.Struct("ii")
_FATAL = int(signal.SIGKILL)
_WAIT = int(_socket.MSG_DONTWAIT)

Ended = list[tuple[int, int]]
"""(pid, wait status) of children that ended before the launcher did."""
Handed = tuple[dict[str, Any], list[int], Ended]


class Channel:
    """The launcher's end: ``fileno`` is readable when a child of the keeper's has ended."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def ended(self) -> tuple[int, int]:
        """(pid, wait status) of the next one."""
        return _ENDED.unpack(self._socket.recv(_ENDED.size))  # type: ignore[return-value]

    def hand_over(self, body: dict[str, Any], fds: Sequence[int]) -> bool:
        """The last message; the caller ends then. False when the kernel would not take it, and nothing has happened."""
        rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        try:
            self._socket.sendmsg([compact_json.dumps(body)], rights, MSG_NOSIGNAL)
        except OSError:
            return False
        return True


def divide(asker: int, resume: Callable[[Handed], None]) -> Channel | None:
    """Fork. Answers in the launcher its channel, in the keeper None, once its life is over: ``resume`` is its second half.

    ``asker``: a descriptor that is the launcher's alone.
    """
    name = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(name, b"covey-shim")
    os.close(name)
    ours, theirs = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    keeper = os.getpid()
    launcher = os.fork()
    if launcher == 0:
        ours.close()
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _FATAL)
        if os.getppid() != keeper:
            os._exit(1)
        return Channel(theirs)
    os.close(asker)
    theirs.close()
    ended: Ended = []
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == launcher:
            break
        ended.append((pid, status))
        try:
            ours.send(_ENDED.pack(pid, status), _WAIT | MSG_NOSIGNAL)
        except OSError:
            # It is about to end: what it leaves behind decides.
            pass
    handed = _left(ours, ended)
    if handed is not None:
        resume(handed)
    return None


def _left(channel: _socket.socket, ended: Ended) -> Handed | None:
    """What the launcher has handed over, None if it went without."""
    try:
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    except OSError:
        # ECONNRESET: it ended without having heard of a child's end. The next read has what it said before.
        data, rights, _, _ = channel.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
    channel.close()
    if not data:
        return None
    fds: list[int] = []
    for _, _, packed in rights:
        fds += struct.unpack(f"{len(packed) // 4}i", packed)
    return compact_json.loads(data), fds, ended
