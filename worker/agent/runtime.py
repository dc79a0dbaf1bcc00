"""The seam between the agent and containers: what a node can do for a task. Real in worker.agent.engine_runtime.

A fake stands behind it in tests and in the simulation; both are held to tests/contract/test_task_runtime.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from covey.model.objects import NodeDescription
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask
from worker.agent.vocabulary import Exited, Found, HealthChanged, Started


class PrepareError(Exception):
    """A task's container could not be made. ``rejected``: this node can never run the task as it stands."""

    def __init__(self, message: str, *, rejected: bool) -> None:
        super().__init__(message)
        self.rejected = rejected


class StartError(Exception):
    """A task's process could not be started; ``exit_code`` is 126, 127 or 128 as Docker gives, or None."""

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TaskRuntime(Protocol):
    """Every call may be repeated: the second finds what the first made."""

    async def describe(self) -> NodeDescription:
        """What the node is and has."""

    async def ensure_network(self, network: AssignedNetwork) -> None:
        """The network exists on this node. Raises PrepareError."""

    async def drop_network(self, network_id: str) -> None:
        """The network is gone from this node, if no container uses it."""

    async def prepare(
        self,
        assigned: AssignedTask,
        networks: Sequence[AssignedNetwork],
        secrets: Sequence[AssignedSecret],
        configs: Sequence[AssignedSecret],
        said: Callable[[str], None] = lambda message: None,
    ) -> str:
        """The id of the task's container, made if it was not. Raises PrepareError; nothing half-made stays.

        ``said`` is told, in words for people, of what takes long.
        """

    async def start(self, task_id: str, container_id: str) -> Started:
        """The container's process runs, or has run and is over: a container is started once. Raises StartError."""

    async def stop(self, container_id: str, grace: float) -> None:
        """The container's process has ended; after ``grace`` seconds it was killed."""

    async def remove(self, task_id: str, container_id: str) -> None:
        """Nothing is left of the task's container (``container_id`` may be "": then by task)."""

    async def found(self) -> Sequence[Found]:
        """Every container of a task on this node."""

    def events(self) -> AsyncIterator[Exited | HealthChanged]:
        """Exits and health verdicts of tasks' containers from this call on, each exit once.

        Called before ``found``, nothing falls between the two.
        """
