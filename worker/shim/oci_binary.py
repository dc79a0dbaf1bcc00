"""Runs an OCI runtime's program (runc, crun, kata) for one container: its command line, its log, its words as our faults.

It blocks nowhere: a command is a child, and its end is told by the shim's loop. What a container is, is foreign's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence

from worker.kernel import safe_paths
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Stdio

Done = Callable[["RuntimeFault | None"], None]
_LOG_TAIL = 8192
_NOT_FOUND = re.compile(r"executable file `?[^`]*`? ?not found|no such file or directory|not found in \$PATH", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(r"permission denied|exec format error", re.IGNORECASE)
_EXEC = re.compile(r"exec|executable file", re.IGNORECASE)


class Binary:
    """``path`` of the program, ``ident`` of the container; its state and log lie in ``directory``."""

    def __init__(self, path: str, ident: str, directory: str, score: Callable[[], int]) -> None:
        self.path = path
        self._ident = ident
        self._directory = directory
        self._score = score
        self._log = os.path.join(directory, "runtime.log")
        self._commands: dict[int, tuple[str, Done]] = {}
        #: Children that ended while a command ran that may yet say whose they were.
        self._strays: dict[int, int] = {}

    def file(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def run(self, command: str, arguments: Sequence[str], done: Done, stdio: Stdio | None = None) -> None:
        """``done`` gets None, or the fault its log tells. ``stdio`` is given to the program, which hands it on."""
        root = self.file("runtime")
        argv = [self.path, "--root", root, "--log", self._log, "--log-format", "json", command, *arguments]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)
        given = (stdio.stdin, stdio.stdout, stdio.stderr) if stdio else (None, None, None)
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for number, fd in enumerate(given):
            if fd is None:
                actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDONLY if number == 0 else os.O_WRONLY, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        try:
            with self._own_oom_score():
                pid = os.posix_spawn(
                    self.path, argv, os.environ, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_IGNORED
                )
        except OSError as error:
            raise RuntimeFault("kernel", f"cannot run the runtime {self.path}: {error.strerror}", command) from None
        self._commands[pid] = (command, done)

    @contextlib.contextmanager
    def _own_oom_score(self) -> Iterator[None]:
        """What the program starts inherits its score, and ours is the shim's: the last to be killed."""
        try:
            with open("/proc/self/oom_score_adj") as file:
                ours = file.read().strip()
            safe_paths.write_proc("self/oom_score_adj", str(self._score()))
        except OSError:
            ours = ""
        try:
            yield
        finally:
            if ours:
                with contextlib.suppress(OSError):
                    safe_paths.write_proc("self/oom_score_adj", ours)

    def on_child(self, pid: int, status: int) -> bool:
        """Whether it was one of our commands; another's end is kept while one runs."""
        if pid not in self._commands:
            if self._commands:
                self._strays[pid] = status
            return False
        command, done = self._commands.pop(pid)
        try:
            done(None if status == 0 else self.fault(command, os.waitstatus_to_exitcode(status)))
        finally:
            if not self._commands:
                self._strays.clear()
        return True

    def stray(self, pid: int) -> int | None:
        """The wait status of a process that ended before its pid was known."""
        return self._strays.pop(pid, None)

    def pid(self, name: str) -> int:
        """What the program wrote into a pid file."""
        try:
            with open(self.file(name)) as file:
                return int(file.read())
        except (OSError, ValueError):
            raise RuntimeFault("kernel", f"{self.path} wrote no pid into {name}", "create") from None

    def fault(self, command: str, code: int) -> RuntimeFault:
        """The last error of its log, as a fault of ours."""
        words = f"{os.path.basename(self.path)} {command} ended with {code}"
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.path.getsize(self._log) - _LOG_TAIL))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        said = next((text for line in reversed(lines) if (text := _message(line))), "")
        return RuntimeFault(_code(command, said), said or words, command)


#: The shim ignores these; what it starts must not.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


def _message(line: str) -> str:
    """The words of a log line at level error, "" for another."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(entry, dict) or entry.get("level", "error") not in ("error", "fatal", "panic"):
        return ""
    return str(entry.get("msg") or "").strip()


def _code(command: str, words: str) -> str:
    if command in ("create", "start", "exec") and _EXEC.search(words):
        if _NOT_FOUND.search(words):
            return "not-found"
        if _NOT_EXECUTABLE.search(words):
            return "not-executable"
    return "bad-state" if "not running" in words or "does not exist" in words else "kernel"
