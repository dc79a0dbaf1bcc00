"""The life of one shim, to ``delete``: its socket and its clients.

Which request does what is a table here; what it does is worker.shim.container.
"""

from __future__ import annotations

import _socket
import os
import time

from worker.kernel.bare import Any, suppress
from worker.runtime.cgroups import Hierarchy
from worker.runtime.errors import RuntimeFault, remedy
from worker.runtime.zygote import peer_allowed
from worker.shim.connection import Connection
from worker.shim.container import Container, Reply
from worker.shim.loop import READ, Loop, Timer
from worker.shim.streams import STDERR, STDOUT

_LINGER, _RETRY = 10.0, 0.1
_UNCLAIMED = 8.0
"""Seconds after which a new shim that nobody has connected to ends: the daemon that wanted it has died in between."""
_OPERATIONS = frozenset(
    (
        "prepare", "create", "start", "kill", "pause", "resume", "update", "resize", "pids", "stats", "exec", "exec_start",
        "exec_state",
    )
)  # fmt: skip
"""Requests that are a method of the container's."""


class Shim:
    """``keeper``: the pid of its process that stays (worker.shim.keeper). ``runtime``: another's program, "" for ours."""

    def __init__(
        self,
        ident: str,
        directory: str,
        listener: _socket.socket,
        hierarchies: list[Hierarchy],
        keeper: int,
        runtime: str = "",
    ) -> None:
        self._directory = directory
        self._listener = listener
        self.loop = Loop()
        self._connections: list[Connection] = []
        self._listening: list[Connection] = []
        of = (self.loop, ident, directory, self._broadcast, hierarchies, keeper)
        if runtime:
            # No other shim needs what it brings along.
            from worker.shim.foreign import ForeignContainer

            self.container: Container = ForeignContainer(*of, runtime)
        else:
            self.container = Container(*of)
        self._deadline: float | None = None
        self._claim: Timer | None = None

    def begin(self) -> None:
        self.loop.watch_children(self.container.on_child)
        self._listen()

    def await_claim(self) -> None:
        """Of the first worker: end unless somebody comes."""
        self._claim = self.loop.call_later(_UNCLAIMED, self.container.discard)

    def handed(self) -> list[tuple[str, int]] | None:
        """Our descriptors, which ``take`` takes; None while a client is served."""
        if not all(client.at_rest for client in self._connections):
            return None
        clients = [("events" if client in self._listening else "client", client.fd) for client in self._connections]
        return [("listener", self._listener.fileno()), *clients]

    def take(self, clients: list[tuple[str, int]]) -> None:
        for name, fd in clients:
            connection = Connection(self.loop, fd, self._perform, self._on_closed)
            self._connections.append(connection)
            if name == "events":
                connection.become_events()
                self._listening.append(connection)

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
            if self._claim is not None:
                self._claim.cancel()
                self._claim = None
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
        target = container.execs.find(ident) if ident else container.require("created", "running", "paused", "exited")
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
            with suppress(OSError):
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
