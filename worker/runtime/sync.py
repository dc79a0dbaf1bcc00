"""The handshake between a starting process and its parent: typed messages over a socket pair that execve closes.

Child → parent: ``ready`` (a sandbox waits to be claimed), ``created`` (with the console's descriptor when there is one),
``exec`` (about to execve), ``error``; ``hooks`` (the tree stands: run what runs outside) and ``listener`` (the number of a
seccomp listener's descriptor), which are answered by ``resume``. Parent → child: ``mapped`` (id maps are written), ``tree``
(a mount's descriptor), ``placed`` (in its cgroup), ``claim`` (what a ready sandbox is to become, with descriptors),
``start``, or ``detach`` (the child is on record and is to wait for its start elsewhere). End of file after ``exec`` means
that execve succeeded; before it, that the child died. It knows neither namespaces nor containers.
"""

from __future__ import annotations

import _socket
import os
import struct

from worker.kernel.bare import Any, Sequence
from worker.runtime import compact_json
from worker.runtime.errors import RuntimeFault

READY, CREATED, EXEC, ERROR = "ready", "created", "exec", "error"
MAPPED, PLACED, CLAIM, START, DETACH = "mapped", "placed", "claim", "start", "detach"
HOOKS, LISTENER, RESUME, TREE = "hooks", "listener", "resume", "tree"
_LIMIT = 65536
_MOST_FDS = 8
_ROOM = _socket.CMSG_LEN(_MOST_FDS * 4)
AF_UNIX, SOCK_SEQPACKET, SOL_SOCKET = _socket.AF_UNIX, _socket.SOCK_SEQPACKET, _socket.SOL_SOCKET
SCM_RIGHTS, MSG_NOSIGNAL, MSG_CMSG_CLOEXEC = (
    _socket.SCM_RIGHTS,
    _socket.MSG_NOSIGNAL,
    _socket.MSG_CMSG_CLOEXEC,
)
_WORDS = 2048


class Channel:
    """One end of the handshake; the socket keeps message boundaries. ``body``: the last message that was received."""

    def __init__(self, sock: _socket.socket) -> None:
        self.socket = sock
        self.body: dict[str, Any] = {}

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(
        self,
        kind: str,
        *,
        fault: RuntimeFault | None = None,
        fd: int | None = None,
        body: dict[str, Any] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """``fd``: short for one of ``fds``."""
        message: dict[str, Any] = {"type": kind, **(body or {})}
        if fault is not None:
            # A message has to fit whole: a name of 100 KiB that is not found may not break the handshake.
            message["error"] = {name: value[:_WORDS] for name, value in fault.as_dict().items()}
        data = compact_json.dumps(message)
        passed = [*fds] if fd is None else [fd, *fds]
        rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(passed)}i", *passed))] if passed else []
        self.socket.sendmsg([data], rights, MSG_NOSIGNAL)

    def receive(self) -> tuple[str, RuntimeFault | None, int | None]:
        """(kind, fault, descriptor); kind is "" at end of file."""
        message, fds = self._receive()
        if message is None:
            return "", None, None
        fault = RuntimeFault.from_dict(message["error"]) if "error" in message else None
        return message["type"], fault, fds[0] if fds else None

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            data, rights, _, _ = self.socket.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # The other end closed with a message of ours unread; that is told first, its last words come after.
            data, rights, _, _ = self.socket.recvmsg(_LIMIT, _ROOM, MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, packed in rights:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                fds += struct.unpack(f"{len(packed) // 4}i", packed[: len(packed) & ~3])
        if not data:
            return None, fds
        self.body = compact_json.loads(data)
        return self.body, fds

    def expect(self, kind: str) -> tuple[dict[str, Any], list[int]]:
        """Wait for ``kind``: its body and descriptors. The process ends without a word when the parent has gone."""
        message, fds = self._receive()
        if message is None or message["type"] != kind:
            os._exit(1)
        return message, fds

    def close(self) -> None:
        self.socket.close()


def pair() -> tuple[Channel, Channel]:
    """(parent's end, child's end)."""
    parent, child = _socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    return Channel(parent), Channel(child)


def adopt(fd: int) -> Channel:
    """The channel whose socket is ``fd``."""
    return Channel(_socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, fd))


def accept(listener: int) -> Channel:
    """The next connection to a listening socket of this kind."""
    sock = _socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, listener)
    try:
        return adopt(sock._accept()[0])  # type: ignore[attr-defined]
    finally:
        sock.detach()
