"""Takes a container apart: everything in its cgroup killed, the cgroup removed, its record let go.

It may be done again after it was cut short. Whether a container may be deleted is the caller's decision.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from worker.kernel import process as kernel_process
from worker.runtime import cgroups
from worker.runtime.cgroups import Cgroup
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry
from worker.runtime.errors import RuntimeFault

_PATIENCE, _POLL = 10.0, 0.002


def remove(entry: Entry, log: Log) -> None:
    """``entry`` is locked. Raises CommandError when something does not end in 10 s; the record then stays.

    poststop hooks run when all else is gone, whatever became of them (OCI runtime.md, "Lifecycle").
    """
    record = entry.record
    if record["pid"]:
        kernel_process.kill_verified(record["pid"], record["start_time"], signal.SIGKILL)
    if record["cgroup"]:
        _empty(entry.group(), entry)
    with contextlib.suppress(FileNotFoundError):
        config = entry.config()
        if config.get("hooks"):
            from worker.runtime.command.outside import Outside

            Outside(entry, config).after_stop(log)
    entry.remove()


def _empty(group: Cgroup, entry: Entry) -> None:
    """Kill, thaw and remove, until the kernel lets go of the cgroup. Processes outside it (of ours) are not touched."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        if group.kill():
            # A frozen task of cgroup v1 does not even die.
            with contextlib.suppress(OSError, RuntimeFault):
                group.freeze(False)
                _leave_foreign_freezer(group)
        if group.remove() and not entry.alive():
            return
        if time.monotonic() > deadline:
            left = group.pids()
            raise CommandError(f"cgroup {group.path} still holds {len(left)} processes after {_PATIENCE:.0f} s: {left[:5]}")
        _reap()
        time.sleep(_POLL)


def _leave_foreign_freezer(group: Cgroup) -> None:
    """Bring processes back that somebody has put into a frozen cgroup elsewhere: in ours, which is thawed, they can die."""
    freezer = group.directory("freezer")
    if group.version == 2 or freezer is None:
        return
    missing = set(group.pids()) - {int(line) for line in cgroups.read(f"{freezer}/cgroup.procs").split()}
    for pid in missing:
        with contextlib.suppress(ProcessLookupError):
            cgroups.write(f"{freezer}/cgroup.procs", str(pid))


def _reap() -> None:
    """Children of ours (of run, which adopts the container's) that stay zombies would hold the cgroup for ever."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
