"""Runs the synchronous stores' work beside the event loop, to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        work = asyncio.get_running_loop().run_in_executor(self.pool, function, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel()
            await until_done(work)
            raise


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
