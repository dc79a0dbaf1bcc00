"""A machine of the lab: namespaces with an init of their own, and the channel over which it is told what to do.

It knows namespaces and processes; it must not know what a cluster, a daemon or a container is. Killing the init is the
machine's death: everything in its PID namespace ends with it. If the process that made the machine ends, so does it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_INIT = Path(__file__).with_name("lab_init.py")
_PATIENCE = 20.0
TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2", "bridge": "iproute2"}

#: /proc is unshare's doing. /sys must be the new network namespace's, with the machine's control groups still in it; the
#: boot id must be this machine's own, since a restarted node has to notice that it was.
_FURNISH = """set -e
mount -n --rbind /sys/fs/cgroup "$1/stage"
mount -n -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -n --move "$1/stage" /sys/fs/cgroup
mount -n --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
shift
exec "$@"
"""


class LabError(RuntimeError):
    """The lab cannot do what was asked; the message names the machine and the next step."""


class Page(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


def check() -> None:
    """Raises LabError, in one line, if this machine cannot have a lab."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes namespaces and cgroups. Run it with sudo")
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise LabError(f"the lab needs the packages {', '.join(missing)}: install them, or run scripts/setup")


class Machine:
    """Started by the constructor; ``wait_ready`` before anything else. ``pid`` is the init's number in our PID namespace."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.pid = 0
        self._lock = threading.Lock()
        self._pending = b""
        (directory / "stage").mkdir(parents=True, exist_ok=True)
        (directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self._channel, theirs = socket.socketpair()
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._channel.settimeout(_PATIENCE)
        self._log = directory / "init.log"
        with theirs, open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--net", "--uts", "--ipc"),
                    *("sh", "-c", _FURNISH, "furnish", str(directory)),
                    *(sys.executable, "-I", "-S", str(_INIT), str(theirs.fileno()), name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )

    def wait_ready(self) -> None:
        """Until the init answers: its first message carries its pid as the kernel sees it from here."""
        try:
            data, extra, _, _ = self._channel.recvmsg(4096, socket.CMSG_SPACE(12))
        except TimeoutError:
            data, extra = b"", []
        if not data:
            said = self._log.read_text(errors="replace").strip() or "nothing"
            self.kill()
            raise LabError(f"machine {self.name} did not come up; it said: {said[-500:]}")
        credentials = [body for level, kind, body in extra if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)]
        self.pid = int(struct.unpack("3i", credentials[0][:12])[0])
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)

    @property
    def alive(self) -> bool:
        """Whether its init runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """The machine's death, at once; returns when nothing of it is left."""
        if self.pid and self.alive:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # Before it was ready only its channel can tell it.
        with self._lock:
            self._channel.close()
        self._process.wait(_PATIENCE)

    def ask(self, op: str, **fields: Any) -> Any:
        """One request to the init. Raises LabError."""
        with self._lock:
            try:
                self._channel.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
                while b"\n" not in self._pending:
                    data = self._channel.recv(1 << 20)
                    if not data:
                        raise ConnectionResetError("its init has ended")
                    self._pending += data
            except OSError as error:
                raise LabError(f"machine {self.name} is dead ({error}); start it again with restart") from None
            line, _, self._pending = self._pending.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise LabError(f"machine {self.name}, {op}: {reply['error']}")
        return reply["value"]

    def spawn(self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
        """Start a program; its pid in the machine."""
        return int(self.ask("spawn", name=name, argv=list(argv), log=str(log), env=dict(environment or {})))

    def running(self) -> dict[str, int]:
        """Name → pid in the machine of the programs ``spawn`` started that still run."""
        return dict(self.ask("running"))

    def signal(self, pid: int, number: int, start_time: int = 0) -> None:
        """Signal a process of the machine by its pid there; -1 is everything but the init."""
        self.ask("signal", pid=pid, signal=int(number), start_time=start_time)

    def process(self, pid: int) -> dict[str, Any]:
        """pid, state, ppid, start_time (ticks since boot) and argv of a process, by its pid in the machine."""
        return dict(self.ask("process", pid=pid))

    def processes(self) -> list[dict[str, Any]]:
        """All of them."""
        return list(self.ask("processes"))

    def fetch(self, url: str, timeout: float = 3.0) -> Page:
        """GET http://… from inside the machine's network namespace. Raises LabError."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise LabError(f"{url}: the lab fetches http://host:port/path only")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        reply = self.ask(
            "fetch", host=parts.hostname, port=parts.port or 80, path=path, authority=parts.netloc, timeout=timeout
        )
        return Page(reply["status"], base64.b64decode(reply["body"]))

    def inside(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` in all of the machine's namespaces."""
        return ["nsenter", "-t", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--", *argv]

    def in_network(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` in the machine's network namespace only."""
        return ["nsenter", "-t", str(self.pid), "--net", "--", *argv]
