"""The first process of a lab machine: reaps, starts programs, sends signals, fetches pages; its end is the machine's death.

A program of its own, standard library only, run by path in fresh PID, mount, network and UTS namespaces. It takes JSON
lines on the descriptor that is its one argument; when the other end closes, because whoever made the machine has ended,
it ends, and the kernel ends everything in the PID namespace. It must not know what a cluster is.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

_SECONDS = 3.0


class Machine:
    """Programs started here by name (name → pid) and how the last one of a name ended (name → wait status)."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def reap(self) -> None:
        """Take every process that has ended: orphans come to the first process too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, known in list(self.running.items()):
                if known == pid:
                    del self.running[name]
                    self.ended[name] = status

    def answer(self, request: dict[str, Any]) -> Any:
        """The answer to one request. Raises OSError, KeyError, ValueError."""
        return getattr(self, "do_" + request["op"])(request)

    def do_spawn(self, request: dict[str, Any]) -> int:
        """Start ``argv`` as ``name``, its output appended to ``log``; its pid in here."""
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            pid = os.posix_spawnp(
                request["argv"][0],
                request["argv"],
                {**os.environ, **request["env"]},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        finally:
            os.close(log)
        self.running[request["name"]] = pid
        return pid

    def do_running(self, request: dict[str, Any]) -> dict[str, int]:
        """Name → pid of the programs that run."""
        return self.running

    def do_ended(self, request: dict[str, Any]) -> dict[str, int]:
        """Name → wait status of programs that have ended."""
        return self.ended

    def do_signal(self, request: dict[str, Any]) -> None:
        """Send ``signal`` to ``pid``, if that is (start_time 0: whatever it is) the process meant; -1 is all but this one."""
        pid, started = request["pid"], request.get("start_time", 0)
        if started and self.do_process({"pid": pid})["start_time"] != started:
            raise ProcessLookupError(3, f"process {pid} has ended; its number is another's now")
        os.kill(pid, request["signal"])

    def do_process(self, request: dict[str, Any]) -> dict[str, Any]:
        """What /proc says of ``pid``."""
        pid = request["pid"]
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = [word.decode(errors="replace") for word in file.read().split(b"\0")[:-1]]
        return {"pid": pid, "state": fields[0], "ppid": int(fields[1]), "start_time": int(fields[19]), "argv": argv}

    def do_processes(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Every process of the machine but this one."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    found.append(self.do_process({"pid": int(name)}))
                except OSError:
                    continue
        return found

    def do_fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        """GET ``path`` at ``host``:``port`` from inside the machine: status and body (base64)."""
        host, port = request["host"], request["port"]
        with socket.create_connection((host, port), timeout=request.get("timeout", _SECONDS)) as connection:
            head = f"GET {request['path']} HTTP/1.0\r\nHost: {request['authority']}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            received = bytearray()
            while data := connection.recv(65536):
                received += data
        top, _, body = bytes(received).partition(b"\r\n\r\n")
        words = top.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            raise ValueError(f"{host}:{port} answered no HTTP but {bytes(received[:80])!r}")
        return {"status": int(words[1][:3]), "body": base64.b64encode(body).decode()}


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes."""
    machine = Machine()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    selector.register(reading, selectors.EVENT_READ)
    channel.sendall(b'{"ready":true}\n')
    pending = b""
    while True:
        for key, _ in selector.select():
            if key.fileobj is reading:
                reading.recv(4096)
                continue
            data = channel.recv(65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                machine.reap()
                try:
                    reply = {"value": machine.answer(json.loads(line))}
                except (OSError, KeyError, ValueError, AttributeError) as error:
                    reply = {"error": f"{type(error).__name__}: {error}"}
                channel.sendall(json.dumps(reply).encode() + b"\n")
        machine.reap()


def main() -> None:
    """Arguments: the channel's descriptor, the machine's name."""
    descriptor, name = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)
    socket.sethostname(name)
    with socket.socket(fileno=descriptor) as channel:
        try:
            serve(channel)
        except (BrokenPipeError, ConnectionResetError):
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
