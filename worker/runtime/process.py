"""The parent's side of starting a process: fork it, place it in its cgroup, follow its handshake.

The plan is made and executed by the child, so that a parent which lives as long as the container (the shim) copies no
page for it; what the parent has to know before the fork is a ``Birth``. It blocks nowhere: ``Launch`` is told when its
channel is readable and answers what has happened. The caller keeps the event loop, the stdio and the exit status.
"""

from __future__ import annotations

import errno
import os

from worker.kernel import process as kernel_process
from worker.kernel import safe_paths, syscalls
from worker.kernel.bare import Any, Callable, Sequence, signal
from worker.runtime import idmap, init, namespaces, sync
from worker.runtime.birth import Birth
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Detachment, Stdio
from worker.runtime.mount_options import MappedTree

_NULL = os.makedev(1, 3)


class Launch:
    """A process on its way to execve. phase: creating → (ready → claimed →) created → starting → started, or failed.

    ready and claimed are those of a sandbox made ahead (worker.runtime.sandbox).
    """

    def __init__(self, pid: int, pidfd: int, channel: sync.Channel) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = kernel_process.start_time(pid) or 0
        self.channel = channel
        self.phase = "creating"
        self.console: int | None = None
        self.fault: RuntimeFault | None = None
        self.warnings: list[str] = []
        """What of the bundle is left out, told by the process once it is created (OCI runtime.md, "Warnings")."""
        self.on_request: Callable[[str, dict[str, Any]], None] | None = None
        """Told of what only the parent can do (sync.HOOKS, sync.LISTENER) and is to be answered by ``resume``."""
        self._announced = False

    @classmethod
    def running(cls, pid: int, pidfd: int, start_time: int) -> Launch:
        """The end of a launch that another process has seen through."""
        launched = cls.__new__(cls)
        launched.pid, launched.pidfd, launched.start_time = pid, pidfd, start_time
        launched.phase, launched.fault, launched.warnings = "started", None, []
        return launched

    @classmethod
    def waiting(cls, pid: int, pidfd: int, start_time: int, channel: sync.Channel) -> Launch:
        """One that another process has brought to where it waits for its start."""
        launched = cls.running(pid, pidfd, start_time)
        launched.phase, launched.channel, launched.console = "created", channel, None
        launched.on_request, launched._announced = None, False
        return launched

    def claim(self, bundle: str, init: bool, stdio: Stdio) -> None:
        """Have a ready sandbox become the container of ``bundle``; it gets our view of the mounts for a moment."""
        self.phase = "claimed"
        view = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fds = [fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if fd is not None]
            present = [fd is not None for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
            body = {"bundle": bundle, "init": init, "stdio": present}
            self.channel.send(sync.CLAIM, body=body, fds=[view, *fds])
        finally:
            os.close(view)

    def start(self) -> None:
        """Let a created process go on to execve."""
        self.phase = "starting"
        self.channel.send(sync.START)

    def resume(self, body: dict[str, Any]) -> None:
        """Answer a request of the process."""
        self.channel.send(sync.RESUME, body=body)

    def take_descriptor(self, number: int) -> int:
        """A copy of one of the process's own descriptors."""
        return syscalls.pidfd_getfd(self.pidfd, number)

    def on_readable(self) -> bool:
        """Take one message; True when the phase has changed (or a fault ended the launch)."""
        try:
            kind, fault, fd = self.channel.receive()
        except BlockingIOError:
            return False
        if kind in (sync.CREATED, sync.READY):
            self.phase, self.console = kind, fd
            self.warnings = self.channel.body.get("warnings") or []
            return True
        if kind == sync.EXEC:
            self._announced = True
            return False
        if kind in (sync.HOOKS, sync.LISTENER):
            if self.on_request is not None:
                self.on_request(kind, self.channel.body)
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
    birth: Birth,
    prepare: init.Prepare,
    stdio: Stdio,
    group: Cgroup,
    entered_pid: int | None = None,
    trees: Sequence[MappedTree] = (),
    detachment: Detachment | None = None,
    sibling: bool = False,
) -> Launch:
    """Fork a process that executes what ``prepare`` answers in it. Raises RuntimeFault or OSError, leaving no process.

    ``group``: where the parent has to place a process of a user namespace, which cannot enter by itself.
    ``entered_pid``: the container's init, whose namespaces an exec enters. ``trees``: mounts to make for it.
    ``detachment``: the process is to outlive this one. ``sibling``: it is our parent's child, who hears of its end and whose
    death is its own; not for a birth inside another user namespace.
    """
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
        if fd is not None and birth.placed_by_parent:
            hand_over(fd, birth.stdio_owner)
    parent, child = sync.pair()
    parent.socket.setblocking(False)
    entered = os.pidfd_open(entered_pid) if entered_pid is not None else None
    try:
        pid, pidfd = _fork(birth, prepare, child, stdio, entered, detachment, syscalls.CLONE_PARENT if sibling else 0)
    except BaseException:
        parent.close()
        raise
    finally:
        child.close()
        if entered is not None:
            os.close(entered)
    launched = _followed(pid, pidfd, parent)
    try:
        if birth.id_maps:
            _write_maps(pid, birth.id_maps)
            parent.send(sync.MAPPED)
        for tree in trees:
            _send_tree(parent, tree)
        if birth.placed_by_parent:
            group.add(pid)
            parent.send(sync.PLACED)
    except (ProcessLookupError, ConnectionError):
        # It has ended already; what it said before is in the channel.
        pass
    except RuntimeFault as fault:
        launched.phase, launched.fault = "failed", fault
        launched.signal(signal.SIGKILL)
    except OSError as error:
        # Where it has ended by itself, its own words say why.
        if not (launched.on_readable() and launched.fault):
            launched.phase = "failed"
            launched.fault = RuntimeFault("kernel", f"{error.filename or ''}: {error.strerror}", "place in cgroup")
        launched.signal(signal.SIGKILL)
    return launched


def hand_over(fd: int, owner: int) -> None:
    """Let ``owner`` open its stdio again; the machine's /dev/null, a read-only file or another's is left as it is."""
    entry = os.fstat(fd)
    if entry.st_uid == owner or entry.st_rdev == _NULL:
        return
    try:
        os.fchown(fd, owner, -1)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL):
            raise


def _followed(pid: int, pidfd: int, channel: sync.Channel) -> Launch:
    """The launch of a process that was just forked; one that cannot be followed is ended."""
    try:
        return Launch(pid, pidfd, channel)
    except OSError:
        channel.close()
        os.close(pidfd)
        os.kill(pid, signal.SIGKILL)
        raise


def _fork(
    birth: Birth,
    prepare: init.Prepare,
    channel: sync.Channel,
    stdio: Stdio,
    entered: int | None,
    detachment: Detachment | None,
    more_flags: int,
) -> tuple[int, int]:
    joined: list[int] = []
    try:
        if entered is not None:
            syscalls.setns(entered, syscalls.CLONE_NEWPID)
            joined.append(_own_namespace("pid"))
        for kind, path in birth.joins:
            own = _own_namespace(kind)
            joined.append(own)
            namespaces.join(path, kind)
        if birth.user_namespace:
            pid = _fork_inside(birth, prepare, channel, stdio, detachment)
            return pid, os.pidfd_open(pid)
        pid, pidfd = syscalls.fork_with_pidfd(birth.clone_flags | more_flags)
        if pid == 0:
            init.run(prepare, channel, stdio, entered, detachment)
        return pid, pidfd
    finally:
        for fd in joined:
            syscalls.setns(fd)
            os.close(fd)


def _own_namespace(kind: str) -> int:
    """Where children go back to: of pid, our own, not the one our children are born in."""
    return os.open(f"/proc/self/ns/{namespaces.PROC_NAMES[kind]}", os.O_RDONLY | os.O_CLOEXEC)


def _fork_inside(
    birth: Birth, prepare: init.Prepare, channel: sync.Channel, stdio: Stdio, detachment: Detachment | None
) -> int:
    """Fork through a process that has joined the user namespace at ``birth.user_namespace``, to which the new ones belong.

    The process is our own child nevertheless (CLONE_PARENT). The one between ends at once and says the real pid.
    """
    fd = namespaces.open_namespace(birth.user_namespace, "user")
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        between = syscalls.fork_into(0)
        if between == 0:
            answer = "0"
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWUSER)
                pid = syscalls.fork_into(birth.clone_flags | syscalls.CLONE_PARENT)
                if pid == 0:
                    init.run(prepare, channel, stdio, None, detachment)
                answer = str(pid)
            except OSError as error:
                answer = f"linux.namespaces: user namespace {birth.user_namespace}: {error.strerror}"
            finally:
                os.write(write_end, answer.encode())
                os._exit(0)
        os.close(write_end)
        write_end = -1
        words = os.read(read_end, 4096).decode()
        os.waitpid(between, 0)
    finally:
        for end in (fd, read_end, write_end):
            if end >= 0:
                os.close(end)
    if not words.isdecimal():
        raise RuntimeFault("kernel", words or "the process between died", "setns")
    return int(words)


def _send_tree(parent: sync.Channel, tree: MappedTree) -> None:
    copy = idmap.make_tree(tree)
    try:
        parent.send(sync.TREE, fd=copy)
    finally:
        os.close(copy)


def _write_maps(pid: int, maps: dict[str, str]) -> None:
    for kind, text in maps.items():
        safe_paths.write_proc(f"{pid}/{kind}_map", text)
