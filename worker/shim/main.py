"""The life of one shim, from the zygote's fork to ``delete``: its socket, its clients, its place in the cgroups.

Which request does what is a table here; what it does is worker.shim.container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from worker.kernel import safe_paths, syscalls
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import RuntimeFault
from worker.runtime.zygote import peer_allowed
from worker.shim.connection import Connection
from worker.shim.container import Container, Reply
from worker.shim.loop import READ, Loop
from worker.shim.streams import STDERR, STDOUT

_LINGER = 10.0
_SETTLE = 0.25
_OOM_SCORE = -998


class Shim:
    def __init__(self, request: dict[str, Any], listener: socket.socket, hierarchies: list[Hierarchy]) -> None:
        self._request = request
        self._hierarchies = hierarchies
        self._directory: str = request["dir"]
        self._listener = listener
        self._loop = Loop()
        self._connections: list[Connection] = []
        self._listening: list[Connection] = []
        self._container = Container(self._loop, request["id"], self._directory, self._broadcast, hierarchies)
        self._deadline: float | None = None
        container = self._container
        self._operations: dict[str, Callable[[dict[str, Any], Reply], None]] = {
            "prepare": container.prepare,
            "create": container.create,
            "start": container.start,
            "kill": container.kill,
            "pause": container.pause,
            "resume": container.resume,
            "update": container.update,
            "resize": container.resize,
            "pids": container.pids,
            "stats": container.stats,
            "exec": container.exec,
            "exec_start": container.exec_start,
            "exec_state": container.exec_state,
            "hello": self._describe,
            "state": self._describe,
            "delete": self._delete,
        }

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self._loop.watch_children(self._container.on_child)
        self._loop.add(self._listener.fileno(), READ, lambda _: self._accept())
        syscalls.prctl(syscalls.PR_SET_NAME, b"covey-shim")
        self._container.record_identity()
        with contextlib.suppress(OSError):
            safe_paths.write_proc("self/oom_score_adj", str(_OOM_SCORE))
        self._loop.call_later(_SETTLE, self._enter_cgroup)
        self._loop.run()

    def _describe(self, _: dict[str, Any], reply: Reply) -> None:
        reply(self._container.describe())

    def _delete(self, request: dict[str, Any], reply: Reply) -> None:
        self._container.delete(request, reply, self._leave)

    def _enter_cgroup(self) -> None:
        """Out of the daemon's cgroup, which may be emptied when the daemon is stopped.

        Some time after the container's start, which need not wait for it. A shim that cannot move stays where it is:
        its end would be its container's.
        """
        with contextlib.suppress(OSError):
            group = Cgroup(f"{self._request['cgroup_parent']}/shims", self._hierarchies)
            group.create()
            group.enter()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if peer_allowed(sock):
            self._connections.append(Connection(self._loop, sock, self._perform, self._on_closed))
        else:
            sock.close()

    def _on_closed(self, connection: Connection) -> None:
        for clients in (self._connections, self._listening):
            if connection in clients:
                clients.remove(connection)
        if self._container.state == "prepared" and not self._connections:
            # Nobody is left who could claim the sandbox: the daemon that had it made is gone.
            self._container.discard(self._loop.stop)

    def _perform(self, connection: Connection, request: dict[str, Any]) -> None:
        op = request.get("op")
        try:
            if op == "attach":
                self._attach(connection, request)
            elif op == "events":
                self._events(connection)
            elif op in self._operations:
                self._operations[op](request, _replier(connection))
            else:
                connection.fail(RuntimeFault("invalid", f"unknown op {op!r}", "request"))
        except RuntimeFault as fault:
            fault.step = fault.step or str(op)
            connection.fail(fault)
        except OSError as error:
            message = f"{error.strerror or error} {error.filename or ''}".rstrip()
            connection.fail(RuntimeFault("kernel", message, str(op)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            connection.fail(RuntimeFault("invalid", f"{type(error).__name__}: {error}", str(op)))

    def _attach(self, connection: Connection, request: dict[str, Any]) -> None:
        ident = request.get("exec_id")
        container = self._container
        target = container.find_exec(ident) if ident else container.require("created", "running", "paused", "exited")
        outputs = tuple(stream for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")) if request.get(name))
        connection.become_attached(target.streams, stdin=bool(request.get("stdin")), outputs=outputs)

    def _events(self, connection: Connection) -> None:
        connection.become_events()
        self._listening.append(connection)
        event = self._container.exit_event()
        if event is not None:
            connection.event(event)

    def _broadcast(self, event: dict[str, Any]) -> None:
        for connection in list(self._listening):
            connection.event(event)

    def _leave(self) -> None:
        """Be gone for newcomers at once, and end when those who are attached have their output."""
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        for name in ("shim.sock", "shim.json"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, name))
        self._deadline = time.monotonic() + _LINGER
        self._loop.call_later(0, self._end_when_delivered)

    def _end_when_delivered(self) -> None:
        assert self._deadline is not None
        if time.monotonic() > self._deadline or not any(client.pending for client in self._connections):
            self._loop.stop()
        else:
            self._loop.call_later(0.01, self._end_when_delivered)


def _replier(connection: Connection) -> Reply:
    def reply(body: dict[str, Any] | RuntimeFault) -> None:
        if isinstance(body, RuntimeFault):
            connection.fail(body)
        else:
            connection.reply(body)

    return reply


def main(request: dict[str, Any], listener: socket.socket, hierarchies: list[Hierarchy]) -> None:
    """What the zygote calls in the forked child; it has looked up the cgroup ``hierarchies`` once for all shims."""
    Shim(request, listener, hierarchies).run()
