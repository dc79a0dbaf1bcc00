"""What one worker of a shim leaves to its keeper, and the next takes up: when, and what is in the message.

It is left when nothing is under way: no attached client, no living exec, no half-read request. Everything that comes while
it travels waits in the sockets and pipes that travel with it, and a child's end at the keeper, whose child it is. A shim
with an unusual log or something to do outside the container keeps its worker. One that is woken again and again keeps it
longer each time.
"""

from __future__ import annotations

import _socket
import marshal
import os

from worker.kernel.bare import Any
from worker.runtime.cgroups import Hierarchy
from worker.runtime.zygote import AF_UNIX, SOCK_STREAM
from worker.shim.keeper import EXCEPTIONAL, READABLE, Channel, Handed
from worker.shim.loop import READ
from worker.shim.main import Shim

_QUIET = (0.4, 60.0)
"""Seconds without an event after which a worker leaves: at first, and at most."""
FIRST_QUIET = _QUIET[0] / 2
"""Of the worker there was not, for the first one there is."""
_LONG_SLEEP = 20.0
"""Seconds between two workers after which the next one is taken for a first; below, it waits twice as long as the last."""
_UNWATCHED = {"stdin": 0, "oom-v2": EXCEPTIONAL}


def begin(request: dict[str, Any], listener: _socket.socket, channel: Channel, hierarchies: list[Hierarchy]) -> None:
    """The first worker: start the container, and see to it until it is quiet."""
    shim = Shim(request["id"], request["dir"], listener, hierarchies, os.getppid(), request.get("runtime") or "")
    try:
        shim.container.record_identity()
    except OSError:
        # It is written again, or refused, by whoever asks for a container.
        pass
    shim.await_claim()
    _work(shim, channel, _QUIET[0])


def resume(handed: Handed, channel: Channel, hierarchies: list[Hierarchy]) -> None:
    """A later one: see to what has woken the keeper."""
    body = marshal.loads(handed.body)
    named = list(zip(body["fds"], handed.fds, strict=True))
    listener = _socket.socket(AF_UNIX, SOCK_STREAM, 0, named[0][1])
    shim = Shim(body["id"], body["dir"], listener, hierarchies, os.getppid())
    shim.container.take(body, [one for one in named[1:] if one[0] not in ("events", "client")])
    shim.take([one for one in named if one[0] in ("events", "client")])
    for pid, status in handed.ended:
        shim.container.on_child(pid, status)
    quiet = _QUIET[0] if handed.slept > _LONG_SLEEP else min(body["quiet"] * 2, _QUIET[1])
    _work(shim, channel, quiet)


def _work(shim: Shim, channel: Channel, quiet: float) -> None:
    shim.begin()
    shim.loop.add(channel.fileno(), READ, lambda _: shim.container.on_child(*channel.ended()))
    shim.loop.when_quiet(quiet, lambda: _leave(shim, channel, quiet))
    shim.loop.run()


def _leave(shim: Shim, channel: Channel, quiet: float) -> None:
    """End this process and leave all to the keeper, if all can be left."""
    handed, clients = shim.container.handed(), shim.handed()
    if handed is None or clients is None:
        return
    body, own = handed
    named = [*clients, *own]
    body = {**body, "quiet": quiet, "fds": [name for name, _ in named]}
    if channel.hand_over(body, [(fd, _UNWATCHED.get(name, READABLE)) for name, fd in named]):
        # The interpreter's own clean-up would only copy pages.
        os._exit(0)
