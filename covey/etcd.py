"""An etcd of our own: how its directory is laid out, which command line starts it, and whether it answers.

It starts nothing and supervises nothing: the node daemon does, and the manager connects to ``endpoint``. Standard
library only. By default etcd listens on Unix sockets inside its directory (0700), so no other user of the machine, and
no container, can reach the store; a port on loopback is the alternative. By hand:
``cd DIRECTORY && etcdctl --endpoints unix://client:1 get --prefix /``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CLIENT_SOCKET = "client:1"
PEER_SOCKET = "peer:1"
"""etcd wants host:port even of a socket's name, and resolves it against its working directory."""

LONGEST_SOCKET_PATH = 107
POLL = 0.05


@dataclass(frozen=True, slots=True)
class EtcdChild:
    """A single-member etcd in ``directory`` (absolute). ``client_port`` and ``peer_port`` 0: Unix sockets.

    ``election_ms`` bounds how long a start takes and the shortest lease (1.5 of it, in whole seconds).
    """

    directory: str
    binary: str = "etcd"
    name: str = "covey"
    client_port: int = 0
    peer_port: int = 0
    heartbeat_ms: int = 100
    election_ms: int = 500
    keep_revisions: int = 10_000

    def argv(self) -> list[str]:
        """The command line; start it with ``directory`` as working directory and ``environment`` added."""
        client = self._url(self.client_port, CLIENT_SOCKET)
        peer = self._url(self.peer_port, PEER_SOCKET)
        return [
            self.binary,
            f"--name={self.name}",
            f"--data-dir={self.directory}/data",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self.name}={peer}",
            "--initial-cluster-state=new",
            f"--heartbeat-interval={self.heartbeat_ms}",
            f"--election-timeout={self.election_ms}",
            "--auto-compaction-mode=revision",
            f"--auto-compaction-retention={self.keep_revisions}",
            "--snapshot-count=5000",
            "--logger=zap",
            "--log-level=warn",
            "--log-outputs=stderr",
        ]

    def environment(self) -> dict[str, str]:
        """Settings that not every release knows: as a variable an unknown one is a warning, as an option an error."""
        return {"ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL": "1s"}

    def endpoint(self) -> str:
        """Where clients connect, in the form ``manager.store.etcd`` takes. Raises ValueError for too deep a directory."""
        if self.client_port:
            return f"127.0.0.1:{self.client_port}"
        return f"unix:{self.socket_path()}"

    def socket_path(self) -> str:
        """The client socket."""
        path = f"{self.directory}/{CLIENT_SOCKET}"
        if len(path.encode()) > LONGEST_SOCKET_PATH:
            raise ValueError(
                f"etcd directory {self.directory} is too deep for a Unix socket ({len(path)} bytes, the kernel takes "
                f"{LONGEST_SOCKET_PATH}): use a shorter --data-root"
            )
        return path

    def prepare(self) -> None:
        """Make the directory, for the owner alone, and remove sockets that a killed etcd left: it would not start."""
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        os.chmod(self.directory, 0o700)
        for name in (CLIENT_SOCKET, PEER_SOCKET):
            path = Path(self.directory, name)
            if path.is_socket() and _is_deaf(str(path)):
                path.unlink()

    def trouble(self, timeout: float = 1.0) -> str:
        """Empty when etcd answers that it is healthy (it has a leader and can write), else what it said instead."""
        connection = _Local(self.client_port or self.socket_path(), timeout)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        healthy = isinstance(answer, dict) and answer.get("health") == "true"
        return "" if healthy else f"etcd says {answer}"

    def wait_ready(self, seconds: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Block until ``trouble`` is none. Raises TimeoutError after ``seconds`` or once ``alive`` says the child died."""
        until = time.monotonic() + seconds
        while trouble := self.trouble():
            dead = not alive()
            if dead or time.monotonic() >= until:
                what = "has ended" if dead else f"is not ready after {seconds:g} s"
                raise TimeoutError(f"etcd in {self.directory} {what} ({trouble}): see its log")
            time.sleep(POLL)

    def _url(self, port: int, name: str) -> str:
        return f"http://127.0.0.1:{port}" if port else f"unix://{name}"


def _is_deaf(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


class _Local(http.client.HTTPConnection):
    """HTTP to a loopback port or a Unix socket."""

    def __init__(self, address: int | str, timeout: float) -> None:
        super().__init__("127.0.0.1" if isinstance(address, int) else "localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        if isinstance(self._address, int):
            self.sock = socket.create_connection(("127.0.0.1", self._address), self.timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._address)
