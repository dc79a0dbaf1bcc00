"""The life of one shim, from the zygote's fork to ``delete``: its socket, its clients, its place in the cgroups.

Which request does what is a table here; what it does is worker.shim.container.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from worker.runtime.cgroups import Hierarchy
from worker.runtime.errors import RuntimeFault, remedy
from worker.runtime.zygote import peer_allowed
from worker.shim.connection import Connection
from worker.shim.container import Container, Reply
from worker.shim.foreign import ForeignContainer
from worker.shim.loop import READ, Loop
from worker.shim.streams import STDERR, STDOUT

_LINGER, _RETRY = 10.0, 0.1
_OPERATIONS = frozenset(
    (
        "prepare", "create", "start", "kill", "pause", "resume", "update", "resize", "pids", "stats", "exec", "exec_start",
        "exec_state",
    )
)  # fmt: skip
"""Requests that are a method of the container's."""


class Shim:
    def __init__(self, request: dict[str, Any], listener: socket.socket, hierarchies: list[Hierarchy]) -> None:
        self._request = request
        self._hierarchies = hierarchies
        self._directory: str = request["dir"]
        self._listener = listener
        self.loop = Loop()
        self._connections: list[Connection] = []
        self._listening: list[Connection] = []
        of = (self.loop, request["id"], self._directory, self._broadcast, hierarchies)
        self.container = ForeignContainer(*of, request["runtime"]) if request.get("runtime") else Container(*of)
        self._deadline: float | None = None

    def run(self) -> None:
        self.loop.watch_children(self.container.on_child)
        self._listen()
        with contextlib.suppress(OSError):
            # It is written again, or refused, by whoever asks for a container.
            self.container.record_identity()
        self.loop.run()

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.add(self._listener.fileno(), READ, lambda _: self.accept())

    def accept(self) -> None:
        # Not accept: what the standard library wraps around it would be ours in every shim, some 300 KB.
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors: whoever asks waits until one is free.
            self.loop.remove(self._listener.fileno())
            self.loop.call_later(_RETRY, self._listen)
            return
        if peer_allowed(fd):
            self._connections.append(Connection(self.loop, fd, self._perform, self._on_closed))
        else:
            os.close(fd)

    def _on_closed(self, connection: Connection) -> None:
        for clients in (self._connections, self._listening):
            if connection in clients:
                clients.remove(connection)
        if self.container.state in ("empty", "preparing", "prepared") and not self._connections:
            # Nobody is left who could make this a container: the daemon that wanted it is gone.
            self.container.discard()

    def _perform(self, connection: Connection, request: dict[str, Any]) -> None:
        op = request.get("op")
        try:
            if op == "attach":
                self._attach(connection, request)
            elif op == "events":
                self._events(connection)
            elif op in _OPERATIONS:
                getattr(self.container, op)(request, _replier(connection))
            elif op in ("hello", "state"):
                connection.reply(self.container.describe())
            elif op == "delete":
                self.container.delete(request, _replier(connection), self._leave)
            else:
                connection.fail(RuntimeFault("invalid", f"unknown op {op!r}", "request"))
        except RuntimeFault as fault:
            fault.step = fault.step or str(op)
            connection.fail(fault)
        except OSError as error:
            message = f"{error.strerror or error} {error.filename or ''}".rstrip() + remedy(error)
            connection.fail(RuntimeFault("kernel", message, str(op)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            connection.fail(RuntimeFault("invalid", f"{type(error).__name__}: {error}", str(op)))

    def _attach(self, connection: Connection, request: dict[str, Any]) -> None:
        ident = request.get("exec_id")
        container = self.container
        target = container.find_exec(ident) if ident else container.require("created", "running", "paused", "exited")
        outputs = tuple(stream for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")) if request.get(name))
        connection.become_attached(target.streams, stdin=bool(request.get("stdin")), outputs=outputs)

    def _events(self, connection: Connection) -> None:
        connection.become_events()
        self._listening.append(connection)
        event = self.container.exit_event()
        if event is not None:
            connection.event(event)

    def _broadcast(self, event: dict[str, Any]) -> None:
        for connection in list(self._listening):
            connection.event(event)

    def _leave(self) -> None:
        """Be gone for newcomers at once, and end when those who are attached have their output."""
        self.loop.remove(self._listener.fileno())
        self._listener.close()
        for name in ("shim.sock", "shim.json"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, name))
        self._deadline = time.monotonic() + _LINGER
        self.loop.call_later(0, self._end_when_delivered)

    def _end_when_delivered(self) -> None:
        assert self._deadline is not None
        if time.monotonic() > self._deadline or not any(client.pending for client in self._connections):
            self.loop.stop()
        else:
            self.loop.call_later(0.01, self._end_when_delivered)


def _replier(connection: Connection) -> Reply:
    def reply(body: dict[str, Any] | RuntimeFault) -> None:
        if isinstance(body, RuntimeFault):
            connection.fail(body)
        else:
            connection.reply(body)

    return reply


def main(request: dict[str, Any], listener: socket.socket, hierarchies: list[Hierarchy]) -> None:
    """What the zygote calls in the forked child; it has looked up the cgroup ``hierarchies`` once for all shims."""
    name = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(name, b"covey-shim")
    os.close(name)
    Shim(request, listener, hierarchies).run()
