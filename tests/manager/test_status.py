"""Which reports are believed (pure), and that they are written only while the reporter's session stands."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from covey.clock import SystemClock
from covey.model.objects import Node, Session, Task, TaskStatus
from covey.model.task_states import Actor, TaskState, may_move
from manager.dispatcher.status import SessionGone, StatusWriter, fold, judge
from manager.store.codec import decode, encode
from manager.store.interface import Put
from manager.store.keys import Keys
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mirror import Mirror
from scheduler.index import Index

KEYS = Keys()


def world(state: TaskState = TaskState.ASSIGNED, held: TaskState | None = None) -> Index:
    index = Index()
    changes: list[Any] = [("node", "n1", Node(id="n1")), ("task", "t", Task(id="t", service_id="s", node_id="n1", state=state))]
    if held is not None:
        changes.append(("task_status", "t", TaskStatus(id="t", node_id="n1", state=held, version=5)))
    index.apply(changes, 5)
    return index


def report(state: TaskState, node_id: str = "n1", **more: Any) -> TaskStatus:
    return TaskStatus(id="t", node_id=node_id, state=state, **more)


@pytest.mark.parametrize(("held", "new"), list(itertools.product((None, *TaskState), TaskState)))
def test_a_rank_moves_only_as_the_table_lets_a_worker_move_it(held: TaskState | None, new: TaskState) -> None:
    verdict = judge(world(held=held).snapshot(), "n1", [report(new, message="news")])
    start = TaskState.ASSIGNED if held is None else held
    allowed = may_move(Actor.WORKER, start, new) or new == held
    assert bool(verdict.write) == allowed
    assert bool(verdict.refused) != allowed


def test_what_is_stored_already_is_neither_written_nor_refused() -> None:
    verdict = judge(world(held=TaskState.RUNNING).snapshot(), "n1", [report(TaskState.RUNNING)])
    assert verdict == ([], [])


@pytest.mark.parametrize(
    ("state", "reporter", "named"),
    [(TaskState.ASSIGNED, "n2", "n2"), (TaskState.ASSIGNED, "n2", "n1"), (TaskState.PENDING, "n1", "n1")],
)
def test_a_worker_speaks_only_of_what_was_assigned_to_it(state: TaskState, reporter: str, named: str) -> None:
    verdict = judge(world(state).snapshot(), reporter, [report(TaskState.RUNNING, named)])
    assert not verdict.write
    assert "not assigned to node" in verdict.refused[0][1]


def test_of_several_reports_on_a_task_the_last_counts() -> None:
    folded = fold([report(TaskState.ACCEPTED), report(TaskState.PREPARING), report(TaskState.RUNNING)])
    assert [status.state for status in folded] == [TaskState.RUNNING]


class Fixture:
    """A store with a session and many tasks of one node."""

    def __init__(self, number: int, store: MemoryStore) -> None:
        database = store.database
        puts = [Put(KEYS.key("node", "n1"), encode(Node(id="n1")))]
        record = Session(id="n1", session_id="a", manager_id="m")
        puts.append(Put(KEYS.key("session", "n1"), encode(record)))
        self.record = database.txn([], puts).revision
        for index in range(number):
            task = Task(id=f"t{index}", service_id="s", node_id="n1", state=TaskState.ASSIGNED, spec_version=1)
            database.txn([], [Put(KEYS.key("task", task.id), encode(task))])
        self.database = database
        self.statuses = [TaskStatus(id=f"t{index}", node_id="n1", state=TaskState.RUNNING) for index in range(number)]

    def stored(self) -> dict[str, TaskStatus]:
        items = self.database.range("/covey/task_status/", 0, "", 0)[0]
        return {item.key.rsplit("/", 1)[1]: decode(item.value, item.mod_revision) for item in items}  # type: ignore[misc]


@pytest.mark.asyncio
async def test_many_statuses_are_written_in_few_transactions() -> None:
    store = MemoryStore()
    made = Fixture(150, store)
    async with Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        writer = StatusWriter(store, mirror, KEYS, SystemClock())
        assert await writer.store("n1", lambda: made.record, made.statuses) == []
        assert writer.statistics()["transactions"] == 3
    assert len(made.stored()) == 150


@pytest.mark.asyncio
async def test_nothing_is_written_once_another_session_has_the_node() -> None:
    store = MemoryStore()
    made = Fixture(2, store)
    async with Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        newer = Session(id="n1", session_id="b", manager_id="other")
        made.database.txn([], [Put(KEYS.key("session", "n1"), encode(newer))])
        writer = StatusWriter(store, mirror, KEYS, SystemClock())
        with pytest.raises(SessionGone):
            await writer.store("n1", lambda: made.record, made.statuses)
    assert made.stored() == {}


@pytest.mark.asyncio
async def test_an_unknown_outcome_is_not_written_twice_nor_refused() -> None:
    broken = iter([True])

    def faults(call: str, keys: tuple[str, ...]) -> Verdict:
        return Verdict(fail=Fail.AFTER if call == "txn" and next(broken, False) else Fail.NO)

    store = MemoryStore()
    made = Fixture(3, store)
    shaky = MemoryStore(made.database, faults=faults)
    async with Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        writer = StatusWriter(shaky, mirror, KEYS, SystemClock())
        assert await writer.store("n1", lambda: made.record, made.statuses) == []
    assert {made.database.get(KEYS.key("task_status", f"t{n}")).version for n in range(3)} == {1}  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_a_status_is_not_written_for_a_task_that_is_gone_meanwhile() -> None:
    from manager.store.interface import Delete

    store = MemoryStore()
    made = Fixture(2, store)
    async with Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        made.database.txn([], [Delete(KEYS.key("task", "t0"))])
        writer = StatusWriter(store, mirror, KEYS, SystemClock())
        refused = await writer.store("n1", lambda: made.record, made.statuses)
    assert [task_id for task_id, _ in refused] == ["t0"]
    assert set(made.stored()) == {"t1"}


class Crowd:
    """``nodes`` nodes with a session and a task each, and a writer that shares."""

    def __init__(self, nodes: int, store: MemoryStore) -> None:
        self.database = store.database
        self.records: dict[str, int] = {}
        for number in range(nodes):
            node_id = f"n{number}"
            record = Session(id=node_id, session_id="a", manager_id="m")
            task = Task(id=f"t{number}", service_id="s", node_id=node_id, state=TaskState.ASSIGNED)
            puts = [Put(KEYS.key(value.kind, value.id), encode(value)) for value in (Node(id=node_id), record, task)]
            self.records[node_id] = self.database.txn([], puts).revision

    async def report(self, writer: StatusWriter, node_id: str) -> list[tuple[str, str]]:
        status = TaskStatus(id=f"t{node_id[1:]}", node_id=node_id, state=TaskState.RUNNING)
        return await writer.store(node_id, lambda: self.records[node_id], [status])

    def stored(self) -> set[str]:
        items = self.database.range("/covey/task_status/", 0, "", 0)[0]
        return {item.key.rsplit("/", 1)[1] for item in items}


@asynccontextmanager
async def sharing(store: MemoryStore) -> AsyncIterator[StatusWriter]:
    async with Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        writer = StatusWriter(store, mirror, KEYS, SystemClock())
        running = asyncio.create_task(writer.run())
        await asyncio.sleep(0)
        try:
            yield writer
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.asyncio
async def test_reports_of_many_sessions_share_transactions() -> None:
    store = MemoryStore()
    crowd = Crowd(200, store)
    async with sharing(store) as writer:
        answers = await asyncio.gather(*(crowd.report(writer, node_id) for node_id in crowd.records))
        told = writer.statistics()
    assert answers == [[]] * 200
    assert told["statuses"] == 200
    assert told["transactions"] <= 12, told
    assert len(crowd.stored()) == 200


@pytest.mark.asyncio
async def test_who_loses_a_shared_transaction_costs_the_others_nothing() -> None:
    store = MemoryStore()
    crowd = Crowd(20, store)
    async with sharing(store) as writer:
        newer = Session(id="n3", session_id="b", manager_id="other")
        crowd.database.txn([], [Put(KEYS.key("session", "n3"), encode(newer))])
        reports = (crowd.report(writer, node_id) for node_id in crowd.records)
        answers = dict(zip(crowd.records, await asyncio.gather(*reports, return_exceptions=True), strict=True))
    assert isinstance(answers.pop("n3"), SessionGone)
    assert all(answer == [] for answer in answers.values())
    assert crowd.stored() == {f"t{number}" for number in range(20) if number != 3}


@pytest.mark.asyncio
async def test_a_shared_transaction_of_unknown_outcome_is_settled_by_each() -> None:
    broken = iter([True])

    def faults(call: str, keys: tuple[str, ...]) -> Verdict:
        return Verdict(fail=Fail.AFTER if call == "txn" and next(broken, False) else Fail.NO)

    crowd = Crowd(5, MemoryStore())
    async with sharing(MemoryStore(crowd.database, faults=faults)) as writer:
        assert await asyncio.gather(*(crowd.report(writer, node_id) for node_id in crowd.records)) == [[]] * 5
    versions = {crowd.database.get(KEYS.key("task_status", f"t{n}")).version for n in range(5)}  # type: ignore[union-attr]
    assert versions == {1}, "nothing was written twice"


@pytest.mark.asyncio
async def test_a_reporter_that_leaves_or_a_writer_that_ends_leaves_nobody_waiting() -> None:
    store = MemoryStore()
    crowd = Crowd(3, store)
    async with sharing(store) as writer:
        leaving = asyncio.create_task(crowd.report(writer, "n0"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await crowd.report(writer, "n1") == []
    assert await asyncio.wait_for(crowd.report(writer, "n2"), 5) == []
    assert {"t1", "t2"} <= crowd.stored()
