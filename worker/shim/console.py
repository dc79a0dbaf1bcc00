"""Receives a terminal from an OCI runtime: the console socket of its command line (runc's terminals.md)."""

from __future__ import annotations

import os
import socket

from worker.kernel.bare import Callable, suppress
from worker.runtime.errors import RuntimeFault
from worker.shim.loop import READ, Loop


class ConsoleSocket:
    """Listens in ``directory`` until one terminal has come; ``taken`` gets its master."""

    def __init__(self, loop: Loop, directory: str, name: str, taken: Callable[[int], None]) -> None:
        self._loop = loop
        self._taken = taken
        self._file = os.path.join(directory, name)
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        #: What the runtime is told: an address that is short wherever the directory lies.
        self.path = f"/proc/{os.getpid()}/fd/{self._directory}/{name}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection: socket.socket | None = None
        old = os.umask(0o177)
        try:
            self._listener.bind(self.path)
        except OSError as error:
            self.close()
            raise RuntimeFault("kernel", f"no console socket {self._file}: {error.strerror}", "create") from None
        finally:
            os.umask(old)
        self._listener.listen(1)
        self._listener.setblocking(False)
        loop.add(self._listener.fileno(), READ, lambda _: self._accept())

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            if self._connection is not None:
                connection.close()
                return
            connection.setblocking(False)
            self._connection = connection
            self._loop.add(connection.fileno(), READ, lambda _: self._receive())

    def _receive(self) -> None:
        assert self._connection is not None
        try:
            _, fds, _, _ = socket.recv_fds(self._connection, 4096, 4)
        except BlockingIOError:
            return
        except OSError:
            fds = []
        for extra in fds[1:]:
            os.close(extra)
        self.close()
        if fds:
            os.set_inheritable(fds[0], False)
            self._taken(fds[0])

    def finish(self) -> None:
        """The runtime has ended: take what it sent, if the loop has not, and let go of the socket."""
        if self._listener.fileno() >= 0:
            self._accept()
            if self._connection is not None:
                self._receive()
        self.close()

    def close(self) -> None:
        for sock in (self._connection, self._listener):
            if sock is not None and sock.fileno() >= 0:
                self._loop.remove(sock.fileno())
                sock.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
            with suppress(OSError):
                os.unlink(self._file)
