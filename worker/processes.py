"""Waiting, on the event loop, for a process that need not be a child of ours to end."""

from __future__ import annotations

import asyncio
import contextlib
import os


async def wait_gone(pid: int) -> None:
    """Until the process has ended; a dead child is reaped. Returns at once when there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 (WNOHANG does not wait)
