"""Work that is over when whoever asked for it goes on: that of threads, which cannot be cancelled, and several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A pool whose work is never left alone: whoever is cancelled waits until the thread is out of the store."""

    def __init__(self, most: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(most, name)

    def close(self) -> None:
        """Ends the threads; nobody may be waiting any more."""
        self.pool.shutdown(wait=True)

    async def run(self, function: Callable[..., T], *args: Any, on_cancel: Callable[[], object] | None = None) -> T:
        """What ``function`` gives. ``on_cancel`` may tell it that nobody wants it any more."""
        return await ended(asyncio.get_running_loop().run_in_executor(self.pool, function, *args), on_cancel)


async def ended(work: Awaitable[T], on_cancel: Callable[[], object] | None = None) -> T:
    """What ``work`` gives; it is over when this returns or raises, also when the caller was cancelled."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await until_done(future)
        raise


async def together(works: Iterable[Awaitable[None]]) -> None:
    """All of ``works`` at once. The first error ends the rest, and is raised as it is when they have ended.

    No TaskGroup: before Python 3.11.3 one that fails leaves its task marked as cancelled.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await until_done(*tasks)


async def until_done(*works: asyncio.Future[Any]) -> None:
    """Returns when all have ended, however they do. Who is cancelled meanwhile waits none the less, and is cancelled then."""
    cancelled = False
    while not all(work.done() for work in works):
        try:
            await asyncio.wait(works)
        except asyncio.CancelledError:
            cancelled = True
    for work in works:
        if not work.cancelled():
            work.exception()
    if cancelled:
        raise asyncio.CancelledError
