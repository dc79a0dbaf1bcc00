"""The zygote: a small, single-threaded process with everything imported, from which every shim is forked.

It listens on a socket of its own, answers length-prefixed JSON, and forks ``child`` with a listening socket for it. It
holds no state of containers: its death, or that of whoever started it, touches no shim. What a shim does is the
caller's function, so that the runtime need not know it.
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from worker.kernel import process
from worker.runtime import compact_json

VERSION = 1
_LENGTH = struct.Struct(">I")
_LIMIT = 1 << 20
_PEER = struct.Struct("iII")
# As plain numbers: the socket module's are enums, and each use of one touches pages that every shim would copy.
_AF_UNIX, _SOCK_STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
_SOL_SOCKET, _SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)

Child = Callable[[dict[str, Any], socket.socket], None]


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, mode 0600; the path may be longer than a socket address can hold."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        name = os.path.basename(path)
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        old = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.umask(old)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    listener.setblocking(False)
    return listener


def peer_allowed(fd: int) -> bool:
    """Only root and our own user may speak to us over the connected socket ``fd``."""
    connection = _socket.socket(_AF_UNIX, _SOCK_STREAM, 0, fd)
    try:
        _, uid, _ = _PEER.unpack(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _PEER.size))
    finally:
        connection.detach()
    return uid in (0, os.geteuid())


def frame(body: dict[str, Any]) -> bytes:
    data = compact_json.dumps(body)
    return _LENGTH.pack(len(data)) + data


class Zygote:
    """Serves until told to stop, then returns; in a forked shim it returns after ``child`` has."""

    def __init__(self, path: str, child: Child) -> None:
        self._path = path
        self._child = child
        self._listener = listen(path)
        self._identity = os.stat(path).st_ino
        self._poll = select.poll()
        self._connections: dict[int, tuple[socket.socket, bytearray]] = {}
        self._stopped = False
        self._fork: tuple[dict[str, Any], socket.socket] | None = None

    def serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(wake_read, select.POLLIN)
        gc.collect()
        gc.freeze()
        while not self._stopped:
            for fd, _ in self._poll.poll():
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    _reap()
                elif fd == self._listener.fileno():
                    self._accept()
                else:
                    self._receive(fd)
                if self._fork is not None:
                    signal.set_wakeup_fd(-1)
                    os.close(wake_read)
                    os.close(wake_write)
                    self._become_child()
                    return
        with contextlib.suppress(FileNotFoundError):
            # A successor may have put its own socket there.
            if os.stat(self._path).st_ino == self._identity:
                os.unlink(self._path)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if not peer_allowed(connection.fileno()):
                connection.close()
                return
            self._connections[connection.fileno()] = (connection, bytearray())
            self._poll.register(connection, select.POLLIN)

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._connections.pop(fd)[0].close()

    def _receive(self, fd: int) -> None:
        connection, buffer = self._connections[fd]
        try:
            data = connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._drop(fd)
            return
        buffer += data
        while len(buffer) >= 4 and self._fork is None and not self._stopped:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _LIMIT:
                self._drop(fd)
                return
            if len(buffer) < 4 + length:
                return
            body = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            self._answer(connection, body)

    def _answer(self, connection: socket.socket, body: bytes) -> None:
        try:
            request = compact_json.loads(body)
            reply = self._perform(request)
            if reply is None:
                return
        except (OSError, ValueError, KeyError, TypeError) as error:
            reply = {"error": {"code": "invalid", "message": f"{type(error).__name__}: {error}", "step": "zygote"}}
        try:
            connection.sendall(frame(reply))
        except OSError:
            pass

    def _perform(self, request: dict[str, Any]) -> dict[str, Any] | None:
        op = request["op"]
        if op == "hello":
            return {"version": VERSION, "pid": os.getpid()}
        if op == "ping":
            return {}
        if op == "stop":
            self._stopped = True
            return {}
        if op == "fork_shim":
            return self._fork_shim(request)
        return {"error": {"code": "invalid", "message": f"unknown op {op!r}", "step": "zygote"}}

    def _fork_shim(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """None in the child. The socket is made before the fork: whoever gets the answer can connect."""
        listener = listen(os.path.join(request["dir"], "shim.sock"))
        pid = os.fork()
        if pid == 0:
            self._fork = (request, listener)
            return None
        listener.close()
        return {"pid": pid, "start_time": process.start_time(pid)}

    def _become_child(self) -> None:
        assert self._fork is not None
        request, listener = self._fork
        os.setsid()
        self._listener.close()
        for connection, _ in self._connections.values():
            connection.close()
        self._connections.clear()
        self._child(request, listener)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
