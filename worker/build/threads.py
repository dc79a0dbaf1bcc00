"""Blocking work of a build in the engine's threads, never left behind: who is cancelled waits for it first.

What it works with (descriptors, a mounted workspace) is given back by the caller, and would otherwise go away beneath it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from worker.containers.host import Host
from worker.images.threads import ended

T = TypeVar("T")


async def whole(host: Host, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """``host.run``, whose thread has ended when this returns or raises."""
    return await ended(host.run(function, *args, **kwargs))
