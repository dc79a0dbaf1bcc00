"""The Engine API with as little of a client as can be: kept connections, bare HTTP/1.1.

What the client does is taken from the two processors the rivals are measured on, and most from the fastest of them.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PATIENCE = 120.0
_NO_BODY = (204, 304)


class Connection:
    """Over a Unix socket, one request at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect(str(path))
        self._buffer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send_call(self, method: str, path: str, body: Any = None) -> None:
        """Sent only; ``answer`` waits."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if data else ""
        head = f"{method} /v1.41{path} HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)

    def answer(self) -> Any:
        """The answer's JSON, None when it is empty. Raises SystemExit for an error."""
        head = self._until(b"\r\n\r\n").decode("latin-1")
        first, *lines = head.split("\r\n")
        status = int(first.split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status in _NO_BODY:
            return None
        if headers.get("transfer-encoding") == "chunked":
            text = b"".join(self._chunks())
        else:
            text = self._exactly(int(headers.get("content-length", 0)))
        if status >= 400:
            raise SystemExit(f"bench: {status}: {text.decode(errors='replace')}")
        return json.loads(text) if text.strip() else None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self.send_call(method, path, body)
        return self.answer()

    def _chunks(self) -> Iterable[bytes]:
        while size := int(self._until(b"\r\n"), 16):
            yield self._exactly(size)
            self._until(b"\r\n")
        self._until(b"\r\n")

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("bench: the daemon closed the connection in the middle of an answer")
        self._buffer += data


def flood(path: Path, calls: Iterable[tuple[str, str]], flight: int) -> None:
    """Make all of these (method, path) calls, ``flight`` of them under way at any time."""
    waiting = iter(calls)
    connections = {}
    poll = select.poll()

    def send_next(connection: Connection) -> None:
        call = next(waiting, None)
        if call is None:
            poll.unregister(connection)
            del connections[connection.fileno()]
            connection.close()
        else:
            connection.send_call(*call)

    for _ in range(flight):
        connection = Connection(path)
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)
        send_next(connection)
    while connections:
        ready = poll.poll(_PATIENCE * 1000)
        if not ready:
            raise SystemExit("bench: the daemon does not answer")
        for fd, _ in ready:
            connections[fd].answer()
            send_next(connections[fd])
