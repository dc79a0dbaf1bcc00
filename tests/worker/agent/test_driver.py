"""The driver: instructions in order, nothing behind a journal entry before it is on disk, faults become events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from covey.clock import SystemClock
from covey.model.objects import NodeDescription, Task, TaskNetwork, TaskStatus
from covey.model.task_states import TaskState as S
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask, Assignments, StatusBatch
from worker.agent.driver import Driver
from worker.agent.journal import Journal
from worker.agent.machine import AgentMachine
from worker.agent.runtime import PrepareError, StartError
from worker.agent.vocabulary import Assigned, Exited, Found, HealthChanged, SessionUp, Started, WriteJournal


class Runtime:
    """Containers in memory. ``calls`` is what was asked, ``faults`` what a kind of call raises, ``gates`` what it waits for."""

    def __init__(self, log: list[str]) -> None:
        self.calls = log
        self.faults: dict[str, BaseException] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.happened: asyncio.Queue[Exited | HealthChanged] = asyncio.Queue()
        self.exists: list[Found] = []
        self.words: list[str] = []

    async def _called(self, kind: str, what: str) -> None:
        self.calls.append(f"{kind} {what}")
        if kind in self.gates:
            await self.gates[kind].wait()
        if kind in self.faults:
            raise self.faults[kind]

    async def describe(self) -> NodeDescription:
        return NodeDescription()

    async def ensure_network(self, network: AssignedNetwork) -> None:
        await self._called("network", network.id)

    async def drop_network(self, network_id: str) -> None:
        await self._called("drop", network_id)

    async def prepare(
        self,
        assigned: AssignedTask,
        networks: Sequence[AssignedNetwork],
        secrets: Sequence[AssignedSecret],
        configs: Sequence[AssignedSecret],
        said: Callable[[str], None] = lambda message: None,
    ) -> str:
        for word in self.words:
            said(word)
        await self._called("prepare", assigned.task.id)
        return f"c-{assigned.task.id}"

    async def start(self, task_id: str, container_id: str) -> Started:
        await self._called("start", container_id)
        return Started(task_id=task_id, container_id=container_id, pid=7)

    async def stop(self, container_id: str, grace: float) -> None:
        await self._called("stop", container_id)

    async def remove(self, task_id: str, container_id: str) -> None:
        await self._called("remove", container_id)

    async def found(self) -> Sequence[Found]:
        return self.exists

    async def events(self) -> AsyncIterator[Exited | HealthChanged]:
        while True:
            yield await self.happened.get()


class LoggedJournal(Journal):
    """A real journal that says when an entry is on disk; ``full`` makes writes fail as a full disk does."""

    def __init__(self, path: Path, log: list[str]) -> None:
        super().__init__(path)
        self.log = log
        self.full = 0

    def write(self, instruction: WriteJournal) -> None:
        if self.full:
            self.full -= 1
            raise OSError(28, "No space left on device")
        super().write(instruction)
        states = [f"{record.id}{'*' if record.started else ''}" for record in instruction.records]
        self.log.append(f"journal {' '.join(states)}".strip())


class Link:
    def __init__(self) -> None:
        self.statuses: list[TaskStatus] = []
        self.reopened: list[str] = []

    async def report(self, session_id: str, batch: StatusBatch) -> None:
        self.statuses += batch.statuses

    def reopen(self, why: str) -> None:
        self.reopened.append(why)

    def states(self, task_id: str = "t1") -> list[str]:
        return [status.state.label for status in self.statuses if status.id == task_id]


class Stand:
    """A driver over a real machine and journal, with the runtime and the link faked."""

    def __init__(self, directory: Path) -> None:
        self.log: list[str] = []
        self.runtime = Runtime(self.log)
        self.link = Link()
        self.journal = LoggedJournal(directory / "journal", self.log)
        self.driver = Driver(AgentMachine("n"), self.journal, self.runtime, SystemClock())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with self.journal:
            run = asyncio.create_task(self.driver.run(self.link))
            try:
                yield
            finally:
                run.cancel()
                with suppress(asyncio.CancelledError):
                    await run

    def assign(self, *tasks: AssignedTask, networks: tuple[AssignedNetwork, ...] = (), results_in: str = "1") -> None:
        self.driver.feed(SessionUp(session_id="s1"))
        message = Assignments(complete=True, results_in=results_in, revision=1, tasks=tasks, networks=networks)
        self.driver.feed(Assigned(message=message))

    async def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, f"waited 10 s for {what}; {self.log}; {self.link.statuses}"
            await asyncio.sleep(0.005)


def task(name: str = "t1", **fields: Any) -> AssignedTask:
    return AssignedTask(task=Task(id=name, service_id="s", node_id="n", state=S.ASSIGNED, desired=S.RUNNING, **fields))


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


@pytest.mark.asyncio
async def test_a_task_is_on_disk_before_it_is_prepared_and_as_started_before_it_starts(stand: Stand) -> None:
    async with stand.running():
        stand.assign(task())
        await stand.wait(lambda: "running" in stand.link.states(), "the task to run")
    prepare, start = stand.log.index("prepare t1"), stand.log.index("start c-t1")
    assert any(line.startswith("journal t1") for line in stand.log[:prepare])
    assert any("t1*" in line for line in stand.log[prepare:start])
    assert not any("t1*" in line for line in stand.log[:prepare])


@pytest.mark.asyncio
async def test_while_the_journal_cannot_be_written_nothing_behind_it_is_done(stand: Stand) -> None:
    async with stand.running():
        await stand.wait(lambda: stand.driver.statistics()["queued"] == 0, "the start")
        stand.journal.full = 2
        stand.assign(task())
        await stand.wait(lambda: "No space left" in stand.driver.statistics()["journal_fault"], "the fault to show")
        assert "prepare t1" not in stand.log
        await stand.wait(lambda: "running" in stand.link.states(), "the task to run once there is room")
        assert stand.driver.statistics()["journal_fault"] == ""


@pytest.mark.asyncio
async def test_tasks_are_prepared_beside_each_other(stand: Stand) -> None:
    gate = stand.runtime.gates["prepare"] = asyncio.Event()
    async with stand.running():
        stand.assign(task("t1"), task("t2"))
        await stand.wait(lambda: {"prepare t1", "prepare t2"} <= set(stand.log), "both to be under way")
        gate.set()
        await stand.wait(lambda: {"start c-t1", "start c-t2"} <= set(stand.log), "both to start")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("kind", "fault", "state", "words", "code"),
    [
        ("prepare", PrepareError("No such image: x", rejected=True), "rejected", "No such image: x", None),
        ("prepare", PrepareError("disk full", rejected=False), "failed", "disk full", None),
        ("prepare", RuntimeError("surprise"), "failed", "RuntimeError: surprise", None),
        ("start", StartError("exec: not found", exit_code=127), "failed", "exec: not found", 127),
        ("start", ValueError("surprise"), "failed", "ValueError: surprise", None),
    ],
)
async def test_a_fault_becomes_the_task_s_status(
    stand: Stand, kind: str, fault: BaseException, state: str, words: str, code: int | None
) -> None:
    stand.runtime.faults[kind] = fault
    async with stand.running():
        stand.assign(task())
        await stand.wait(lambda: state in stand.link.states(), f"the task to be {state}")
    status = next(status for status in stand.link.statuses if status.state.label == state)
    assert words in status.error
    if code is not None:
        assert status.exit_code == code


@pytest.mark.asyncio
async def test_what_takes_long_is_told_of_but_not_every_word(stand: Stand) -> None:
    gate = stand.runtime.gates["prepare"] = asyncio.Event()
    stand.runtime.words = ["receiving image x: 10 %", "receiving image x: 11 %"]
    async with stand.running():
        stand.assign(task())
        await stand.wait(lambda: any("receiving" in status.message for status in stand.link.statuses), "the message")
        gate.set()
        await stand.wait(lambda: "running" in stand.link.states(), "the task to run")
    told = [status for status in stand.link.statuses if "receiving" in status.message]
    assert [(status.state.label, status.message) for status in told] == [("preparing", "receiving image x: 10 %")]


@pytest.mark.asyncio
async def test_an_exit_is_reported_with_its_code(stand: Stand) -> None:
    async with stand.running():
        stand.assign(task())
        await stand.wait(lambda: "running" in stand.link.states(), "the task to run")
        stand.runtime.happened.put_nowait(Exited(task_id="t1", exit_code=9, at=1.0))
        await stand.wait(lambda: "failed" in stand.link.states(), "the exit")
    assert stand.link.statuses[-1].exit_code == 9


@pytest.mark.asyncio
async def test_a_network_stands_before_the_task_that_needs_it_and_its_fault_is_the_task_s(stand: Stand) -> None:
    network = AssignedNetwork(id="net1", name="web")
    stand.runtime.faults["network"] = PrepareError("the pool is used up", rejected=False)
    async with stand.running():
        stand.assign(task(networks=(TaskNetwork(network_id="net1"),)), networks=(network,))
        await stand.wait(lambda: "failed" in stand.link.states(), "the task to fail")
        assert "prepare t1" not in stand.log
        assert "the pool is used up" in stand.link.statuses[-1].error


@pytest.mark.asyncio
async def test_what_the_node_should_no_longer_hold_is_removed_and_forgotten(stand: Stand) -> None:
    async with stand.running():
        stand.assign(task())
        await stand.wait(lambda: "running" in stand.link.states(), "the task to run")
        stand.assign(results_in="2")
        await stand.wait(lambda: "remove c-t1" in stand.log and not stand.journal.records, "the task to be forgotten")


@pytest.mark.asyncio
async def test_the_next_agent_takes_over_from_journal_and_containers_without_starting_twice(tmp_path: Path) -> None:
    first = Stand(tmp_path)
    async with first.running():
        first.assign(task())
        await first.wait(lambda: "running" in first.link.states(), "the task to run")
    second = Stand(tmp_path)
    second.runtime.exists = [Found(task_id="t1", container_id="c-t1", state="running", pid=7)]
    async with second.running():
        second.assign(task())
        await second.wait(lambda: "running" in second.link.states(), "the task to be reported again")
    assert not [line for line in second.log if line.startswith(("prepare", "start"))]
