"""One node of a lab: a machine with a node daemon, its directories, and the faults that can be put on it.

It knows Covey by process and HTTP only: the daemon's command line, its socket, and the pids it writes down.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from covey.engine_api.light import Client
from covey.errors import CoveyError
from covey.testing import lab_remains
from covey.testing.lab_machine import LabError, Machine, Page

PROCESSES = ("daemon", "manager", "etcd", "zygote")
_PATIENCE = 30.0


class LabNode:
    """``plug`` puts the machine's cable into the switch. ``name`` is also the host name; ``address`` the cluster's."""

    def __init__(
        self,
        name: str,
        role: str,
        address: str,
        directory: Path,
        cgroup: str,
        profile: str,
        plug: Callable[[Machine], None],
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.role = role
        self.address = address
        self.directory = directory
        self.cgroup = cgroup
        self.socket = directory / "run" / "daemon.sock"
        self._profile = profile
        self._plug = plug
        self._options = tuple(options)
        self._client: Client | None = None
        self._machine: Machine | None = None

    def __repr__(self) -> str:
        return f"<LabNode {self.name} {self.role} {self.address}>"

    # -- the machine -----------------------------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        """Its namespaces. Raises LabError before ``begin``."""
        if self._machine is None:
            raise LabError(f"node {self.name} has no machine yet")
        return self._machine

    @property
    def alive(self) -> bool:
        """Whether the machine runs."""
        return self._machine is not None and self._machine.alive

    def begin(self) -> None:
        """Make the machine; ``finish`` completes it. In two parts, so that many nodes can be made at once."""
        for name in ("data", "run"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._machine = Machine(self.name, self.directory)

    def finish(self) -> None:
        """The machine is up, plugged, and its daemon was started (``wait_ready`` says when it serves)."""
        self.machine.wait_ready()
        self._plug(self.machine)
        self.start_daemon()

    def kill(self) -> None:
        """The machine's death: every process in it ends at once, containers too. Its disk stays."""
        if self._machine is not None:
            self._machine.kill()
        self._forget_client()

    def restart(self) -> None:
        """Kill the machine if it runs and boot it again: same disk, address and name, an empty run directory."""
        self.kill()
        lab_remains.remove_cgroups(self.cgroup)
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        self.begin()
        self.finish()
        self.wait_ready()

    # -- its processes ---------------------------------------------------------------------------------------------

    def start_daemon(self) -> int:
        """Start the node daemon; its pid in the machine. Raises LabError if it runs."""
        if "daemon" in self.machine.running():
            raise LabError(f"node {self.name}: its daemon runs already")
        return self.machine.spawn(
            "daemon",
            [
                *(sys.executable, "-P", "-m", "cli.main", "daemon"),
                f"--data-root={self.directory}/data",
                f"--exec-root={self.directory}/run",
                f"--host=unix://{self.socket}",
                f"--cgroup-parent={self.cgroup}",
                f"--profile={self._profile}",
                *self._options,
            ],
            self.log_path("daemon"),
        )

    def wait_ready(self, patience: float = _PATIENCE) -> None:
        """Until the daemon answers. Raises LabError with the end of its log."""
        end = time.monotonic() + patience
        while True:
            try:
                with Client(self.docker_host, version="1.44", environ={}) as probe:
                    probe.get("/_ping")
                    return
            except (CoveyError, OSError) as error:
                over = time.monotonic() > end
                if over or "daemon" not in self.machine.running():
                    what = f"does not answer after {patience:g} s ({error})" if over else "has ended"
                    raise LabError(f"node {self.name}: its daemon {what}; its log ends: {self.log('daemon')}") from None
            time.sleep(0.02)

    def pid(self, process: str) -> int:
        """The pid, in the machine, of the node's daemon, manager, etcd or zygote. Raises LabError if it does not run."""
        return self._identity(process)[0]

    def _identity(self, process: str) -> tuple[int, int]:
        """(pid in the machine, start time) of a process that runs."""
        if process not in PROCESSES:
            raise LabError(f"process {process!r}: a node has {', '.join(PROCESSES)}")
        pid = started = 0
        if process == "daemon":
            pid = self.machine.running().get("daemon", 0)
        elif process == "zygote":
            pid = self._zygote()
        else:
            try:
                state = json.loads((self.directory / "run" / f"{process}.json").read_text())
                pid, started = int(state["pid"]), int(state["start_time"])
            except (OSError, ValueError, KeyError):
                pid = 0
        if pid:
            try:
                found = self.machine.process(pid)
            except LabError:
                found = {"state": "X", "start_time": 0}
            if found["state"] not in "ZX" and started in (0, found["start_time"]):
                return pid, int(found["start_time"])
        raise LabError(f"node {self.name} runs no {process} now")

    def _zygote(self) -> int:
        """Whoever listens on the zygote's socket, by its number in the machine."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.directory / "run" / "zygote.sock"))
            except OSError:
                return 0
            outside, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            lines = Path(f"/proc/{outside}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), 0)

    def runs(self, process: str) -> bool:
        """Whether the node's daemon, manager, etcd or zygote runs."""
        try:
            return self.alive and bool(self.pid(process))
        except LabError:
            return False

    def kill_process(self, process: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to the daemon, manager, etcd or zygote; returns when it is gone (SIGKILL). Its pid in the machine."""
        pid, started = self._identity(process)
        self.machine.signal(pid, number, started)
        if number == signal.SIGKILL:
            self._wait_gone(process, pid, started)
        return pid

    def _wait_gone(self, process: str, pid: int, started: int) -> None:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                found = self.machine.process(pid)
            except LabError:
                return
            dead = found["state"] in "ZX" or found["start_time"] != started
            if dead and self.machine.running().get(process) != pid:  # the init has seen it too
                return
            time.sleep(0.005)
        raise LabError(f"node {self.name}: {process}, pid {pid}, does not die of SIGKILL")

    # -- faults that end ---------------------------------------------------------------------------------------------

    def pause(self, seconds: float | None = None, processes: Sequence[str] = (), whole: bool = False) -> None:
        """SIGSTOP the node's own processes (all that run, or those named); ``whole``: everything, containers too.

        With ``seconds`` returns after them with everything continued, else ``resume`` continues it.
        """
        if whole:
            self.machine.signal(-1, signal.SIGSTOP)
        else:
            for process in processes or [name for name in PROCESSES if self.runs(name)]:
                self.kill_process(process, signal.SIGSTOP)
        if seconds is not None:
            time.sleep(seconds)
            self.resume()

    def stall(self, process: str, seconds: float) -> None:
        """One process stands still for so long."""
        self.pause(seconds, (process,))

    def resume(self) -> None:
        """Continue everything in the machine."""
        self.machine.signal(-1, signal.SIGCONT)

    # -- reaching it -----------------------------------------------------------------------------------------------

    @property
    def docker_host(self) -> str:
        """Its Engine API's address, for DOCKER_HOST and ``-H``."""
        return f"unix://{self.socket}"

    @property
    def client(self) -> Client:
        """A client of its Engine API; for one thread, ``connect`` makes more."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    def connect(self) -> Client:
        """A client of its own."""
        return Client(self.docker_host, environ={})

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def run(self, *argv: str, timeout: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside the machine, in all its namespaces, with output captured."""
        environment = {**os.environ, "DOCKER_HOST": self.docker_host, "COVEY_HOST": self.docker_host}
        settings: dict[str, Any] = {"capture_output": True, "text": True, "env": environment, "check": False, **options}
        return subprocess.run(self.machine.inside(*argv), timeout=timeout, **settings)

    def fetch(self, url: str, timeout: float = 3.0) -> Page:
        """GET http://… from inside the machine."""
        return self.machine.fetch(url, timeout)

    def load_image(self, archive: bytes) -> None:
        """Load a docker-archive. Raises LabError with the daemon's reason."""
        with self.connect() as client:
            for line in client.lines("POST", "/images/load", body=archive):
                if "error" in line:
                    raise LabError(f"node {self.name} refuses the image: {line['error']}")

    def log_path(self, process: str) -> Path:
        """Where a process of the node writes."""
        paths = {"daemon": "daemon.log", "zygote": "run/zygote.log"}
        return self.directory / paths.get(process, f"data/logs/{process}.log")

    def log(self, process: str, size: int = 1500) -> str:
        """The end of a process's log."""
        try:
            with open(self.log_path(process), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""
