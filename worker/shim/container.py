"""The container of a shim: its states and what each request of the protocol does to it.

empty → (preparing → prepared →) created → running ⇄ paused → exited; a request in a wrong state is an error and changes
nothing. The exit record is on disk before anyone is told. It knows bundles and processes, not Docker. Bundles are
read by the forked child alone: what this process does stays in its memory as long as the container lives.
"""

from __future__ import annotations

import os
import time

from worker.kernel import syscalls
from worker.kernel.bare import Any, Callable, partial, signal, suppress
from worker.runtime import birth, orders, prepare, spec
from worker.runtime.birth import Birth
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import RuntimeFault, remedy
from worker.runtime.init import Prepare
from worker.runtime.process import Launch
from worker.shim import bundle, logs, records
from worker.shim.execs import Execs
from worker.shim.logfile import LogFile
from worker.shim.logs import Log
from worker.shim.loop import PRIORITY, READ, Loop
from worker.shim.outside import Outside
from worker.shim.process import Answer, Process
from worker.shim.reaper import wind_up

Reply = Callable[[dict[str, Any] | RuntimeFault], None]
_PAUSE_POLL, _PAUSE_PATIENCE = 0.002, 5.0
_RECORD_AGAIN = 1.0


class Container:
    """``broadcast``: tells every listener of events. ``hierarchies``: the machine's, for the container's cgroups.

    ``keeper``: the pid the shim is known by; it is the parent of the first process, if that has a pid namespace of its own.
    """

    def __init__(
        self,
        loop: Loop,
        ident: str,
        directory: str,
        broadcast: Callable[[dict[str, Any]], None],
        hierarchies: list[Hierarchy],
        keeper: int,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._broadcast = broadcast
        self._hierarchies = hierarchies
        self._keeper = keeper
        self._log_wanted: dict[str, Any] | None = None
        self._log: Log | None = None
        self._group: Cgroup | None = None
        self._former: Cgroup | None = None
        self._bundle = ""
        self._outside: Outside | None = None
        self.execs = Execs(broadcast)
        self._oom_fd = -1
        self._hand_over = False
        self._children: dict[int, Process] = {}
        self.ident = ident
        self.state = "empty"
        self.process: Process | None = None
        self.exit: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """The answer to ``hello`` and ``state``."""
        return {
            "version": records.VERSION,
            "id": self.ident,
            "pid": self._keeper,
            "state": self.state,
            "init_pid": self.process.pid if self.process else None,
            "init_start_time": self.process.start_time if self.process else None,
            "started_at": self.process.started_at if self.process else None,
            "exit": self.exit,
            "lost_log_bytes": self._log.lost_bytes if self._log else 0,
            "dropped_log_entries": self._log.dropped if self._log else 0,
        }

    def record_identity(self) -> None:
        """Write shim.json: who we are, and which cgroup is to be swept if we are killed, under which names."""
        more = {"former_cgroup": self._former.path} if self._former else {}
        records.write(self._directory, "shim.json", {**self.identity(), **more}, durable=False)

    def identity(self) -> dict[str, Any]:
        return records.identity(self.ident, self._keeper, self._group.path if self._group else None)

    def require(self, *states: str) -> Process:
        if self.state not in states or self.process is None:
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state}, not {' or '.join(states)}")
        return self.process

    def exit_event(self) -> dict[str, Any] | None:
        if self.exit is None:
            return None
        ended = self.exit
        return {
            "type": "exit",
            "code": ended["exit_code"],
            "signal": ended["signal"],
            "oom": ended["oom"],
            "at": ended["finished_at"],
        }

    def prepare(self, request: dict[str, Any], reply: Reply) -> None:
        """Make a sandbox of ``template`` (a config) ahead of the bundle that will need it; ``create`` takes it over."""
        if self.state != "empty":
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state} already")
        template = request["template"]
        self._group = Cgroup(template["linux"]["cgroupsPath"], self._hierarchies)
        self.record_identity()
        process = Process(self._loop, None, self._on_init_exit)
        made = prepare.waiting(bundle.load, template, self._hierarchies, self._directory)

        def ready(fault: RuntimeFault | None) -> None:
            if self.process is not process:
                return
            if fault is not None:
                self._abandon()
                reply(fault)
            else:
                self.state = "prepared"
                reply({"pid": process.pid})

        self.state = "preparing"
        self._fork(process, birth.of_container(template), made, ready, wait=True)

    def _fork(
        self, process: Process, born: Birth, made: Prepare, answer: Answer, *, stdin: bool = False, wait: bool = False
    ) -> None:
        assert self._group is not None
        trees = self._outside.mapped_trees if self._outside else ()
        ask = partial(self._on_request, process)
        try:
            self.process = process
            process.create(
                born, made, self._group, stdin=stdin, answer=answer, sandbox=wait, trees=trees, on_request=ask,
                sibling=self._is_keepers(born),
            )  # fmt: skip
        except BaseException:
            self._abandon()
            raise
        self._children[process.pid] = process
        self._hand_over = self._is_keepers(born)

    def _is_keepers(self, born: Birth) -> bool:
        """Whether its parent is the keeper. Not if orphans come to its parent, who has said so, or if that does more for it."""
        own_pids = born.clone_flags & syscalls.CLONE_NEWPID
        return bool(own_pids) and not born.user_namespace and not born.outside and self._keeper != os.getpid()

    def create(self, request: dict[str, Any], reply: Reply) -> None:
        """``birth``: that of the bundle's first process, if the caller knows it; else the bundle is read here.

        A prepared container also takes its new ``id`` and ``dir``, into which the caller has moved our socket.
        """
        if self.state not in ("empty", "prepared"):
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state} already")
        place, with_init, stdin = request["bundle"], bool(request.get("init")), bool(request.get("stdin"))
        known = request.get("birth")
        born = Birth.from_json(known) if known else birth.of_container(spec.load(place, self.ident))
        load = partial(bundle.load, ident=self.ident)
        outside = self._outside = Outside(self._loop, load(place, with_init), self.ident, place) if born.outside else None
        self._bundle = place
        self._log_wanted = request.get("log")
        self._log = logs.opened(self._loop, self._log_wanted)

        def created(fault: RuntimeFault | None) -> None:
            if fault is not None:
                self._abandon()
                _after(outside, lambda _: reply(fault))
                return
            try:
                self._watch_oom()
            except OSError as error:
                created(
                    RuntimeFault("kernel", f"{error.strerror} {error.filename or ''}".rstrip() + remedy(error), "oom events")
                )
                return
            self.state = "created"
            reply(self._identity())

        if self.state == "prepared":
            self._rename(request, born)
            assert self.process is not None
            self.process.claim(place, with_init, self._log, born, stdin=stdin, answer=created)
            return
        if not born.clone_flags & syscalls.CLONE_NEWPID:
            # Orphans of a process with a pid namespace of its own are that namespace's.
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        group = Cgroup(born.cgroup, self._hierarchies)
        if self._group is None or self._group.path != group.path:
            prepare.check_unused(group)
        self._group = group
        self.record_identity()
        if born.placed_by_parent:
            # Its child is nobody on the host, and cannot make a cgroup.
            prepare.make_group(orders.of_group(load(place, False), self._group.version), self._group)
        made = prepare.container(load, place, with_init, self._hierarchies)
        self._fork(Process(self._loop, self._log, self._on_init_exit), born, made, created, stdin=stdin)

    def _identity(self) -> dict[str, Any]:
        assert self.process is not None
        more = {"warnings": self.process.warnings} if self.process.warnings else {}
        return {"init_pid": self.process.pid, "init_start_time": self.process.start_time, **more}

    def _on_request(self, process: Process, launched: Launch, kind: str, body: dict[str, Any]) -> None:
        """What a starting process asks its parent for."""
        if self._outside is None:
            process.fail(RuntimeFault("invalid", f"the bundle has been changed since its birth was told: {kind}"))
            return
        status = self.state if self.state in ("created", "running") else "creating"
        init_pid = self.process.pid if self.process and self.process.pid else launched.pid
        self._outside.answer(launched, kind, body, status, init_pid, process.fail)

    def _rename(self, request: dict[str, Any], born: Birth) -> None:
        """A sandbox takes the container's name, run directory and cgroup; v2 cannot rename the last."""
        assert self._group is not None
        self.ident, self._directory = request.get("id") or self.ident, request.get("dir") or self._directory
        if self._group.version == 1:
            self._former, self._group = self._group, Cgroup(born.cgroup, self._hierarchies)
        self.record_identity()

    def _abandon(self) -> None:
        """A create that failed leaves no process and no cgroup; the shim is empty again."""
        process = self.process
        self.process = None
        self.state = "empty"
        if process is not None:
            process.signal(signal.SIGKILL)
            process.streams.close()
        if self._log is not None:
            self._log.close()
        self._wind_up(lambda: None, wanted=lambda: self.process is None)

    def discard(self) -> None:
        """End a sandbox that nobody will claim, or one that is being made, all it holds, and with it the shim."""
        self.state = "empty"
        if self.process is not None:
            self.process.signal(signal.SIGKILL)
        # Its exit is no container's.
        self.process = None

        def gone() -> None:
            records.forget(self._directory)
            self._loop.stop()

        self._wind_up(gone, wanted=lambda: True)

    def _wind_up(self, done: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Remove the cgroup, also under the name that a sandbox may not have given up yet."""
        groups = [group for group in (self._former, self._group) if group is not None]

        def following() -> None:
            if groups:
                wind_up(self._loop, groups.pop(0), following, wanted)
            else:
                done()

        following()

    def start(self, request: dict[str, Any], reply: Reply) -> None:
        process = self.require("created")

        def started(fault: RuntimeFault | None) -> None:
            if fault is not None:
                reply(fault)
                return
            if self.state == "created":
                self.state = "running"
            if self._outside is None:
                reply({})
            else:
                self._outside.after_start(process.pid, after_hooks)

        def after_hooks(fault: RuntimeFault | None) -> None:
            if fault is not None:
                process.signal(signal.SIGKILL)
            reply(fault or {})

        process.start(started)

    def on_child(self, pid: int, status: int) -> None:
        """A child has ended; orphans that came to us as their subreaper are only reaped."""
        process = self._children.pop(pid, None)
        if process is not None:
            process.on_reaped(status)

    def _on_init_exit(self, process: Process) -> None:
        if process is not self.process or self._group is None:
            return
        if self.state == "prepared":
            self.discard()
            return
        self._group.kill()
        self.exit = {
            "exit_code": process.exit_code,
            "signal": process.exit_signal,
            "oom": self._group.oom_kills() > 0,
            "started_at": process.started_at,
            "finished_at": time.time(),
        }
        self.state = "exited"
        self._unwatch_oom()
        self._record_exit()
        event = self.exit_event()
        assert event is not None
        self._broadcast(event)

    def _record_exit(self) -> None:
        """Write exit.json; a full disk keeps nobody from being told by us, and the record is tried again."""
        if self.exit is None:
            return
        try:
            records.write(self._directory, "exit.json", {"id": self.ident, **self.exit}, durable=True)
        except OSError:
            self._loop.call_later(_RECORD_AGAIN, self._record_exit)

    def kill(self, request: dict[str, Any], reply: Reply) -> None:
        number = int(request["signal"])
        if not 0 < number < signal.NSIG:
            raise RuntimeFault("invalid", f"{number} is not the number of a signal")
        if request.get("exec_id"):
            process = self.execs.find(request["exec_id"])
            (process.signal_group if request.get("all") else process.signal)(number)
            reply({})
            return
        process = self.require("created", "running", "paused")
        assert self._group is not None
        if request.get("all"):
            self._group.kill(number)
        elif not process.signal(number):
            raise RuntimeFault("bad-state", f"container {self.ident} has just ended")
        if self.state == "paused" and number == signal.SIGKILL:
            # A frozen task of cgroup v1 does not even die.
            self._group.freeze(False)
        reply({})

    def pause(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("running")
        self._freeze(True, reply)

    def resume(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("paused")
        self._freeze(False, reply)

    def _freeze(self, frozen: bool, reply: Reply) -> None:
        group = self._group
        assert group is not None
        group.freeze(frozen)
        deadline = time.monotonic() + _PAUSE_PATIENCE

        def check() -> None:
            if self.state == "exited":
                reply(RuntimeFault("bad-state", f"container {self.ident} ended meanwhile"))
            elif _is_frozen(group) == frozen:
                self.state = "paused" if frozen else "running"
                reply({})
            elif time.monotonic() > deadline:
                with suppress(OSError):
                    group.freeze(False)
                reply(RuntimeFault("kernel", f"container {self.ident} did not freeze in {_PAUSE_PATIENCE:.0f} s"))
            else:
                self._loop.call_later(_PAUSE_POLL, check)

        check()

    def update(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("created", "running", "paused")
        assert self._group is not None
        self._group.apply(request["resources"], update=True)
        reply({})

    def resize(self, request: dict[str, Any], reply: Reply) -> None:
        ident = request.get("exec_id")
        process = self.execs.find(ident) if ident else self.require("created", "running", "paused", "exited")
        if not process.streams.resize(int(request["height"]), int(request["width"])):
            raise RuntimeFault("bad-state", f"{ident or self.ident} has no terminal now")
        reply({})

    def pids(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("created", "running", "paused")
        assert self._group is not None
        reply({"pids": self._group.pids()})

    def stats(self, request: dict[str, Any], reply: Reply) -> None:
        self.require("created", "running", "paused")
        assert self._group is not None
        log = self._log
        said = {"dropped_entries": log.dropped, "lost_bytes": log.lost_bytes} if log else None
        reply({**self._group.stats(), "log": said})

    def exec(self, request: dict[str, Any], reply: Reply) -> None:
        container = self.require("running")
        ident = str(request["exec_id"])
        assert self._group is not None
        process = Process(self._loop, None, lambda _: self.execs.ended(ident))

        def created(fault: RuntimeFault | None) -> None:
            if fault is not None:
                self.execs.drop(ident)
                process.signal(signal.SIGKILL)
            reply(fault or {"pid": process.pid})

        made = prepare.entering(partial(bundle.load, ident=self.ident), self._bundle, request["process"], self._group)
        born = birth.of_exec(request["process"])
        self.execs.add(ident, process)
        try:
            process.create(
                born,
                made,
                self._group,
                stdin=bool(request.get("stdin")),
                entered_pid=container.pid,
                answer=created,
                on_request=partial(self._on_request, process),
            )
        except BaseException:
            self.execs.drop(ident)
            raise
        self._children[process.pid] = process

    def exec_start(self, request: dict[str, Any], reply: Reply) -> None:
        process = self.execs.find(request["exec_id"])
        if process.started or process.exit_code is not None:
            raise RuntimeFault("bad-state", f"exec {request['exec_id']} has been started already")
        process.start(lambda fault: reply(fault or {}))

    def exec_state(self, request: dict[str, Any], reply: Reply) -> None:
        reply(self.execs.state(request["exec_id"]))

    def delete(self, request: dict[str, Any], reply: Reply, finished: Callable[[], None]) -> None:
        """Remove what the kernel holds of an ended container; ``finished`` ends the shim."""
        if self.state not in ("exited", "empty"):
            raise RuntimeFault("bad-state", f"container {self.ident} is {self.state}: kill it first")

        def removed() -> None:
            _after(self._outside if self.state == "exited" else None, gone)

        def gone(warnings: list[str]) -> None:
            finished()
            reply({"warnings": warnings} if warnings else {})

        if self._group is None:
            removed()
        else:
            wind_up(self._loop, self._group, removed, wanted=lambda: True)

    def handed(self) -> tuple[dict[str, Any], list[tuple[str, int]]] | None:
        """(what the next worker has to ``take``, its descriptors); None while something is under way."""
        process, log = self.process, self._log
        if not self._hand_over or self.state not in ("running", "paused") or process is None or not process.streams.at_rest:
            return None
        execs = self.execs.handed()
        logged = log.handed() if isinstance(log, LogFile) else None
        if self._group is None or execs is None or (log is not None and logged is None):
            return None
        body = {
            "state": self.state,
            "execs": execs,
            "id": self.ident,
            "dir": self._directory,
            "bundle": self._bundle,
            "cgroup": self._group.path,
            "pid": process.pid,
            "start_time": process.start_time,
            "started_at": process.started_at,
            "log": self._log_wanted,
            "logged": logged,
        }
        oom = [("oom-v2" if self._group.version == 2 else "oom", self._oom_fd)] if self._oom_fd >= 0 else []
        return body, [("process", process.pidfd), *oom, *process.streams.descriptors()]

    def take(self, handed: dict[str, Any], fds: list[tuple[str, int]]) -> None:
        """Be the container that the worker before has ``handed`` over."""
        self._bundle = handed["bundle"]
        self._hand_over = True
        self._group = Cgroup(handed["cgroup"], self._hierarchies)
        if handed["logged"] is not None:
            self._log_wanted = handed["log"]
            self._log = logs.resumed(handed["log"], handed["logged"])
        process = self.process = Process(self._loop, self._log, self._on_init_exit)
        self._children[handed["pid"]] = process
        self.state = handed["state"]
        for name, fd in fds:
            if name == "process":
                process.resume(handed["pid"], fd, handed["start_time"], handed["started_at"])
            elif name == "handshake":
                process.follow(fd)
            elif name.startswith("oom"):
                self._await_oom(fd, priority=name == "oom-v2")
            else:
                process.streams.take(name, fd)
        process.streams.pump()
        self.execs.take(handed["execs"], self._loop)

    def _watch_oom(self) -> None:
        assert self._group is not None
        opened = self._group.open_oom_events()
        if opened is not None:
            self._await_oom(*opened)

    def _await_oom(self, fd: int, priority: bool) -> None:
        self._oom_fd = fd
        self._loop.add(fd, PRIORITY if priority else READ, self._on_oom)

    def _on_oom(self, _: int) -> None:
        os.read(self._oom_fd, 4096)
        if self._group is not None and self._group.version == 2:
            os.lseek(self._oom_fd, 0, os.SEEK_SET)
            if self._group.oom_kills() == 0:
                return
        self._broadcast({"type": "oom"})

    def _unwatch_oom(self) -> None:
        if self._oom_fd >= 0:
            self._loop.remove(self._oom_fd)
            os.close(self._oom_fd)
            self._oom_fd = -1


def _is_frozen(group: Cgroup) -> bool | None:
    """None when it cannot be told now, for want of a descriptor."""
    try:
        return group.is_frozen()
    except OSError:
        return None


def _after(outside: Outside | None, done: Callable[[list[str]], None]) -> None:
    """Call ``done`` with the warnings of the poststop hooks, if there are any to run first."""
    if outside is None:
        done([])
    else:
        outside.after_stop(done)
