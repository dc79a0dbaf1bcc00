"""The verbs pause and resume, by the freezer cgroup."""

from __future__ import annotations

import time

from worker.runtime.command.arguments import Arguments
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Store

_PATIENCE, _POLL = 5.0, 0.002


def pause(arguments: Arguments, log: Log) -> int:
    return _freeze(arguments, ("running", "created"), True)


def resume(arguments: Arguments, log: Log) -> int:
    return _freeze(arguments, ("paused",), False)


def _freeze(arguments: Arguments, allowed: tuple[str, ...], frozen: bool) -> int:
    entry = Store(arguments.globals["root"]).find(arguments.operands["id"])
    status = entry.status()
    if status not in allowed:
        verb = "paused" if frozen else "resumed"
        raise CommandError(f"container {entry.ident!r} is {status}: only one that is {' or '.join(allowed)} can be {verb}")
    group = entry.group()
    group.freeze(frozen)
    deadline = time.monotonic() + _PATIENCE
    while group.is_frozen() != frozen:
        if time.monotonic() > deadline:
            if frozen:
                group.freeze(False)
            raise CommandError(f"container {entry.ident!r} did not {'freeze' if frozen else 'thaw'} in {_PATIENCE:.0f} s")
        time.sleep(_POLL)
    return 0
