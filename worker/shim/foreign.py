"""A container that another OCI runtime runs (runc, crun, kata by path), behind the same shim and the same protocol.

The runtime's program makes, starts, freezes, changes and deletes it; its processes become our children when the program
has ended, as we are their subreaper. Streams, log, exit record and events are the same as for a container of our own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from worker.kernel import process as kernel_process
from worker.kernel import syscalls
from worker.runtime import prepare
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Stdio
from worker.shim import bundle, logs
from worker.shim.console import ConsoleSocket
from worker.shim.container import Container, Reply
from worker.shim.loop import Loop
from worker.shim.oci_binary import Binary, Done
from worker.shim.process import LAUNCH_EXIT, Process


class ForeignProcess(Process):
    """A process that the runtime's program has made; known by its pid file."""

    _pidfd = -1
    _console: ConsoleSocket | None = None

    def outfit(self, *, stdin: bool, terminal: bool, directory: str, name: str) -> tuple[Stdio, list[str]]:
        """(what the program gets as its stdio, its options for a terminal)."""
        if not terminal:
            return self.streams.make_pipes(stdin=stdin), []
        self._console = ConsoleSocket(self._loop, directory, name, self._take_console)
        return Stdio(None, None, None), ["--console-socket", self._console.path]

    def _take_console(self, master: int) -> None:
        self.streams.take_console(master)
        self.streams.pump()

    def made(self, pid: int, *, terminal: bool) -> None:
        """The program has ended well: ``pid`` is ours now."""
        self.pid, self.start_time = pid, kernel_process.start_time(pid) or 0
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        if self._console is not None:
            self._console.finish()
        if not terminal:
            self.streams.pump()

    def failed(self, fault: RuntimeFault) -> None:
        """Nothing came of it; what its pipes hold is the program's, not the container's."""
        if self._console is not None:
            self._console.close()
        self.fault = fault
        self.exit_code = LAUNCH_EXIT.get(fault.code, 128)
        self.streams.discard()

    def signal(self, number: int) -> bool:
        return self.exit_code is None and self._pidfd >= 0 and kernel_process.send_signal(self._pidfd, number)

    def on_reaped(self, status: int) -> None:
        self.ended(os.waitstatus_to_exitcode(status))
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.streams.drain()
        self._on_exit(self)
        self.streams.process_ended()


class ForeignContainer(Container):
    """``runtime``: the program's path."""

    def __init__(
        self,
        loop: Loop,
        ident: str,
        directory: str,
        broadcast: Callable[[dict[str, Any]], None],
        hierarchies: list[Hierarchy],
        keeper: int,
        runtime: str,
    ) -> None:
        super().__init__(loop, ident, directory, broadcast, hierarchies, keeper)
        self._score = 0
        self._waiting: dict[str, tuple[dict[str, Any], Stdio, list[str]]] = {}
        self._binary = Binary(runtime, ident, directory, lambda: self._score)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "runtime": self._binary.path}

    def on_child(self, pid: int, status: int) -> None:
        if pid in self._children or not self._binary.on_child(pid, status):
            super().on_child(pid, status)

    def prepare(self, request: dict[str, Any], reply: Reply) -> None:
        raise RuntimeFault("invalid", f"a sandbox made ahead is of our own runtime, not of {self._binary.path}")

    def create(self, request: dict[str, Any], reply: Reply) -> None:
        if self.state != "empty":
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state} already")
        place = request["bundle"]
        config = _config(place, with_init=bool(request.get("init")))
        self._score = int(config["process"].get("oomScoreAdj") or 0)
        group = Cgroup(config["linux"]["cgroupsPath"], self._hierarchies)
        prepare.check_unused(group)
        self._group = group
        # What the program makes becomes our child when the program has ended.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self.record_identity()
        self._log = logs.opened(self._loop, request.get("log"))
        terminal = bool(config["process"].get("terminal"))
        process = self.process = ForeignProcess(self._loop, self._log, self._on_init_exit)
        stdio, console = process.outfit(
            stdin=bool(request.get("stdin")), terminal=terminal, directory=self._directory, name="console.sock"
        )

        def done(fault: RuntimeFault | None) -> None:
            pid = 0
            if fault is None:
                try:
                    pid = self._binary.pid("init.pid")
                except RuntimeFault as missing:
                    fault = missing
            if fault is not None:
                process.failed(fault)
                self._abandon_foreign()
                reply(fault)
                return
            process.streams.skip()
            process.made(pid, terminal=terminal)
            self.state = "created"
            self._watch_oom()
            self._adopt(process)
            reply({"init_pid": process.pid, "init_start_time": process.start_time})

        options = ["--bundle", place, "--pid-file", self._binary.file("init.pid"), *console, self.ident]
        self._launch("create", options, process, stdio, done)

    def _launch(self, command: str, options: list[str], process: ForeignProcess, stdio: Stdio, done: Done) -> None:
        try:
            self._binary.run(command, options, done, stdio)
        except RuntimeFault as fault:
            done(fault)
        finally:
            process.streams.release(stdio)

    def _adopt(self, process: ForeignProcess) -> None:
        self._children[process.pid] = process
        status = self._binary.stray(process.pid)
        if status is not None:
            super().on_child(process.pid, status)

    def _abandon_foreign(self) -> None:
        """Whatever the program left goes, too, before the cgroup."""
        self._quietly("delete", ["--force", self.ident], lambda _: self._abandon())

    def _quietly(self, command: str, options: list[str], done: Done) -> None:
        try:
            self._binary.run(command, options, done)
        except RuntimeFault as fault:
            done(fault)

    def start(self, request: dict[str, Any], reply: Reply) -> None:
        process = self.require("created")

        def done(fault: RuntimeFault | None) -> None:
            if fault is not None:
                process.fault = fault
                reply(fault)
                return
            process.begun()
            if self.state == "created":
                self.state = "running"
            reply({})

        self._binary.run("start", [self.ident], done)

    def kill(self, request: dict[str, Any], reply: Reply) -> None:
        if request.get("exec_id"):
            super().kill(request, reply)
            return
        number = int(request["signal"])
        if not 0 < number < signal.NSIG:
            raise RuntimeFault("invalid", f"{number} is not the number of a signal")
        self.require("created", "running", "paused")
        if self._group is not None and request.get("all"):
            self._group.kill(number)
            reply({})
            return

        def done(fault: RuntimeFault | None) -> None:
            if fault is not None and self.state == "exited":
                fault = RuntimeFault("bad-state", f"container {self.ident} has just ended")
            if fault is None and self.state == "paused" and number == signal.SIGKILL and self._group is not None:
                # A frozen task of cgroup v1 does not even die.
                self._group.freeze(False)
            reply({} if fault is None else fault)

        self._binary.run("kill", [self.ident, str(number)], done)

    def _freeze(self, frozen: bool, reply: Reply) -> None:
        def done(fault: RuntimeFault | None) -> None:
            if fault is None and self.state != "exited":
                self.state = "paused" if frozen else "running"
            reply({} if fault is None else fault)

        self._binary.run("pause" if frozen else "resume", [self.ident], done)

    def update(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("created", "running", "paused")
        path = self._binary.file("resources.json")
        with open(path, "w") as file:
            json.dump(request["resources"], file)
        self._binary.run("update", ["--resources", path, self.ident], lambda fault: reply({} if fault is None else fault))

    def exec(self, request: dict[str, Any], reply: Reply) -> None:
        """Only its streams are made: a runtime's exec cannot wait. ``pid`` is 0 until ``exec_start``."""
        self.require("running")
        ident = str(request["exec_id"])
        process = ForeignProcess(self._loop, None, lambda _: self.execs.ended(ident))
        self.execs.add(ident, process)
        body = request["process"]
        try:
            with open(self._binary.file(f"exec-{ident}.json"), "w") as file:
                json.dump(body, file)
            stdio, console = process.outfit(
                stdin=bool(request.get("stdin")),
                terminal=bool(body.get("terminal")),
                directory=self._directory,
                name=f"exec-{ident[:12]}.sock",
            )
        except BaseException:
            self.execs.drop(ident)
            raise
        self._waiting[ident] = (body, stdio, console)
        reply({"pid": 0})

    def exec_start(self, request: dict[str, Any], reply: Reply) -> None:
        ident = str(request["exec_id"])
        process = self.execs.find(ident)
        if ident not in self._waiting or not isinstance(process, ForeignProcess):
            raise RuntimeFault("bad-state", f"exec {ident} has been started already")
        body, stdio, console = self._waiting.pop(ident)
        spec, pid_file = self._binary.file(f"exec-{ident}.json"), f"exec-{ident}.pid"

        def done(fault: RuntimeFault | None) -> None:
            pid = 0
            if fault is None:
                try:
                    pid = self._binary.pid(pid_file)
                except RuntimeFault as missing:
                    fault = missing
            for name in (spec, self._binary.file(pid_file)):
                with contextlib.suppress(OSError):
                    os.unlink(name)
            if fault is not None:
                process.failed(fault)
                self.execs.ended(ident)
                reply(fault)
                return
            process.begun()
            process.made(pid, terminal=bool(body.get("terminal")))
            reply({"pid": pid})
            self._adopt(process)

        options = ["--process", spec, "--detach", "--pid-file", self._binary.file(pid_file), *console, self.ident]
        self._launch("exec", options, process, stdio, done)

    def delete(self, request: dict[str, Any], reply: Reply, finished: Callable[[], None]) -> None:
        if self.state not in ("exited", "empty"):
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state}: kill it first")
        gone = super().delete
        self._quietly("delete", ["--force", self.ident], lambda _: gone(request, reply, finished))


def _config(place: str, *, with_init: bool) -> dict[str, Any]:
    """The bundle's config, which is the runtime's to judge; the machine's init is put into it when asked for."""
    path = os.path.join(place, "config.json")
    try:
        with open(path, "rb") as file:
            config: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise RuntimeFault("not-found", f"config.json: there is none in bundle {place}", "create") from None
    if with_init:
        bundle.put_init_first(config)
        with open(path, "w") as file:
            json.dump(config, file)
    return config
