"""How the command tells what went wrong: a line on stderr, and in the log file in the form containerd and podman read.

logrus's forms: ``time="…" level=error msg="…"`` or one JSON object a line. It decides no exit code.
"""

from __future__ import annotations

import os
import time
from typing import Any

LEVELS = ("debug", "info", "warn", "error")


class CommandError(Exception):
    """A command that cannot be done; ``status`` is the exit code."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Log:
    """Where the global options --log, --log-format, --log-level and --debug send words."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._path = options["log"].removeprefix("file:")
        self._json = options["log_format"] == "json"
        level = {"warning": "warn", "fatal": "error", "panic": "error"}.get(options["log_level"], options["log_level"])
        self._least = LEVELS.index("debug" if options["debug"] else level if level in LEVELS else "info")

    def check(self) -> None:
        """Raise CommandError when the log file cannot be written: better now than when there is something to tell."""
        path, self._path = self._path, ""
        if path.partition(":")[0] in ("syslog", "journald"):
            raise CommandError(f"--log {path}: only a file can be written to here")
        if path:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
            except OSError as error:
                raise CommandError(f"--log {path}: {error.strerror}") from None
        self._path = path

    def debug(self, message: str) -> None:
        self._say("debug", message)

    def warn(self, message: str) -> None:
        self._say("warn", message)

    def error(self, message: str) -> None:
        """Also to stderr, when the log is a file: a person at a terminal has to see it."""
        self._say("error", message)
        if self._path:
            _write_all(2, f"covey-runtime: {message}\n")

    def _say(self, level: str, message: str) -> None:
        if LEVELS.index(level) < self._least:
            return
        line = _line(level, message, self._json)
        if not self._path:
            _write_all(2, line if self._json else f"covey-runtime: {message}\n")
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            _write_all(2, f"covey-runtime: log {self._path}: {error.strerror}\n")
            return
        try:
            _write_all(fd, line)
        finally:
            os.close(fd)


def _write_all(fd: int, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        # Nobody is there to be told.
        pass


def _line(level: str, message: str, as_json: bool) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    name = "warning" if level == "warn" else level
    if as_json:
        import json

        return json.dumps({"level": name, "msg": message, "time": moment}) + "\n"
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'time="{moment}" level={name} msg="{quoted}"\n'
