"""Executes a LaunchPlan inside the new process, from the fork to execve.

It runs single-threaded with everything imported beforehand: after the pivot nothing of the host can be loaded. What
goes wrong is told to the parent with the name of the step; a fault after a seccomp filter may be untellable and shows
in the exit status (126, 127) alone. It decides nothing: the plan is made by its caller's ``prepare``, in this process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import stat
import struct
import sys
import termios

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import Any, Callable, NoReturn, signal
from worker.runtime import capabilities, cgroups, hooks, namespaces, seccomp, sync
from worker.runtime.device_nodes import DEVICE_STEPS
from worker.runtime.errors import RuntimeFault, remedy
from worker.runtime.filesystem import FILESYSTEM_STEPS
from worker.runtime.hiding import HIDING_STEPS
from worker.runtime.home import HOME_STEPS
from worker.runtime.labels import LABEL_STEPS
from worker.runtime.launch import DEFAULT_PATH, LaunchPlan, Steps
from worker.runtime.namespaces import NAMESPACE_STEPS
from worker.runtime.scheduling import SCHEDULING_STEPS

_FIRST_FD = 3
# asm-generic/ioctls.h; the termios module has them from Python 3.13 on only.
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
# Python ignores the first two, the shim has its own way with the others.
_OURS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PTMX, _NULL = os.makedev(5, 2), os.makedev(1, 3)
_C_LIBRARY_SIGNALS = (32, 33)
_NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class Stdio:
    """The descriptors a process gets as 0, 1 and 2; None for a terminal's, which it makes itself.

    ``kept``: how many more, from 3 on, the program has from whoever started it, unless they are closed on exec.
    """

    __slots__ = ("kept", "stderr", "stdin", "stdout")

    def __init__(self, stdin: int | None, stdout: int | None, stderr: int | None, kept: int = 0) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.kept = kept


class Detachment:
    """A process that outlives whoever forks it: it has no death signal.

    ``listener``: the listening socket at which it waits to be started by another process, once its parent has said
    ``detach``; until then the parent's death is its own. Without one it goes on by its parent's ``start``.
    """

    __slots__ = ("listener",)

    def __init__(self, listener: int | None = None) -> None:
        self.listener = listener


class Init:
    """State that steps hand on: the open root, the console, the program found.

    ``private_fd``: from there on descriptors are init's own, which the program must not get. ``attached``: it dies with
    its parent.
    """

    def __init__(self, channel: sync.Channel, pidfd: int | None, private_fd: int, attached: bool) -> None:
        self.channel = channel
        self.pidfd = pidfd
        self.private_fd = private_fd
        self.attached = attached
        self.root_fd = self.place_fd = -1
        self.sources: dict[tuple[str, bool], list[int]] = {}
        self.console_master: int | None = None
        self.console_slave: int | None = None
        self.program = ""
        self.args: list[str] = []
        self.env: dict[str, str] = {}
        self.entered_directory = False
        self.state: dict[str, Any] = {}
        self.doing: tuple[str, dict[str, Any]] = ("", {})

    @property
    def step(self) -> str:
        """What is being done, in words for who reads of its failure."""
        name, arguments = self.doing
        about = arguments.get("destination") or arguments.get("path") or arguments.get("key") or ""
        return f"{name} {about}".rstrip()

    def die_with_parent(self) -> None:
        """Set the death signal, which a change of ids clears."""
        if self.attached:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


Prepare = Callable[["Init"], LaunchPlan]
"""Makes the plan in the new process, where it costs the parent nothing; may perform steps that come before all others."""


def run(
    prepare: Prepare, channel: sync.Channel, stdio: Stdio, pidfd: int | None, detachment: Detachment | None = None
) -> NoReturn:
    """The child's whole life up to execve; never returns and never raises into the parent's code.

    ``pidfd``: the container's init, for a plan that enters its namespaces.
    """
    code = 1
    try:
        listener = detachment.listener if detachment is not None else None
        try:
            init, listener = _isolate(channel, stdio, pidfd, listener, attached=detachment is None)
        except OSError as error:
            channel.send(sync.ERROR, fault=as_fault(error, "isolate"))
            raise
        try:
            plan = prepare(init)
            perform(init, plan.create)
            body = {"warnings": plan.warnings} if plan.warnings else None
            init.channel.send(sync.CREATED, fd=init.console_master, body=body)
            if init.console_master is not None:
                os.close(init.console_master)
            if listener is None:
                init.channel.expect(sync.START)
            else:
                _await_start(init, listener)
            perform(init, plan.start)
        except Exception as error:
            fault = as_fault(error, init.step)
            code = exit_code(fault)
            init.channel.send(sync.ERROR, fault=fault)
    finally:
        os._exit(code)


def exit_code(fault: RuntimeFault) -> int:
    """What a process ends with that could not become its program; where it cannot say why, that alone tells."""
    return {"not-found": 127, "not-executable": 126}.get(fault.code, 1)


def as_fault(error: Exception, step: str) -> RuntimeFault:
    if isinstance(error, RuntimeFault):
        error.step = error.step or step
        return error
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return RuntimeFault("kernel", f"{error.strerror or error}{where} (errno {error.errno}){remedy(error)}", step)
    return RuntimeFault("kernel", f"{type(error).__name__}: {error}", step)


def _await_start(init: Init, listener: int) -> None:
    """Let go of the creator, then wait for whoever says ``start``; one that connects and goes only asks if we wait."""
    init.channel.expect(sync.DETACH)
    while True:
        init.channel.close()
        init.channel = sync.accept(listener)
        if init.channel.receive()[0] == sync.START:
            break
    os.close(listener)


def _isolate(
    channel: sync.Channel, stdio: Stdio, pidfd: int | None, listener: int | None, *, attached: bool
) -> tuple[Init, int | None]:
    """Give up all the parent has open, its session and its signal set-up; die when it dies, if ``attached``.

    Answers also where ``listener`` is then.
    """
    _set_apart(attached=attached)
    private = _FIRST_FD + stdio.kept
    ours = [fd for fd in (channel.fileno(), pidfd, listener) if fd is not None]
    # Above the low numbers first, so that no dup2 below overwrites one that is still to be placed.
    high = [
        -1 if fd is None else _duplicate(fd, max(64, private + len(ours)))
        for fd in (stdio.stdin, stdio.stdout, stdio.stderr, *ours)
    ]
    devnull = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in (0, 1, 2):
        os.dup2(high[target] if high[target] >= 0 else devnull, target)
    for offset, fd in enumerate(high[3:]):
        os.dup2(fd, private + offset, inheritable=False)
    syscalls.close_range(private + len(ours))
    channel.socket.detach()
    channel = sync.adopt(private)
    _reset_signals()
    last = private + len(ours) - 1
    return Init(channel, None if pidfd is None else private + 1, private, attached), None if listener is None else last


def begin(channel: sync.Channel, stdin: int, stdout: int, stderr: int) -> Init:
    """For the child of a parent that has nothing open but what is closed on exec: as ``_isolate``, with all of it kept.

    The three are closed.
    """
    _set_apart(attached=True)
    for target, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, target)
        os.close(fd)
    _reset_signals()
    return Init(channel, None, _FIRST_FD, True)


def _set_apart(*, attached: bool) -> None:
    signal.set_wakeup_fd(-1)
    if attached:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    os.setsid()


def _duplicate(fd: int, lowest: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError as error:
        # So fcntl(2) calls a limit of open files below ``lowest``.
        number = errno.EMFILE if error.errno == errno.EINVAL else error.errno
        raise OSError(number, os.strerror(number or 0)) from None


def _reset_signals() -> None:
    """Ignored signals survive execve; all others are at their default since ``prepare``."""
    for number in _OURS:
        syscalls.default_signal_action(number)
    syscalls.unblock_signals()


def perform(init: Init, steps: Steps) -> None:
    for step in steps:
        init.doing = step
        name, arguments = step
        _STEPS[name](init, **arguments)


def become_mapped_root(init: Init, wait: bool) -> None:
    if wait:
        init.channel.expect(sync.MAPPED)
    namespaces.become_root_of_namespace()
    init.die_with_parent()


def unshare(init: Init, flags: int) -> None:
    syscalls.unshare(flags)


def enter(init: Init, flags: int, user: bool) -> None:
    assert init.pidfd is not None
    syscalls.setns(init.pidfd, flags)
    os.close(init.pidfd)
    if user:
        namespaces.become_root_of_namespace()
        init.die_with_parent()
    init.root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def join_cgroup(init: Init, namespace: bool, entrances: list[str]) -> None:
    """Be in the container's cgroups, which only then can become the namespace's root; without entrances, wait for it."""
    for path in entrances:
        cgroups.write(path, "0")
    if not entrances:
        init.channel.expect(sync.PLACED)
    if namespace:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)


def hostname(init: Init, name: str) -> None:
    syscalls.sethostname(name)


def domainname(init: Init, name: str) -> None:
    syscalls.setdomainname(name)


def sysctl(init: Init, key: str, value: str) -> None:
    safe_paths.write_proc("sys/" + (key if "/" in key else key.replace(".", "/")), value)


def console(init: Init, size: dict[str, int], bind: bool, uid: int) -> None:
    """A pair of the container's own devpts; the master goes to the parent with the next message."""
    master = safe_paths.open_in_root(init.root_fd, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    if os.fstat(master).st_rdev != _PTMX:
        raise RuntimeFault("invalid", "/dev/pts/ptmx is no terminal multiplexer: mount devpts at /dev/pts", "console")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(slave, uid, -1)
    if size:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size.get("height", 0), size.get("width", 0), 0, 0))
    if bind:
        # By its descriptor: what its name leads to may have been exchanged by now (CVE-2025-52565).
        copy = mounts.clone("", slave)
        target = safe_paths.create_file_in_root(init.root_fd, "dev/console", 0o600)
        mounts.attach(copy, target)
        for fd in (copy, target):
            os.close(fd)
    init.console_master, init.console_slave = master, slave


def oom_score_adj(init: Init, value: int) -> None:
    """The score is inherited from the shim, which is protected; a value the kernel refuses to lower to is an error."""
    safe_paths.write_proc("self/oom_score_adj", str(value))


def rlimit(init: Init, name: str, soft: int, hard: int) -> None:
    kind = _RLIMIT_NUMBERS[name] if name in _RLIMIT_NUMBERS else getattr(resource, name)
    values = tuple(resource.RLIM_INFINITY if value in (-1, 2**64 - 1) else value for value in (soft, hard))
    try:
        resource.setrlimit(kind, (values[0], values[1]))
    except (ValueError, PermissionError) as error:
        raise RuntimeFault("kernel", f"{name} {soft}:{hard}: {error}", "rlimit") from None


_RLIMIT_NUMBERS = {"RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
                   "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15}  # fmt: skip


def stdio(init: Init, terminal: bool) -> None:
    """Take the terminal as the controlling one; without, the host's /dev/null becomes the container's own."""
    if terminal:
        assert init.console_slave is not None
        fcntl.ioctl(init.console_slave, termios.TIOCSCTTY, 0)
        for target in (0, 1, 2):
            os.dup2(init.console_slave, target)
        os.close(init.console_slave)
        return
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target in (0, 1, 2):
        if os.fstat(target).st_rdev == _NULL:
            os.dup2(null, target)
    os.close(null)


def session_keyring(init: Init) -> None:
    try:
        syscalls.new_session_keyring()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
            raise


def find_program(init: Init, args: list[str], env: list[str]) -> None:
    """Resolve args[0] by the process's own PATH inside its root; the words are those people search the web for."""
    init.args = args
    init.env = dict(entry.split("=", 1) for entry in env)
    name = args[0]
    if "/" in name:
        init.program = name
        return
    refused = None
    for directory in init.env.get("PATH", DEFAULT_PATH).split(":"):
        candidate = f"{directory or '.'}/{name}"
        # Most directories lack it, which stat would say by an exception each.
        if not os.access(candidate, os.F_OK):
            continue
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            init.program = candidate
            return
        refused = candidate
    if refused is not None:
        raise RuntimeFault("not-executable", f'exec: "{name}": permission denied: {refused}', "execve")
    raise RuntimeFault("not-found", f'exec: "{name}": executable file not found in $PATH', "execve")


def check_program(init: Init, args: list[str], env: list[str], cwd: str) -> None:
    """Miss the program while the creator still listens; what only its user can see is left to the start."""
    find_program(init, args, env)
    try:
        mode = os.stat(os.path.join(cwd, init.program)).st_mode
    except OSError as error:
        if error.errno not in _NOT_FOUND:
            return
        raise RuntimeFault("not-found", f'exec: "{args[0]}": {(error.strerror or "").lower()}', "execve") from None
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise RuntimeFault("not-executable", f'exec: "{args[0]}": permission denied', "execve")


def working_directory(init: Init, path: str, last: bool) -> None:
    """Enter the directory as root, or as the user where root is kept out (a FUSE or NFS mount of the user's)."""
    if last and init.entered_directory:
        return
    try:
        os.chdir(path)
    except PermissionError:
        if last:
            raise
        return
    except OSError as error:
        raise RuntimeFault("invalid", f"cwd {path}: {error.strerror}", "working_directory") from None
    # A directory reached through a leaked descriptor lies outside the root, which the kernel shows in its name.
    if not os.getcwd().startswith("/"):
        raise RuntimeFault("invalid", f"cwd {path} lies outside the root", "working_directory")
    init.entered_directory = True


def announce_exec(init: Init) -> None:
    init.channel.send(sync.EXEC)


def bounding(init: Init, keep: int) -> None:
    capabilities.drop_bounding(keep)


def identity(init: Init, uid: int, gid: int, groups: list[int], umask: int) -> None:
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    os.umask(umask)
    if not init.attached:
        return
    init.die_with_parent()
    # A parent that died before that shows on the channel.
    poll = select.poll()
    poll.register(init.channel.fileno(), select.POLLHUP)
    if poll.poll(0):
        os._exit(1)


def set_capabilities(init: Init, effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    capabilities.set_all(effective, permitted, inheritable, ambient)


def no_new_privileges(init: Init) -> None:
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def load_seccomp(init: Init, **filter_: Any) -> None:
    """From here on only what every program may do: the parent is told of a listener by write and waited for by read."""
    listener = seccomp.load(filter_["instructions"], filter_.get("flags") or (), listener=bool(filter_.get("listener")))
    if listener is not None:
        os.write(init.channel.fileno(), b'{"type": "%s", "fd": %d}' % (sync.LISTENER.encode(), listener))
        os.read(init.channel.fileno(), 1024)
        os.close(listener)


def hooks_of_create(init: Init, entries: hooks.Entries) -> None:
    """The parent runs those outside first and says what we are to the host; then ours, still in sight of its files."""
    init.channel.send(sync.HOOKS)
    answer, _ = init.channel.expect(sync.RESUME)
    init.state = answer["state"]
    hooks.run(entries, init.state)


def hooks_of_start(init: Init, entries: hooks.Entries) -> None:
    hooks.run(entries, {**init.state, "status": "created"})


def execve(init: Init) -> None:
    syscalls.close_range(init.private_fd, flags=syscalls.CLOSE_RANGE_CLOEXEC)
    try:
        os.execve(init.program, init.args, init.env)
    except OSError as error:
        code = "not-found" if error.errno in _NOT_FOUND else "not-executable"
        raise RuntimeFault(code, f'exec: "{init.program}": {(error.strerror or "").lower()}', "execve") from None


_STEPS: dict[str, Any] = {
    **DEVICE_STEPS,
    **FILESYSTEM_STEPS,
    **HIDING_STEPS,
    **HOME_STEPS,
    **LABEL_STEPS,
    **NAMESPACE_STEPS,
    **SCHEDULING_STEPS,
    "announce_exec": announce_exec,
    "become_mapped_root": become_mapped_root,
    "bounding": bounding,
    "capabilities": set_capabilities,
    "check_program": check_program,
    "console": console,
    "domainname": domainname,
    "enter": enter,
    "execve": execve,
    "find_program": find_program,
    "hooks_of_create": hooks_of_create,
    "hooks_of_start": hooks_of_start,
    "hostname": hostname,
    "identity": identity,
    "join_cgroup": join_cgroup,
    "no_new_privileges": no_new_privileges,
    "oom_score_adj": oom_score_adj,
    "rlimit": rlimit,
    "seccomp": load_seccomp,
    "session_keyring": session_keyring,
    "stdio": stdio,
    "sysctl": sysctl,
    "unshare": unshare,
    "working_directory": working_directory,
}


def prepare() -> None:
    """For the process that init is forked from, once.

    Python must have loaded what it loads on first use: after the pivot there is nothing to load it from. And whoever
    started us may have had the C library's own signals ignored, which only the kernel's call can undo.
    """
    "\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    os.fsencode(sys.executable)
    for number in set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP, *_OURS, *_C_LIBRARY_SIGNALS}:
        signal.signal(number, signal.SIG_DFL)
    for number in _C_LIBRARY_SIGNALS:
        syscalls.default_signal_action(number)
