"""The Engine API with as little of a client as can be: one kept connection, whose cost is not what is measured."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class Connection(http.client.HTTPConnection):
    """Over a Unix socket; not thread-safe."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def send_call(self, method: str, path: str, body: Any = None) -> None:
        """Sent only; ``answer`` waits."""
        data = None if body is None else json.dumps(body).encode()
        self.request(method, f"/v1.41{path}", data, {"Content-Type": "application/json"} if data else {})

    def answer(self) -> Any:
        """The answer's JSON, None when it is empty. Raises SystemExit for an error."""
        response = self.getresponse()
        text = response.read()
        if response.status >= 400:
            raise SystemExit(f"bench: {response.status}: {text.decode(errors='replace')}")
        return json.loads(text) if text.strip() else None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self.send_call(method, path, body)
        return self.answer()
