"""Facts about processes from /proc, and signals that cannot hit the wrong one.

A process is identified by pid and start time (clock ticks since boot, field 22 of /proc/PID/stat). It knows no
containers.
"""

from __future__ import annotations

import os

from worker.kernel import syscalls


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such process."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process still runs: a zombie does not, nor another process that got its pid."""
    fields = _stat_fields(pid)
    return bool(fields) and int(fields[19]) == started and fields[0] not in ("Z", "X")


def _stat_fields(pid: int) -> list[str]:
    """The fields after the command name: index 0 is the state, 19 the start time."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        text = os.read(fd, 4096).decode("utf-8", "replace")
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)
    return text[text.rindex(")") + 2 :].split()


def send_signal(pidfd: int, signal: int) -> bool:
    """Signal the process behind ``pidfd``; False when it has ended already."""
    try:
        syscalls.pidfd_send_signal(pidfd, signal)
    except ProcessLookupError:
        return False
    return True


def kill_verified(pid: int, started: int, signal: int) -> bool:
    """Signal ``pid`` only if it is the process that started at ``started``; False when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Checked after the pidfd is held: from here on the pid cannot come to mean another process.
        return is_alive(pid, started) and send_signal(pidfd, signal)
    finally:
        os.close(pidfd)
