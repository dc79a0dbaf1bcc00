"""The process that a lab from the command line lives in: makes it, answers ``cluster lab`` over a Unix socket, ends it.

Its end, however it comes, is the end of every machine. It says on standard output, in one JSON line, whether the lab came
up. Run as ``python -P -m covey.testing.lab_supervisor NAME NODES MANAGERS PROFILE``; ``lab_commands`` does.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socketserver
import sys
import threading
from typing import Any

from covey.errors import CoveyError
from covey.testing import lab_remains
from covey.testing.lab import Lab
from covey.testing.lab_machine import LabError
from covey.testing.lab_node import PROCESSES, LabNode

SOCKET = "supervisor.sock"


class Supervisor:
    """The operations of ``cluster lab``, by name, on one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._paused: set[str] = set()

    def ps(self) -> list[dict[str, Any]]:
        """One row a node; see ``lab_commands.ps``."""
        return [self._row(node) for node in self._lab]

    def _row(self, node: LabNode) -> dict[str, Any]:
        alive = node.alive
        state = "paused" if node.name in self._paused and alive else "running" if alive else "dead"
        return {
            "lab": self._lab.name,
            "node": node.name,
            "role": node.role,
            "address": node.address,
            "state": state,
            "cut": node.name in self._lab.cut,
            "processes": {name: node.pid(name) for name in PROCESSES if node.runs(name)},
            "docker_host": node.docker_host,
        }

    def kill(self, node: str, process: str | None) -> None:
        """The machine, or one process of it."""
        if process:
            self._lab.node(node).kill_process(process)
        else:
            self._lab.node(node).kill()

    def start(self, node: str) -> None:
        """A dead machine boots again; on a living one a dead daemon starts again."""
        found = self._lab.node(node)
        if found.alive:
            found.start_daemon()
            found.wait_ready()
        else:
            found.restart()

    def pause(self, node: str, seconds: float | None, process: str | None, whole: bool) -> None:
        """SIGSTOP; with ``seconds`` it returns at once and continues by itself."""
        found = self._lab.node(node)
        found.pause(None, (process,) if process else (), whole)
        self._paused.add(found.name)
        if seconds is not None:
            timer = threading.Timer(seconds, self.resume, (node,))
            timer.daemon = True
            timer.start()

    def resume(self, node: str) -> None:
        """SIGCONT for everything in the machine."""
        self._lab.node(node).resume()
        self._paused.discard(node)

    def partition(self, node: str) -> None:
        """Cut the node off."""
        self._lab.partition(node)

    def heal(self, node: str | None) -> None:
        """End one partition, or all."""
        self._lab.heal(*([node] if node else ()))

    def load(self, archive: str, nodes: list[str]) -> None:
        """Load a docker-archive (base64)."""
        self._lab.load_image(base64.b64decode(archive), nodes)


OPERATIONS = ("ps", "kill", "start", "pause", "resume", "partition", "heal", "load")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve(lab: Lab, announce: Any) -> None:
    """Until ``down`` or SIGTERM; then the lab is closed, and whoever asked is told."""
    supervisor = Supervisor(lab)
    over = threading.Event()
    waiting: list[Any] = []

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = json.loads(self.rfile.readline())
            op = request.pop("op")
            if op == "down":
                waiting.append(self.wfile)
                over.set()
                closed.wait()
                return
            reply: dict[str, Any]
            try:
                if op not in OPERATIONS:
                    raise LabError(f"the lab knows no {op!r}")
                reply = {"value": getattr(supervisor, op)(**request)}
            except (LabError, CoveyError, OSError, TypeError) as error:
                reply = {"error": str(error)}
            self.wfile.write(json.dumps(reply).encode() + b"\n")

    closed = threading.Event()
    path = lab_remains.directory_of(lab.name) / SOCKET
    with _Server(str(path), Connection) as server:
        path.chmod(0o600)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        announce({"value": True})
        over.wait()
        reply: dict[str, Any]
        try:
            lab.close()
            reply = {"value": True}
        except (LabError, OSError) as error:
            reply = {"error": str(error)}
        for stream in waiting:
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()
        closed.set()
        server.shutdown()


def main() -> int:
    """See the module's docstring."""
    name, nodes, managers, profile = sys.argv[1:]

    def announce(said: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        quiet = os.open(os.devnull, os.O_RDWR)
        log = os.open(lab_remains.directory_of(name) / "supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        os.dup2(quiet, 1)
        os.dup2(log, 2)

    try:
        lab = Lab(int(nodes), int(managers), profile, name)
        lab.open()
    except (LabError, CoveyError, OSError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 1
    serve(lab, announce)
    return 0


if __name__ == "__main__":
    sys.exit(main())
