"""The verbs kill and delete, and which status allows which."""

from __future__ import annotations

import re
import signal

from worker.kernel import process as kernel_process
from worker.runtime.command import ending
from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Missing, Store


def kill(arguments: Arguments, log: Log) -> int:
    number = signal_number(arguments.operands["signal"] or "TERM")
    entry = Store(arguments.globals["root"]).find(arguments.operands["id"])
    record = entry.record
    status = entry.status()
    group = entry.group()
    if arguments.options["all"]:
        # Also when the process has ended: others of it may live on where it had no pid namespace of its own.
        if not group.kill(number) and status == "stopped":
            raise CommandError(f"container not running: {entry.ident!r} has no process")
    elif status in ("stopped", "creating"):
        raise CommandError(f"container not running: {entry.ident!r} is {status}")
    elif not kernel_process.kill_verified(record["pid"], record["start_time"], number):
        raise CommandError(f"container not running: the process of {entry.ident!r} has just ended")
    if number == signal.SIGKILL and status == "paused":
        # A frozen task of cgroup v1 does not even die.
        group.freeze(False)
    return 0


def signal_number(word: str) -> int:
    """A number, or a name with or without SIG (RTMIN+n too). Raises CommandError."""
    if word.isdigit():
        if 0 < int(word) < signal.NSIG:
            return int(word)
        raise CommandError(f"unknown signal {word!r}: numbers are 1 to {signal.NSIG - 1}")
    name = word.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    try:
        number = int(signal.Signals[f"SIG{base}"])
        if sign:
            number += int(offset) if sign == "+" else -int(offset)
            if not base.startswith("RT") or not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                raise ValueError
    except (KeyError, ValueError):
        raise CommandError(f"unknown signal {word!r}: use a name such as TERM or a number") from None
    return number


def delete(arguments: Arguments, log: Log) -> int:
    """A created container is killed, as runc does; one that runs only with --force, which also forgives an unknown id."""
    force = arguments.options["force"]
    store = Store(arguments.globals["root"])
    if not arguments.options["regex"]:
        _delete(store, arguments.operands["id"], force, log)
        return 0
    try:
        pattern = re.compile(arguments.operands["id"])
    except re.error as error:
        raise UsageError(f"--regex {arguments.operands['id']!r}: {error}") from None
    for ident in store.ids():
        if pattern.search(ident):
            _delete(store, ident, force, log)
    return 0


def _delete(store: Store, ident: str, force: bool, log: Log) -> None:
    try:
        entry = store.lock(ident)
    except Missing:
        if force:
            return
        raise
    status = entry.status()
    if status in ("running", "paused") and not force:
        raise CommandError(
            f"cannot delete container {ident!r} that is not stopped: it is {status}: kill it first, or use --force"
        )
    ending.remove(entry, log)
    entry.unlock()


def clear(store: Store, ident: str, log: Log) -> None:
    """Delete at the end of run; somebody may have done so already."""
    try:
        entry = store.lock(ident)
    except Missing:
        return
    ending.remove(entry, log)
