"""The verbs create and run."""

from __future__ import annotations

import os

from worker.runtime.command import build, bundle, console
from worker.runtime.command.arguments import Arguments
from worker.runtime.command.build import Built, Wishes
from worker.runtime.command.environment import listen_fds
from worker.runtime.command.report import Log
from worker.runtime.command.store import Store


def create(arguments: Arguments, log: Log) -> int:
    """Answers when init waits to be started, and leaves it behind."""
    built = _build(arguments, log, detached=True)
    built.entry.unlock()
    return 0


def run(arguments: Arguments, log: Log) -> int:
    """Answers the exit code of the container's process, or 0 at once when detached."""
    from worker.runtime.command import foreground

    options = arguments.options
    built = _build(arguments, log, detached=options["detach"])
    if options["detach"]:
        _start(built, log)
        return 0
    with foreground.attended(built.pid, built.pidfd, built.console, adopt=not options["no_subreaper"]) as attended:
        _start(built, log)
        status = attended.wait()
    if not options["keep"]:
        from worker.runtime.command import end

        end.clear(Store(arguments.globals["root"]), built.entry.ident, log)
    return status


def _start(built: Built, log: Log) -> None:
    from worker.runtime.command import start

    try:
        start.begin(built.entry, log)
    except BaseException:
        build.discard(built, log)
        raise
    built.entry.unlock()


def _build(arguments: Arguments, log: Log, *, detached: bool) -> Built:
    options = arguments.options
    ident = arguments.operands["id"]
    directory = os.path.realpath(options["bundle"] or ".")
    store = Store(arguments.globals["root"])
    config = bundle.load(directory, ident, options["config"])
    process = config["process"]
    console.check(terminal=bool(process.get("terminal")), detached=detached, console_socket=options["console_socket"])
    listening = listen_fds()
    if listening:
        # sd_listen_fds(3): the number, and the pid it is meant for, which is 1 in there.
        process["env"] = [*(process.get("env") or []), f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
    wishes = Wishes(
        options["console_socket"],
        options["pid_file"],
        pivot=not options["no_pivot"],
        keyring=not options["no_new_keyring"],
        kept=options["preserve_fds"] + listening,
    )
    return build.build(store, ident, directory, config, wishes, log)
