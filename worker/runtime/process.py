"""The parent's side of starting a process: fork it by its plan, place it in its cgroup, follow its handshake.

It blocks nowhere: ``Launch`` is told when its channel is readable and answers what has happened. The caller keeps the
event loop, the stdio and the exit status.
"""

from __future__ import annotations

import os
import signal

from worker.kernel import process as kernel_process
from worker.kernel import safe_paths, syscalls
from worker.runtime import init, sync
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Stdio
from worker.runtime.launch import LaunchPlan


class Launch:
    """A process on its way to execve. phase: creating → created → starting → started, or failed."""

    def __init__(self, pid: int, channel: sync.Channel) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.start_time = kernel_process.start_time(pid) or 0
        self.channel = channel
        self.phase = "creating"
        self.console: int | None = None
        self.fault: RuntimeFault | None = None
        self._announced = False

    def start(self) -> None:
        """Let a created process go on to execve."""
        self.phase = "starting"
        self.channel.send(sync.START)

    def on_readable(self) -> bool:
        """Take one message; True when the phase has changed (or a fault ended the launch)."""
        try:
            kind, fault, fd = self.channel.receive()
        except BlockingIOError:
            return False
        if kind == sync.CREATED:
            self.phase, self.console = "created", fd
            return True
        if kind == sync.EXEC:
            self._announced = True
            return False
        if kind == sync.ERROR:
            self.fault = fault
        elif self._announced:
            self.phase = "started"
            return True
        else:
            self.fault = RuntimeFault("kernel", "the process died before its program could run", self.phase)
        self.phase = "failed"
        return True

    def signal(self, number: int) -> bool:
        return kernel_process.send_signal(self.pidfd, number)

    def close(self) -> None:
        os.close(self.pidfd)


def launch(
    plan: LaunchPlan,
    group: Cgroup,
    stdio: Stdio,
    entered_pid: int | None = None,
) -> Launch:
    """Fork the process of ``plan``; ``group`` is where it goes. Raises RuntimeFault or OSError, leaving no process.

    ``entered_pid``: the container's init, whose namespaces a plan of ``plan_exec`` enters.
    """
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
        if fd is not None:
            os.fchown(fd, plan.stdio_owner, -1)
    parent, child = sync.pair()
    parent.socket.setblocking(False)
    entered = os.pidfd_open(entered_pid) if entered_pid is not None else None
    try:
        pid = _fork(plan, child, stdio, entered)
    except BaseException:
        parent.close()
        raise
    finally:
        child.close()
        if entered is not None:
            os.close(entered)
    launched = Launch(pid, parent)
    try:
        if plan.id_maps:
            _write_maps(pid, plan.id_maps)
            parent.send(sync.MAPPED)
            group.add(pid)
            parent.send(sync.PLACED)
    except (ProcessLookupError, BrokenPipeError):
        # It has ended already; what it said before is in the channel.
        pass
    except OSError as error:
        launched.phase = "failed"
        launched.fault = RuntimeFault("kernel", f"{error.filename or ''}: {error.strerror}", "place in cgroup")
        launched.signal(signal.SIGKILL)
    return launched


def _fork(plan: LaunchPlan, channel: sync.Channel, stdio: Stdio, entered: int | None) -> int:
    joins: list[tuple[int, int]] = []
    try:
        if entered is not None:
            syscalls.setns(entered, syscalls.CLONE_NEWPID)
        for flag, path in plan.parent_joins:
            joins.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), flag))
            syscalls.setns(*joins[-1])
        pid = syscalls.fork_into(plan.clone_flags)
        if pid == 0:
            init.run(plan.create, plan.start, channel, stdio, entered)
        return pid
    finally:
        for fd, _ in joins:
            os.close(fd)
        if joins or entered is not None:
            _return_to_own_pid_namespace()


def _return_to_own_pid_namespace() -> None:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(own, syscalls.CLONE_NEWPID)
    finally:
        os.close(own)


def _write_maps(pid: int, maps: dict[str, str]) -> None:
    for kind, text in maps.items():
        safe_paths.write_proc(f"{pid}/{kind}_map", text)
