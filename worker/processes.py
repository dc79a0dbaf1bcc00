"""Waiting, on the event loop, for processes that need not be children of ours to end, and ending them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable

from worker.kernel import process


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


async def end(identities: Iterable[tuple[int, int]], seconds: float) -> bool:
    """SIGKILL for the processes (pid, start time), in their order; whether all are gone within ``seconds``.

    Raises OSError (out of descriptors, no right to); some may have been signalled then.
    """
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    with contextlib.ExitStack() as stack:
        for pid, started in identities:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptor)
            # Checked after the pidfd is held: from here on the pid cannot come to mean another process.
            if process.is_alive(pid, started) and process.send_signal(descriptor, signal.SIGKILL):
                gone = loop.create_future()
                loop.add_reader(descriptor, _settle, gone)
                stack.callback(loop.remove_reader, descriptor)
                waiting.append(gone)
        if waiting:
            _, left = await asyncio.wait(waiting, timeout=seconds)
            return not left
    return True


def _settle(gone: asyncio.Future[None]) -> None:
    if not gone.done():
        gone.set_result(None)
