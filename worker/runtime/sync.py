"""The handshake between a starting process and its parent: typed messages over a socket pair that execve closes.

Child → parent: ``created`` (with the console's descriptor when there is one), ``exec`` (about to execve), ``error``;
``hooks`` (the tree stands; run what runs outside) and ``listener`` (the number of a seccomp listener's descriptor), which
are answered by ``resume``. Parent → child: ``mapped`` (id maps are written), ``tree`` (with the descriptor of a mount),
``placed`` (in its cgroup), ``start``. End of file after ``exec`` means that execve succeeded; before it, that the child
died. It knows neither namespaces nor containers.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from worker.runtime.errors import RuntimeFault

CREATED, EXEC, ERROR, MAPPED, PLACED, START = "created", "exec", "error", "mapped", "placed", "start"
HOOKS, LISTENER, RESUME, TREE = "hooks", "listener", "resume", "tree"
_LIMIT = 65536
_WORDS = 2048


class Channel:
    """One end of the handshake; the socket keeps message boundaries. ``body``: the last message that came."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.body: dict[str, Any] = {}

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, kind: str, *, fault: RuntimeFault | None = None, fd: int | None = None, **more: Any) -> None:
        body: dict[str, Any] = {"type": kind, **more}
        if fault is not None:
            # A message has to fit whole: a name of 100 KiB that is not found may not break the handshake.
            body["error"] = {name: value[:_WORDS] for name, value in fault.as_dict().items()}
        data = json.dumps(body).encode()
        if fd is None:
            self.socket.send(data, socket.MSG_NOSIGNAL)
        else:
            socket.send_fds(self.socket, [data], [fd], socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[str, RuntimeFault | None, int | None]:
        """(kind, fault, descriptor); kind is "" at end of file."""
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, _LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # The other end closed with a message of ours unread; that is told first, its last words come after.
            data, fds, _, _ = socket.recv_fds(self.socket, _LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return "", None, None
        body = self.body = json.loads(data)
        fault = RuntimeFault.from_dict(body["error"]) if "error" in body else None
        return body["type"], fault, fds[0] if fds else None

    def expect(self, kind: str) -> int | None:
        """Wait for ``kind`` and take its descriptor; the process ends without a word when the parent has gone."""
        received, _, fd = self.receive()
        if received != kind:
            os._exit(1)
        return fd

    def close(self) -> None:
        self.socket.close()


def pair() -> tuple[Channel, Channel]:
    """(parent's end, child's end)."""
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(parent), Channel(child)
