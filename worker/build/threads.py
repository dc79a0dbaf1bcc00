"""Blocking work of a build in the engine's threads, never left behind: who is cancelled waits for it first.

What it works with (descriptors, a mounted workspace) is given back by the caller, and would otherwise go away beneath it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from worker.containers.host import Host

T = TypeVar("T")


async def whole(host: Host, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """``host.run``, whose thread has ended when this returns or raises."""
    return await ended(host.run(function, *args, **kwargs))


async def ended(work: Awaitable[T]) -> T:
    """What ``work`` gives; it is over when this returns or raises, also when the caller was cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
