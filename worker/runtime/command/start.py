"""The verb start: let the init of a created container go on to its program."""

from __future__ import annotations

import contextlib
import os
import signal

from worker.runtime import sync
from worker.runtime.command import store as records
from worker.runtime.command.arguments import Arguments
from worker.runtime.command.build import follow
from worker.runtime.command.outside import Outside
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry, Store
from worker.runtime.process import Launch

_WRONG = {
    "creating": "its create has not ended",
    "running": "it has been started already",
    "paused": "it is paused: resume it first",
    "stopped": "its process has ended: delete it and create it again",
}


def start(arguments: Arguments, log: Log) -> int:
    entry = Store(arguments.globals["root"]).lock(arguments.operands["id"])
    begin(entry, log)
    return 0


def begin(entry: Entry, log: Log) -> None:
    """``entry`` is locked. Answers when execve has succeeded. Raises CommandError or RuntimeFault."""
    status = entry.status()
    if status != "created":
        raise CommandError(f"cannot start container {entry.ident!r}, which is {status}: {_WRONG[status]}")
    try:
        connection = records.connect(entry.directory)
    except OSError as error:
        raise CommandError(f"container {entry.ident!r} does not answer: {error.strerror}") from None
    outside = Outside(entry, entry.config())
    launched = Launch(entry.record["pid"], sync.Channel(connection))
    try:
        launched.on_request = outside.answer(launched, "created")
        launched.start()
        follow(launched, "started")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.socket_path)
        outside.after_start(launched.pid)
    except BaseException:
        # A container whose start has failed has stopped (OCI runtime.md, "Lifecycle"), be it by a hook of ours.
        launched.signal(signal.SIGKILL)
        raise
    finally:
        launched.channel.close()
        launched.close()
