"""A worker machine in the simulation: the real agent (driver, machine) on a disk and containers that survive its death.

What is fake is the runtime (containers are entries in a table, started and ended by chance) and the session's transport.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from covey.errors import CoveyError, from_status
from covey.model.objects import NodeDescription
from covey.model.resources import MIB, NANO, Resources
from covey.wire.messages import (
    AssignedNetwork,
    AssignedSecret,
    AssignedTask,
    Assignments,
    Disconnect,
    Heartbeat,
    OpenSession,
    Refused,
    SessionOpened,
    StatusBatch,
    StatusStored,
)
from manager.dispatcher.link import Closed
from tests.contract.fake_runtime import FakeContainer, FakeNode, FakeRuntime
from tests.sim import jobs
from tests.sim.clock import SimClock
from tests.sim.loop import Process
from tests.sim.net import End
from worker.agent.driver import Driver
from worker.agent.machine import AgentMachine
from worker.agent.runtime import PrepareError
from worker.agent.vocabulary import (
    Assigned,
    Holdings,
    Record,
    SessionDown,
    SessionUp,
    Started,
    Stored,
    WriteJournal,
)

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MISSED = 3

#: What is made of this image ends soon after it has started, as long as there is trouble.
BAD_IMAGE = "image0"


@dataclass
class Disk:
    """The journal: what is here survives the daemon and the machine."""

    path: str = "disk"
    records: dict[str, Record] = field(default_factory=dict)
    holdings: Holdings = field(default_factory=Holdings)
    writes: int = 0


class Machine:
    """One worker: its disk and containers, and the daemon while it runs."""

    def __init__(self, sim: Simulation, name: str, cpus: float) -> None:
        self.sim = sim
        self.name = name
        self.cpus = cpus
        self.disk = Disk()
        self.node = FakeNode(images=None, prefix=f"c-{name}-", now=sim.now)
        self.process: Process | None = None
        self.alive = True
        self.scrapped = False
        self.session = ""
        self.daemons = 0

    @property
    def containers(self) -> dict[str, FakeContainer]:
        """By task id; they outlive the daemon."""
        return self.node.containers

    def boot(self) -> None:
        """Start the daemon, unless it runs."""
        if self.scrapped or (self.process is not None and self.process.alive):
            return
        self.alive = True
        self.daemons += 1
        process = self.process = Process(f"{self.name}.{self.daemons}")
        daemon = Daemon(self, process)
        self.sim.loop.start(process, daemon.run(), "daemon")

    def kill_daemon(self, notice: bool = True) -> None:
        """SIGKILL: the containers go on."""
        if self.process is not None and self.process.alive:
            self.sim.loop.kill(self.process)
            self.node.runtime = None
            self.session = ""
            self.sim.net.process_died(self.name, notice)

    def kill_machine(self) -> None:
        """Power off. Some come back without their containers: those were on a disk that is made anew."""
        self.kill_daemon(notice=False)
        self.alive = False
        if self.sim.rng.random() < 0.3:
            self.containers.clear()
        for container in self.containers.values():
            if container.state == "running":
                container.state, container.exit_code, container.finished_at = "exited", 137, self.sim.now()

    def running(self) -> list[FakeContainer]:
        return [container for container in self.containers.values() if container.state == "running"]

    def exit(self, container: FakeContainer, code: int) -> None:
        """The container's process ends; who listens is told."""
        if container.state != "running" or self.containers.get(container.task_id) is not container:
            return
        self.sim.happened(f"{self.name} exit {container.task_id} {code}", "container exits")
        self.node.end(container.id, code)


class WeatheredRuntime(FakeRuntime):
    """The runtime that tests/contract holds to its promises, on a machine where everything takes time and some of it fails."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.node)
        self.machine = machine
        self.sim = machine.sim
        self.rng: random.Random = machine.sim.rng
        self._doomed: set[str] = set()

    async def describe(self) -> NodeDescription:
        return NodeDescription(
            hostname=self.machine.name,
            architecture="x86_64",
            resources=Resources(nano_cpus=int(self.machine.cpus * NANO), memory_bytes=4096 * MIB),
        )

    async def prepare(
        self,
        assigned: AssignedTask,
        networks: Sequence[AssignedNetwork],
        secrets: Sequence[AssignedSecret],
        configs: Sequence[AssignedSecret],
        said: Callable[[str], None] = lambda message: None,
    ) -> str:
        task = assigned.task
        if task.spec["ContainerSpec"]["Image"] == BAD_IMAGE:
            self._doomed.add(task.id)
        await asyncio.sleep(self.rng.random() * 0.8)
        if self.rng.random() < self.sim.trouble.prepare_fails:
            self.sim.cover("prepare fails")
            raise PrepareError("no such image", rejected=self.rng.random() < 0.5)
        if task.id not in self.machine.containers:
            self.sim.happened(f"{self.machine.name} made {task.id}", "container made")
        return await super().prepare(assigned, networks, secrets, configs, said)

    async def start(self, task_id: str, container_id: str) -> Started:
        await asyncio.sleep(self.rng.random() * 0.3)
        held = self.machine.containers[task_id]
        fresh = held.state == "created"
        started = await super().start(task_id, container_id)
        if fresh:
            self.sim.happened(f"{self.machine.name} started {task_id}", "container started")
            self.sim.oracles.container_started(self.machine.name, task_id)
            if task_id in self._doomed and self.sim.trouble.bad_images:
                self.sim.cover("a bad image starts")
                self.sim.later(self.rng.uniform(0.5, 4.0), self.machine.exit, held, 1)
            elif (end := jobs.end_of(self.sim, task_id)) is not None:
                self.sim.later(end[0], self.machine.exit, held, end[1])
            elif self.rng.random() < self.sim.trouble.exits:
                code = self.rng.choice((0, 1, 137))
                self.sim.later(self.rng.expovariate(1 / 15), self.machine.exit, held, code)
            await asyncio.sleep(self.rng.random() * 0.05)
        return started

    async def stop(self, container_id: str, grace: float) -> None:
        held = next((c for c in self.machine.containers.values() if c.id == container_id), None)
        if held is None or held.state != "running":
            return
        await asyncio.sleep(self.rng.random() * min(grace, 1.5))
        self.machine.exit(held, 143)

    async def remove(self, task_id: str, container_id: str) -> None:
        await asyncio.sleep(self.rng.random() * 0.1)
        held = self.machine.containers.get(task_id)
        if held is not None:
            self.machine.exit(held, 137)
            self.sim.happened(f"{self.machine.name} removed {task_id}", "container removed")
        await super().remove(task_id, container_id)


class DiskJournal:
    """The agent's journal on a Disk; a crash may come before or after each write."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.path = "journal"

    @property
    def records(self) -> dict[str, Record]:
        return self.machine.disk.records

    @property
    def holdings(self) -> Holdings:
        return self.machine.disk.holdings

    def write(self, instruction: WriteJournal) -> None:
        disk, sim = self.machine.disk, self.machine.sim
        disk.writes += 1
        if sim.crashes_now(self.machine.name, "journal, before"):
            self.machine.kill_daemon()
            sim.later(sim.rng.uniform(0.5, 4), self.machine.boot)
            return
        for record in instruction.records:
            disk.records[record.id] = record
        for task_id in instruction.forgotten:
            disk.records.pop(task_id, None)
        if instruction.holdings is not None:
            disk.holdings = instruction.holdings
        if sim.crashes_now(self.machine.name, "journal, after"):
            self.machine.kill_daemon()
            sim.later(sim.rng.uniform(0.5, 4), self.machine.boot)

    def statistics(self) -> dict[str, Any]:
        return {}


class Daemon:
    """The worker's process: the real driver and machine, and a session that finds managers by name."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self.machine = machine
        self.process = process
        self.sim = machine.sim
        self.rng = machine.sim.rng
        self.clock = SimClock(machine.sim.loop, machine.sim.skew[machine.name])
        self.runtime = WeatheredRuntime(machine)
        journal: Any = DiskJournal(machine)
        self.driver = Driver(AgentMachine(machine.name), journal, self.runtime, self.clock)
        self.end: End | None = None
        self.session_id = ""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.driver.run(self))
            group.create_task(self._sessions())

    async def report(self, session_id: str, batch: StatusBatch) -> None:
        if self.end is not None and session_id == self.session_id:
            try:
                self.sim.oracles.reported(session_id, batch)
                await self.end.send(batch)
            except Closed:
                pass

    def reopen(self, why: str) -> None:
        self.sim.cover("session reopened")
        if self.end is not None:
            self.end.close()

    async def _sessions(self) -> None:
        pause = 0.1
        while True:
            manager = self.rng.choice(self.sim.manager_names)
            try:
                if await self._live(manager):
                    pause = 0.1
            except (ConnectionError, Closed, TimeoutError, CoveyError):
                pass
            await asyncio.sleep(pause * self.rng.uniform(0.5, 1.0))
            pause = min(pause * 2, 8.0)

    async def _live(self, manager: str) -> bool:
        end = self.sim.dial(self.machine.name, self.process, manager)
        try:
            description = await self.runtime.describe()
            await end.send(OpenSession(description=description, revision=self.driver.revision))
            async with asyncio.timeout(10):
                opened = await end.receive()
            if isinstance(opened, Refused):
                self.sim.cover(f"session refused: {opened.status}")
                if opened.retry_after:
                    await asyncio.sleep(opened.retry_after)
                raise from_status(opened.status, opened.message)
            if not isinstance(opened, SessionOpened):
                return False
            self.end, self.session_id = end, opened.session_id
            self.machine.session = opened.session_id
            self.driver.feed(SessionUp(session_id=opened.session_id))
            await self._serve(end, opened)
            return True
        finally:
            if self.end is end:
                self.end, self.session_id = None, ""
                self.machine.session = ""
                self.driver.feed(SessionDown())
            end.close()

    async def _serve(self, end: End, opened: SessionOpened) -> None:
        beating = asyncio.ensure_future(self._beat(end, opened.heartbeat))
        try:
            while True:
                async with asyncio.timeout(opened.heartbeat * MISSED):
                    message = await end.receive()
                match message:
                    case Assignments():
                        self.sim.cover("assignment: " + ("complete" if message.complete else "increment"))
                        self.driver.feed(Assigned(message=message, cause=message.cause or "assignment"))
                    case StatusStored():
                        self.driver.feed(Stored(sequence=message.sequence, refused=message.refused))
                    case Disconnect():
                        self.sim.cover(f"disconnect: {message.code}")
                        return
                    case _:
                        pass
        finally:
            beating.cancel()

    async def _beat(self, end: End, period: float) -> None:
        while True:
            await asyncio.sleep(period * self.rng.uniform(0.9, 1.0))
            await end.send(Heartbeat())
