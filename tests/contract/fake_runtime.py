"""A TaskRuntime of a table instead of containers, for tests of whatever stands above the seam. Held to test_task_runtime."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from covey.model.objects import NodeDescription
from covey.model.resources import MIB, NANO, Resources
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask
from worker.agent.runtime import PrepareError, StartError
from worker.agent.vocabulary import Exited, Found, HealthChanged, Started


@dataclass
class FakeContainer:
    """What a container of the table is; ``grace``: how long its process takes to end when it is asked to."""

    id: str
    task_id: str
    command: Sequence[str] = ()
    state: str = "created"
    pid: int = 0
    exit_code: int = 0
    finished_at: float = 0.0


@dataclass
class FakeNode:
    """What outlives a daemon: containers, networks, images (None: all there can be) and commands that exist."""

    images: set[str] | None = field(default_factory=set)
    commands: set[str] = field(default_factory=lambda: {"sh", "sleep"})
    containers: dict[str, FakeContainer] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    pids: itertools.count[int] = field(default_factory=lambda: itertools.count(100))
    prefix: str = "c-"
    now: Callable[[], float] = lambda: 1.0
    runtime: FakeRuntime | None = None

    def end(self, container_id: str, code: int) -> None:
        """The container's process ends with ``code``."""
        found = next(one for one in self.containers.values() if one.id == container_id)
        if found.state != "running":
            return
        at = self.now()
        found.state, found.exit_code, found.finished_at, found.pid = "exited", code, at, 0
        if self.runtime is not None:
            event = Exited(task_id=found.task_id, exit_code=code, at=at, cause=f"container {found.id} exited with {code}")
            self.runtime.tell(event)


class FakeRuntime:
    """See worker.agent.runtime.TaskRuntime. A new one on the same node is a restarted daemon."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self._listeners: list[asyncio.Queue[Exited | HealthChanged]] = []
        node.runtime = self

    def tell(self, event: Exited | HealthChanged) -> None:
        for listener in self._listeners:
            listener.put_nowait(event)

    async def describe(self) -> NodeDescription:
        resources = Resources(nano_cpus=2 * NANO, memory_bytes=4096 * MIB)
        return NodeDescription(hostname="fake", os="linux", architecture="x86_64", resources=resources)

    async def ensure_network(self, network: AssignedNetwork) -> None:
        self._node.networks[network.id] = network.name

    async def drop_network(self, network_id: str) -> None:
        self._node.networks.pop(network_id, None)

    async def prepare(
        self,
        assigned: AssignedTask,
        networks: Sequence[AssignedNetwork],
        secrets: Sequence[AssignedSecret],
        configs: Sequence[AssignedSecret],
        said: Callable[[str], None] = lambda message: None,
    ) -> str:
        task = assigned.task
        spec = task.spec.get("ContainerSpec") or {}
        if task.id not in self._node.containers:
            if self._node.images is not None and spec.get("Image") not in self._node.images:
                raise PrepareError(f"No such image: {spec.get('Image')}", rejected=True)
            command = tuple(spec.get("Command") or ())
            self._node.containers[task.id] = FakeContainer(f"{self._node.prefix}{task.id}", task.id, command)
        return self._node.containers[task.id].id

    async def start(self, task_id: str, container_id: str) -> Started:
        held = self._node.containers[task_id]
        if held.state == "exited":
            raise StartError("the container has run already; a task is started once", exit_code=held.exit_code)
        if held.state == "created":
            if held.command and held.command[0] not in self._node.commands:
                raise StartError(f"{held.command[0]}: not found", exit_code=127)
            held.state, held.pid = "running", next(self._node.pids)
        return Started(task_id=task_id, container_id=held.id, pid=held.pid, cause=f"container {held.id} started")

    async def stop(self, container_id: str, grace: float) -> None:
        if any(one.id == container_id for one in self._node.containers.values()):
            self._node.end(container_id, 143)

    async def remove(self, task_id: str, container_id: str) -> None:
        if held := self._node.containers.get(task_id):
            self._node.end(held.id, 137)
            del self._node.containers[task_id]

    async def found(self) -> Sequence[Found]:
        return [
            Found(
                task_id=one.task_id,
                container_id=one.id,
                state=one.state,
                pid=one.pid,
                exit_code=one.exit_code,
                finished_at=one.finished_at,
            )
            for one in self._node.containers.values()
        ]

    def events(self) -> AsyncIterator[Exited | HealthChanged]:
        queue: asyncio.Queue[Exited | HealthChanged] = asyncio.Queue()
        self._listeners.append(queue)
        return self._told(queue)

    async def _told(self, queue: asyncio.Queue[Exited | HealthChanged]) -> AsyncIterator[Exited | HealthChanged]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)
