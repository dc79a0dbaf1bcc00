"""Runs the hooks of a bundle: programs at moments of a container's life, with its state on stdin.

Moments and rules: OCI config.md, "POSIX-platform Hooks", and runtime.md, "Lifecycle". ``run`` blocks and serves whoever
may wait (init for createContainer and startContainer, a command line for all others); ``Background`` does the same
beside an event loop. Which state a container is in, and what a failure means for it, is the caller's business.
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from worker.kernel import syscalls
from worker.kernel.bare import Any, Callable, Iterable, NoReturn, signal, suppress
from worker.runtime import compact_json
from worker.runtime.errors import RuntimeFault, SpecFault

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
EARLY = ("prestart", "createRuntime")
_STDERR_KEPT = 2048
_MESSAGE = 65536
_KEPT_SIGNALS = (signal.SIGKILL, signal.SIGSTOP, 32, 33)

Entries = list[tuple[str, dict[str, Any]]]
"""(name for errors such as ``hooks.prestart[0]``, the hook) in the order of running."""


def check(hooks: dict[str, Any]) -> None:
    """Raise SpecFault for the first hook that can never run."""
    for kind, entries in hooks.items():
        if kind not in KINDS:
            continue
        if not isinstance(entries, list):
            raise SpecFault(f"hooks.{kind}", "must be a list")
        for index, hook in enumerate(entries):
            _check_hook(hook, f"hooks.{kind}[{index}]")


def _check_hook(hook: object, field: str) -> None:
    if not isinstance(hook, dict):
        raise SpecFault(field, "must be an object")
    path = hook.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise SpecFault(f"{field}.path", f"{path!r} is not an absolute path")
    for key in ("args", "env"):
        values = hook.get(key) or []
        if not isinstance(values, list) or not all(isinstance(value, str) and "\0" not in value for value in values):
            raise SpecFault(f"{field}.{key}", "must be strings without NUL")
    for entry in hook.get("env") or []:
        if entry.find("=") < 1:
            raise SpecFault(f"{field}.env", f"{entry!r} is not NAME=value")
    timeout = hook.get("timeout")
    if timeout is not None and (not isinstance(timeout, int) or isinstance(timeout, bool) or timeout <= 0):
        raise SpecFault(f"{field}.timeout", f"{timeout!r} is not a number of seconds above zero")


def entries(config: dict[str, Any], *kinds: str) -> Entries:
    """The hooks of these kinds, in the order in which they run."""
    hooks = config.get("hooks") or {}
    return [(f"hooks.{kind}[{index}]", hook) for kind in kinds for index, hook in enumerate(hooks.get(kind) or [])]


def state(config: dict[str, Any], ident: str, bundle: str, status: str, pid: int) -> dict[str, Any]:
    """The state of a container as OCI runtime.md has it. ``status``: creating, created, running or stopped."""
    body: dict[str, Any] = {"ociVersion": config["ociVersion"], "id": ident, "status": status, "bundle": bundle}
    if pid and status != "stopped":
        body["pid"] = pid
    if config.get("annotations"):
        body["annotations"] = config["annotations"]
    return body


def run(entries: Entries, state: dict[str, Any], directory: str | None = None) -> None:
    """Run hooks in order. Raises RuntimeFault for the first that fails; those after it do not run.

    ``directory``: their working directory; None leaves the caller's.
    """
    for name, hook in entries:
        _run_hook(name, hook, state, directory)


def run_all(entries: Entries, state: dict[str, Any], directory: str | None = None) -> list[str]:
    """Run every hook, whatever the others do (poststop); answers what went wrong, as words for a warning."""
    warnings = []
    for name, hook in entries:
        try:
            _run_hook(name, hook, state, directory)
        except (RuntimeFault, OSError) as error:
            warnings.append(str(error))
    return warnings


class Background:
    """Hooks running in a child of this process; ``fd`` becomes readable when ``result`` has an answer.

    ``all_of_them``: as ``run_all``. ``first``: what the child does before, which may raise RuntimeFault. The child is the
    caller's to reap (it is pid ``pid``).
    """

    def __init__(
        self,
        entries: Entries,
        state: dict[str, Any],
        directory: str | None = None,
        *,
        all_of_them: bool = False,
        first: Callable[[], None] | None = None,
    ) -> None:
        self.fd, write_end = (_raised(fd) for fd in os.pipe2(os.O_CLOEXEC))
        try:
            self.pid = syscalls.fork_into(0)
        except BaseException:
            os.close(self.fd)
            os.close(write_end)
            raise
        if self.pid == 0:
            _background_child(entries, state, directory, all_of_them, first, write_end)
        os.close(write_end)

    def result(self) -> tuple[RuntimeFault | None, list[str]]:
        """(fault, warnings); closes ``fd``. To be called once it is readable."""
        data = b""
        while chunk := os.read(self.fd, _MESSAGE):
            data += chunk
        os.close(self.fd)
        if not data:
            return RuntimeFault("kernel", "the process that ran the hooks has died", "hooks"), []
        body = compact_json.loads(data)
        return (RuntimeFault.from_dict(body["fault"]) if body["fault"] else None), list(body["warnings"])


def _background_child(
    entries: Entries,
    state: dict[str, Any],
    directory: str | None,
    all_of_them: bool,
    first: Callable[[], None] | None,
    write_end: int,
) -> NoReturn:
    fault: RuntimeFault | None = None
    warnings: list[str] = []
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        _reset_signals()
        os.dup2(write_end, 3, inheritable=False)
        syscalls.close_range(4)
        try:
            if first is not None:
                first()
            if all_of_them:
                warnings = run_all(entries, state, directory)
            else:
                run(entries, state, directory)
        except RuntimeFault as error:
            fault = error
        except OSError as error:
            fault = RuntimeFault("kernel", f"{error.strerror} {error.filename or ''}".rstrip(), "hooks")
        body = {"fault": fault.as_dict() if fault else None, "warnings": warnings}
        os.write(3, compact_json.dumps(body))
    finally:
        os._exit(0)


def _run_hook(name: str, hook: dict[str, Any], state: dict[str, Any], directory: str | None) -> None:
    stdin = _memory_file(compact_json.dumps(state))
    stderr = _memory_file(b"")
    said, saying = (_raised(fd) for fd in os.pipe2(os.O_CLOEXEC))
    try:
        pid = syscalls.fork_into(0)
        if pid == 0:
            _hook_child(hook, stdin, stderr, saying, directory)
        os.close(saying)
        saying = -1
        status = _wait(pid, name, hook.get("timeout"))
        refused = os.read(said, 1024).decode("utf-8", "replace")
        if refused:
            raise RuntimeFault("kernel", f"{hook['path']}: {refused}", name)
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            words = _text(stderr)
            raise RuntimeFault("kernel", f"{hook['path']}: {how}{': ' + words if words else ''}", name)
    finally:
        for fd in (stdin, stderr, said, saying):
            if fd >= 0:
                os.close(fd)


def _wait(pid: int, name: str, timeout: int | None) -> int:
    """The hook's exit code, or minus its signal. Raises RuntimeFault after ``timeout`` seconds."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not poll.poll(None if deadline is None else max(0, deadline - time.monotonic()) * 1000):
            if deadline is not None and time.monotonic() >= deadline:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise RuntimeFault("kernel", f"did not end within its timeout of {timeout} s and was killed", name)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)


def _hook_child(hook: dict[str, Any], stdin: int, stderr: int, saying: int, directory: str | None) -> NoReturn:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        _reset_signals()
        os.dup2(saying, 3, inheritable=False)
        null = _raised(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        for source, target in ((stdin, 0), (null, 1), (stderr, 2)):
            os.dup2(source, target)
        syscalls.close_range(4)
        if directory is not None:
            os.chdir(directory)
        environment = dict(entry.split("=", 1) for entry in hook.get("env") or [])
        os.execve(hook["path"], hook.get("args") or [hook["path"]], environment)
    except OSError as error:
        with suppress(OSError):
            os.write(3, (error.strerror or str(error)).encode())
    finally:
        os._exit(127)


def _reset_signals(numbers: Iterable[int] = range(1, signal.NSIG)) -> None:
    for number in numbers:
        if number not in _KEPT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _memory_file(data: bytes) -> int:
    """A file without a name."""
    fd = _raised(os.memfd_create("covey-hook", os.MFD_CLOEXEC))
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _raised(fd: int) -> int:
    """The same open file above the descriptors that a hook's own take the place of."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
    os.close(fd)
    return high


def _text(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, _STDERR_KEPT, max(0, size - _STDERR_KEPT)).decode("utf-8", "replace").strip()
