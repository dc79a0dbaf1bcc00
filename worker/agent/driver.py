"""Runs the agent machine: feeds it events one by one, carries out its instructions, turns their ends into events.

It decides nothing. What may take long (prepare, start, stop, remove) runs beside the queue, one asyncio.Task each, all in
the driver's own TaskGroup; a journal that cannot be written stops the instructions behind it, and the event that wanted
them is fed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from covey.clock import Clock
from covey.wire.messages import StatusBatch
from worker.agent.journal import Journal
from worker.agent.machine import AgentMachine
from worker.agent.runtime import PrepareError, StartError, TaskRuntime
from worker.agent.vocabulary import (
    AnyEvent,
    AnyInstruction,
    DropNetwork,
    EnsureNetwork,
    Exited,
    HealthChanged,
    Prepare,
    Prepared,
    PrepareFailed,
    Preparing,
    Remove,
    Removed,
    Reopen,
    Report,
    Restored,
    Start,
    StartFailed,
    Stop,
    StopFailed,
    Tick,
    WriteJournal,
)

log = logging.getLogger(__name__)

TICK = 2.0
#: A task's progress is told so often at most: each word is journaled and stored.
PROGRESS = 2.0


class Link(Protocol):
    """The session as the driver needs it."""

    async def report(self, session_id: str, batch: StatusBatch) -> None:
        """Send a batch if the session is still the one named."""

    def reopen(self, why: str) -> None:
        """Close the session; a new one opens."""


class Driver:
    """``async with Driver(...)``: restores from the journal, then runs until the context ends. Containers stay."""

    def __init__(self, machine: AgentMachine, journal: Journal, runtime: TaskRuntime, clock: Clock) -> None:
        self._machine = machine
        self._journal = journal
        self._runtime = runtime
        self._clock = clock
        self._queue: asyncio.Queue[AnyEvent] = asyncio.Queue()
        self._link: Link | None = None
        self._networks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup
        self._journal_fault = ""
        self._actions: dict[type, Callable[[Any], Awaitable[None]]] = {
            WriteJournal: self._write_journal,
            EnsureNetwork: self._ensure_network,
            DropNetwork: self._drop_network,
            Prepare: self._beside(self._prepare),
            Start: self._beside(self._start),
            Stop: self._beside(self._stop),
            Remove: self._beside(self._remove),
            Report: self._report,
            Reopen: self._reopen,
        }

    async def run(self, link: Link) -> None:
        """Until cancelled. Raises what nobody expected; the daemon says so and starts the agent again."""
        self._link = link
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._watch(self._runtime.events()), name="agent: runtime events")
            found = await self._runtime.found()
            records = tuple(self._journal.records.values())
            await self._handle(
                Restored(records=records, holdings=self._journal.holdings, found=tuple(found), cause="agent starts")
            )
            self._group.create_task(self._ticks(), name="agent: ticks")
            while True:
                await self._handle(await self._queue.get())

    def feed(self, event: AnyEvent) -> None:
        """Something happened; it is handled in its turn."""
        self._queue.put_nowait(event)

    @property
    def revision(self) -> int:
        """The store revision of the newest assignment applied."""
        return self._machine.revision

    def statistics(self) -> dict[str, Any]:
        """The machine's counts, the journal's size, and what waits."""
        return {
            **self._machine.statistics(),
            "journal": self._journal.statistics(),
            "journal_fault": self._journal_fault,
            "queued": self._queue.qsize(),
        }

    async def _handle(self, event: AnyEvent) -> None:
        instructions = self._machine.handle(event, self._clock.now())
        for instruction in instructions:
            await self._actions[type(instruction)](instruction)

    async def _write_journal(self, instruction: WriteJournal) -> None:
        """Returns only when it is on disk: until then nothing may be done that it does not know."""
        pause = 0.1
        while True:
            try:
                await asyncio.to_thread(self._journal.write, instruction)
                self._journal_fault = ""
                return
            except OSError as fault:
                if not self._journal_fault:
                    log.error(
                        "the agent's journal %s cannot be written: %s; tasks wait until it can", self._journal.path, fault
                    )
                self._journal_fault = str(fault)
            await self._clock.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _watch(self, events: AsyncIterator[Exited | HealthChanged]) -> None:
        async for event in events:
            self.feed(event)

    async def _ticks(self) -> None:
        while True:
            await self._clock.sleep(TICK)
            self.feed(Tick(cause="tick"))

    def _beside(self, action: Callable[[Any], Awaitable[AnyEvent | None]]) -> Callable[[Any], Awaitable[None]]:
        async def work(instruction: AnyInstruction) -> None:
            if (event := await action(instruction)) is not None:
                self.feed(event)

        async def start(instruction: AnyInstruction) -> None:
            self._group.create_task(work(instruction), name=f"agent: {type(instruction).__name__}")

        return start

    async def _ensure_network(self, instruction: EnsureNetwork) -> None:
        network = instruction.network
        before = self._networks.get(network.id)

        async def ensure() -> None:
            if before is not None:
                await asyncio.wait({before})
            await self._runtime.ensure_network(network)

        making = self._group.create_task(_quiet(ensure()), name=f"agent: network {network.name}")
        self._networks[network.id] = making

    async def _drop_network(self, instruction: DropNetwork) -> None:
        async def drop(before: asyncio.Task[None] | None) -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await self._runtime.drop_network(instruction.network_id)
            except Exception as fault:
                log.warning("network %s was not removed: %s", instruction.network_id, fault)

        dropping = self._group.create_task(drop(self._networks.get(instruction.network_id)), name="agent: drop network")
        self._networks[instruction.network_id] = dropping

    async def _prepare(self, instruction: Prepare) -> AnyEvent:
        task = instruction.assigned.task
        try:
            for network in instruction.networks:
                if (making := self._networks.get(network.id)) is not None:
                    await asyncio.wait({making})
                await self._runtime.ensure_network(network)
            container_id = await self._runtime.prepare(
                instruction.assigned, instruction.networks, instruction.secrets, instruction.configs, self._progress(task.id)
            )
        except PrepareError as refusal:
            return PrepareFailed(task_id=task.id, error=str(refusal), rejected=refusal.rejected, cause=instruction.cause)
        except Exception as fault:
            log.exception("preparing task %s failed", task.id)
            return PrepareFailed(
                task_id=task.id, error=f"{type(fault).__name__}: {fault}", rejected=False, cause=instruction.cause
            )
        return Prepared(task_id=task.id, container_id=container_id, cause=instruction.cause)

    def _progress(self, task_id: str) -> Callable[[str], None]:
        told = -PROGRESS

        def said(message: str) -> None:
            nonlocal told
            now = self._clock.monotonic()
            if now - told >= PROGRESS:
                told = now
                self.feed(Preparing(task_id=task_id, message=message, cause=message))

        return said

    async def _start(self, instruction: Start) -> AnyEvent:
        try:
            return await self._runtime.start(instruction.task_id, instruction.container_id)
        except StartError as refusal:
            return StartFailed(task_id=instruction.task_id, error=str(refusal), exit_code=refusal.exit_code)
        except Exception as fault:
            log.exception("starting task %s failed", instruction.task_id)
            return StartFailed(task_id=instruction.task_id, error=f"{type(fault).__name__}: {fault}")

    async def _stop(self, instruction: Stop) -> AnyEvent | None:
        try:
            await self._runtime.stop(instruction.container_id, instruction.grace)
        except Exception as fault:
            log.warning("stopping task %s failed: %s", instruction.task_id, fault)
            return StopFailed(task_id=instruction.task_id, error=str(fault))
        return None

    async def _remove(self, instruction: Remove) -> AnyEvent:
        try:
            if instruction.container_id:
                await self._runtime.stop(instruction.container_id, instruction.grace)
            await self._runtime.remove(instruction.task_id, instruction.container_id)
        except Exception as fault:
            log.warning("removing task %s failed: %s", instruction.task_id, fault)
            return StopFailed(task_id=instruction.task_id, error=str(fault))
        return Removed(task_id=instruction.task_id, cause=instruction.cause)

    async def _report(self, instruction: Report) -> None:
        if self._link is not None:
            await self._link.report(instruction.session_id, instruction.batch)

    async def _reopen(self, instruction: Reopen) -> None:
        if self._link is not None:
            self._link.reopen(instruction.cause)


async def _quiet(action: Awaitable[None]) -> None:
    """A network that cannot be made now fails the tasks that need it, when they are prepared."""
    try:
        await action
    except Exception as fault:
        log.warning("%s", fault)
