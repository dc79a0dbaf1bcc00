"""Empties and removes a cgroup without blocking: kill, thaw, rmdir, again until the kernel lets go of it."""

from __future__ import annotations

from worker.kernel.bare import Callable, suppress
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault
from worker.shim.loop import Loop

_PAUSE, _TRIES = 0.005, 2000


def wind_up(loop: Loop, group: Cgroup, done: Callable[[], None], wanted: Callable[[], bool]) -> None:
    """Call ``done`` when the group is gone (or after 10 s of trying); stop trying once ``wanted`` says no."""
    left = _TRIES

    def attempt() -> None:
        nonlocal left
        left -= 1
        if not wanted():
            return
        if group.kill():
            with suppress(OSError, RuntimeFault):
                group.freeze(False)
        if group.remove() or left <= 0:
            done()
        else:
            loop.call_later(_PAUSE, attempt)

    attempt()
