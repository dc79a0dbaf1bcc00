"""The console script ``covey-runtime``: reads the line, calls the verb's function, tells errors, answers the exit code.

Every verb is a module of this package, imported when it is called: what is not needed costs nothing.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from worker.runtime.command import arguments
from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.environment import default_root, listen_fds
from worker.runtime.command.report import CommandError, Log

_SEALED = ("create", "run", "exec")
"""Verbs whose process becomes one of the container."""

_MODULE = {
    "create": "create",
    "run": "create",
    "start": "start",
    "state": "listing",
    "list": "listing",
    "ps": "listing",
    "kill": "end",
    "delete": "end",
    "pause": "freeze",
    "resume": "freeze",
    "exec": "exec",
    "update": "update",
    "events": "events",
    "spec": "template",
    "features": "features",
}
_ARGUMENT_STATUS = 1
# runc's: what an exec that could not be done answers, to tell it from the program's own codes.
_EXEC_STATUS = 255
RELEASE = "0.1.0"
SPEC_VERSION = "1.3.0"


def main() -> int:
    """Entry point of the console script."""
    return _command(sys.argv[1:], again=True)


def sealed() -> int:
    """Entry point of the second start."""
    return _command(sys.argv[1:], again=False)


def _command(line: list[str], *, again: bool) -> int:
    _open_stdio()
    log = Log({option.key: option.initial for option in arguments.GLOBAL})
    verb = ""
    try:
        parsed = arguments.parse(line)
        verb = parsed.verb
        log = Log(parsed.globals)
        if parsed.globals["version"]:
            _say(_version())
            return 0
        if parsed.help or not verb:
            _say(arguments.help_text(verb))
            return 0
        _check_globals(parsed)
        log.check()
        if verb in _SEALED and again:
            from worker.runtime.command import sealed

            sealed.run_again(line)
        if verb in _SEALED:
            _reserve(parsed.options["preserve_fds"] + listen_fds())
        log.debug(f"{verb} {parsed.operands}")
        return int(
            getattr(import_module(f"worker.runtime.command.{_MODULE[verb]}"), verb.replace("list", "list_"))(parsed, log)
        )
    except UsageError as error:
        log.error(str(error))
        return _ARGUMENT_STATUS
    except CommandError as error:
        log.error(str(error))
        return _EXEC_STATUS if verb == "exec" else error.status
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        # What was begun has been undone on the way here.
        return 130
    except Exception as error:
        return _fault(error, verb, log)


def _fault(error: Exception, verb: str, log: Log) -> int:
    from worker.runtime.errors import RuntimeFault

    if isinstance(error, RuntimeFault):
        words = str(error)
    elif isinstance(error, OSError):
        words = f"{error.strerror or error}{f' {error.filename}' if error.filename else ''} (errno {error.errno})"
    else:
        import traceback

        for line in traceback.format_exc().splitlines():
            log.debug(line)
        words = f"{type(error).__name__}: {error}: run it with --debug and report this"
    log.error(f"{verb}: {words}" if not isinstance(error, RuntimeFault) else words)
    return _EXEC_STATUS if verb == "exec" else 1


def _check_globals(parsed: Arguments) -> None:
    given = parsed.globals
    if given["systemd_cgroup"] or given["cgroup_manager"] == "systemd":
        raise UsageError("systemd cgroups are not possible here: leave --systemd-cgroup out, or use --cgroup-manager cgroupfs")
    if given["cgroup_manager"] not in ("", "cgroupfs"):
        raise UsageError(f"--cgroup-manager {given['cgroup_manager']!r} is unknown: use cgroupfs")
    if given["log_format"] not in ("", "text", "json"):
        raise UsageError(f"--log-format {given['log_format']!r} is unknown: use text or json")
    if given["log_level"] not in ("", "debug", "info", "warn", "warning", "error", "fatal", "panic"):
        raise UsageError(f"--log-level {given['log_level']!r} is unknown: use debug, info, warn or error")
    if not given["root"]:
        given["root"] = default_root()


def _reserve(count: int) -> None:
    """Keep the numbers of descriptors to be passed on that the caller has not opened: nothing of ours may come to be one.

    They are closed again by the program's execve.
    """
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            if null != fd:
                os.dup2(null, fd, inheritable=False)
                os.close(null)


def _open_stdio() -> None:
    """A caller may have closed 0, 1 or 2: nothing we open may come to be one of them."""
    for target in (0, 1, 2):
        try:
            os.fstat(target)
        except OSError:
            # The lowest free number is the one that is missing.
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)


def _version() -> str:
    # Three lines, as go-runc parses them.
    return f"covey-runtime version {RELEASE}\ncommit: v{RELEASE}\nspec: {SPEC_VERSION}\n"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
