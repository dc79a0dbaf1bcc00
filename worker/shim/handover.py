"""What the launcher of a shim leaves to its keeper once the container runs: when, and what is in the message.

It is left when nothing is under way: no attached client, no exec on record, no half-read request. Everything that comes
while it travels waits in the sockets and pipes that travel with it, and a child's end at the keeper, whose child it is.
A shim with an exec, an unusual log or something to do outside the container keeps its two processes.
"""

from __future__ import annotations

import _socket
import os
from typing import Any

from worker.runtime.cgroups import Hierarchy
from worker.runtime.zygote import AF_UNIX, SOCK_STREAM
from worker.shim.loop import READ
from worker.shim.keeper import MOST_FDS, Channel, Handed
from worker.shim.main import Shim

QUIET = (0.4, 60.0)
"""Seconds after the start at which the launcher first tries, and the longest between two tries, each twice as long."""


def try_later(shim: Shim, channel: Channel, seconds: float = QUIET[0]) -> None:
    """Hand over when the time has come, and end this process; while something is under way, try again later."""

    def attempt() -> None:
        if shim.container.state != "running":
            if shim.container.state == "paused":
                try_later(shim, channel, seconds)
            return
        if _hand_over(shim, channel):
            # The interpreter's own clean-up would only copy pages.
            os._exit(0)
        try_later(shim, channel, min(seconds * 2, QUIET[1]))

    shim.loop.call_later(seconds, attempt)


def _hand_over(shim: Shim, channel: Channel) -> bool:
    handed, clients = shim.container.handed(), shim.handed()
    if handed is None or clients is None or shim.loop.timed:
        return False
    body, ours = handed
    fds = [*clients, *ours]
    if len(fds) > MOST_FDS:
        return False
    return channel.hand_over({**body, "fds": [name for name, _ in fds]}, [fd for _, fd in fds])


def begin(request: dict[str, Any], listener: _socket.socket, channel: Channel, hierarchies: list[Hierarchy]) -> None:
    """In the launcher: be the shim until all is handed over, or to its end."""
    shim = Shim(request["id"], request["dir"], listener, hierarchies, os.getppid())
    shim.begin()
    shim.loop.add(channel.fileno(), READ, lambda _: shim.container.on_child(*channel.ended()))
    shim.container.on_running = lambda: try_later(shim, channel)
    shim.container.record_identity()
    shim.loop.run()


def resume(handed: Handed, hierarchies: list[Hierarchy]) -> None:
    """In the keeper: be the shim from here on, to its end."""
    body, fds, ended = handed
    named = list(zip(body["fds"], fds, strict=True))
    own = [one for one in named if one[0] not in ("events", "client")]
    listener = _socket.socket(AF_UNIX, SOCK_STREAM, 0, own.pop(0)[1])
    shim = Shim(body["id"], body["dir"], listener, hierarchies, os.getpid())
    shim.begin()
    shim.container.take(body, own)
    shim.take([one for one in named if one[0] in ("events", "client")])
    for pid, status in ended:
        shim.container.on_child(pid, status)
    shim.loop.run()
