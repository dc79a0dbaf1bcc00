"""Links between workers and managers: ordered like TCP, late as chance has it, cut and held back by faults.

A message that is lost takes everything behind it with it, as a broken connection does; a partition holds messages until
it heals, and then either delivers them late or breaks the link. Some messages are delivered twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any, NamedTuple

from covey.tls import Peer
from covey.wire.messages import Assignments, Heartbeat, StatusBatch, StatusStored
from manager.dispatcher.link import Closed
from tests.sim.loop import Process, SimLoop

REPEATABLE = (Assignments, StatusBatch, StatusStored, Heartbeat)


class Weather(NamedTuple):
    """How bad the network is: seconds of delay, and the share of messages repeated."""

    slow: float = 0.02
    repeat: float = 0.05


class End:
    """One end of a link; used by the real Session of the manager in place of its Link."""

    def __init__(self, link: Link, process: Process, peer: Peer | None) -> None:
        self.link = link
        self.process = process
        self.peer = peer
        self.address = "192.0.2.9"
        self.pipe: deque[Any] = deque()
        self.inbox: deque[Any] = deque()
        self.wake = asyncio.Event()
        self.other: End
        self.arrives = 0.0

    async def send(self, message: Any) -> None:
        if self.link.broken:
            raise Closed("the link is broken")
        self.link.carry(self, message)

    async def receive(self) -> Any:
        while not self.inbox:
            if self.link.broken:
                raise Closed("the link is broken")
            self.wake.clear()
            await self.wake.wait()
        return self.inbox.popleft()

    async def expect(self, kind: type[Any], seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            message = await self.receive()
        assert isinstance(message, kind), message
        return message

    def close(self) -> None:
        self.link.sever(notice=True)


class Link:
    """A connection from a worker's process to a manager's."""

    def __init__(self, net: Net, worker: str, manager: str, worker_process: Process, manager_process: Process) -> None:
        self.net = net
        self.worker = worker
        self.manager = manager
        self.broken = False
        self.doomed = False
        self.down = End(self, worker_process, None)
        self.up = End(self, manager_process, Peer(worker, "worker", "cluster"))
        self.down.other, self.up.other = self.up, self.down

    def carry(self, sender: End, message: Any) -> None:
        if not sender.process.alive:
            return
        rng, receiver = self.net.rng, sender.other
        copies = 2 if isinstance(message, REPEATABLE) and rng.random() < self.net.weather.repeat else 1
        for _ in range(copies):
            receiver.pipe.append(message)
            self._schedule(receiver)

    def _schedule(self, receiver: End) -> None:
        rng, loop = self.net.rng, self.net.loop
        receiver.arrives = max(receiver.arrives, loop.time() + rng.random() * self.net.weather.slow)
        loop.call_at(receiver.arrives, self._deliver, receiver, context=self.net.context.copy())

    def _deliver(self, receiver: End) -> None:
        """The first message under way arrives; in a partition all of them wait."""
        if self.broken or not receiver.process.alive or not receiver.pipe or self.net.cut(self.worker, self.manager):
            return
        message = receiver.pipe.popleft()
        self.net.delivered(self, receiver, message)
        receiver.inbox.append(message)
        receiver.wake.set()

    def heal(self) -> None:
        """The partition is over."""
        if self.doomed or self.net.rng.random() < 0.5:
            self.sever(notice=True)
            return
        for end in (self.up, self.down):
            for _ in end.pipe:
                self._schedule(end)

    def sever(self, notice: bool) -> None:
        """Break it; what is under way is lost. Without ``notice`` the ends do not hear of it."""
        if self.broken:
            return
        if notice and self.net.cut(self.worker, self.manager):
            self.doomed = True
            return
        self.broken = notice
        for end in (self.down, self.up):
            self.net.loop.call_later(0.001, end.wake.set, context=self.net.context.copy())
        self.net.forget(self)


class Net:
    """Every link there is, and which pairs are cut."""

    def __init__(self, loop: SimLoop, rng: random.Random, delivered: Any) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = Weather()
        self.links: list[Link] = []
        self.cuts: set[tuple[str, str]] = set()
        self.delivered = delivered
        self.context = Process("net").context

    def cut(self, worker: str, manager: str) -> bool:
        return (worker, manager) in self.cuts

    def connect(self, worker: str, manager: str, worker_process: Process, manager_process: Process) -> Link:
        """A new link; ConnectionError where there is nobody or no way."""
        if self.cut(worker, manager) or not manager_process.alive:
            raise ConnectionError(f"{manager} does not answer")
        link = Link(self, worker, manager, worker_process, manager_process)
        self.links.append(link)
        return link

    def forget(self, link: Link) -> None:
        if link in self.links:
            self.links.remove(link)

    def links_of(self, name: str) -> list[Link]:
        return [link for link in self.links if name in (link.worker, link.manager)]

    def process_died(self, name: str, notice: bool) -> None:
        """A process is gone: its kernel closes its links, unless the whole machine went."""
        for link in self.links_of(name):
            link.sever(notice)

    def partition(self, pairs: list[tuple[str, str]]) -> None:
        self.cuts.update(pairs)

    def heal(self, pairs: list[tuple[str, str]]) -> None:
        self.cuts.difference_update(pairs)
        for link in list(self.links):
            if (link.worker, link.manager) in pairs:
                link.heal()
