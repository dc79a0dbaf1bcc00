"""The handshake between a starting process and its parent: typed messages over a socket pair that execve closes.

Child → parent: ``ready`` (a sandbox waits to be claimed), ``created`` (with the console's descriptor when there is one),
``exec`` (about to execve), ``error``; ``hooks`` (the tree stands: run what runs outside) and ``listener`` (the number of a
seccomp listener's descriptor), which are answered by ``resume``. Parent → child: ``mapped`` (id maps are written), ``tree``
(a mount's descriptor), ``placed`` (in its cgroup), ``claim`` (what a ready sandbox is to become, with descriptors),
``start``. End of file after ``exec`` means that execve succeeded; before it, that the child died. It knows neither
namespaces nor containers.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from worker.runtime.errors import RuntimeFault

READY, CREATED, EXEC, ERROR = "ready", "created", "exec", "error"
MAPPED, PLACED, CLAIM, START = "mapped", "placed", "claim", "start"
HOOKS, LISTENER, RESUME, TREE = "hooks", "listener", "resume", "tree"
_LIMIT = 65536
_MOST_FDS = 8
_WORDS = 2048


class Channel:
    """One end of the handshake; the socket keeps message boundaries. ``body``: the last message that was received."""

    def __init__(self, sock: socket.socket) -> None:
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
        data = json.dumps(message).encode()
        passed = [*fds] if fd is None else [fd, *fds]
        if passed:
            socket.send_fds(self.socket, [data], passed, socket.MSG_NOSIGNAL)
        else:
            self.socket.send(data, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[str, RuntimeFault | None, int | None]:
        """(kind, fault, descriptor); kind is "" at end of file."""
        message, fds = self._receive()
        if message is None:
            return "", None, None
        fault = RuntimeFault.from_dict(message["error"]) if "error" in message else None
        return message["type"], fault, fds[0] if fds else None

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, _LIMIT, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # The other end closed with a message of ours unread; that is told first, its last words come after.
            data, fds, _, _ = socket.recv_fds(self.socket, _LIMIT, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None, fds
        self.body = json.loads(data)
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
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(parent), Channel(child)
