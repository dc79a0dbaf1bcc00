"""Plans into the store: cut to its limits, groups whole, fenced by the term, lost by whoever saw too little."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.clock import SystemClock
from covey.errors import Internal
from covey.model.objects import Leader, Node, NodeStatus, Service, Task
from covey.model.task_states import TaskState
from manager.committer import Committer
from manager.leader import Deposed
from manager.store.codec import decode, encode
from manager.store.interface import Put, absent
from manager.store.keys import Keys
from manager.store.limits import MAX_OPERATIONS, MAX_REQUEST_BYTES, check_txn, request_bytes
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mirror import Mirror
from manager.store.mvcc import Database
from manager.transactions import fence, transactions
from scheduler.passes import Pass, Stage
from scheduler.plan import CreateTasks, MoveTasks, Plan, PutNodeStatus
from scheduler.settings import Settings
from scheduler.writes import Group, Write

KEYS = Keys()
FENCE = fence(KEYS, 7)


def group(number: int, size: int, width: int = 10) -> Group:
    writes = tuple(
        Write("task", f"t{number}.{part}", part % 3, Task(id=f"t{number}.{part}", service_id="s", message="x" * width))
        for part in range(size)
    )
    return Group(writes, f"group {number}")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 12_000)), max_size=12))
def test_transactions_fit_the_store_and_never_split_a_group(sizes: list[tuple[int, int]]) -> None:
    groups = [group(number, size, width) for number, (size, width) in enumerate(sizes)]
    txns = list(transactions(iter(groups), FENCE, KEYS))
    where: dict[str, int] = {}
    for at, txn in enumerate(txns):
        check_txn(txn.compares, txn.operations)
        assert txn.compares[0] == FENCE
        assert len(txn.compares) == len(txn.operations) + 1
        where.update({operation[0]: at for operation in txn.operations})
    assert sum(txn.groups for txn in txns) == len(groups)
    for one in groups:
        assert len({where[KEYS.key(write.kind, write.id)] for write in one.writes}) == 1
    passed = 0
    for txn, following in itertools.pairwise(txns):
        passed += txn.groups
        first = following.operations[: len(groups[passed].writes)]
        count = len(txn.operations) + len(first)
        size = request_bytes(txn.compares, txn.operations) + request_bytes((), first)
        assert count + 1 > MAX_OPERATIONS or size > MAX_REQUEST_BYTES - 200 * len(first), "it would have fitted before"


def test_a_key_that_two_groups_touch_goes_into_two_transactions() -> None:
    one = Group((Write("task", "a", 0, Task(id="a", service_id="s")),), "one")
    two = Group((Write("task", "a", 1, None),), "two")
    assert [txn.groups for txn in transactions([one, two], FENCE, KEYS)] == [1, 1]


@pytest.mark.parametrize("big", [group(0, 128), group(0, 2, 1_000_000)])
def test_a_group_larger_than_any_transaction_is_a_fault(big: Group) -> None:
    with pytest.raises(Internal, match="larger than one transaction"):
        list(transactions([big], FENCE, KEYS))


class World:
    """A database with a service, and leaders on it, each with its own mirror."""

    def __init__(self) -> None:
        self.database = Database()
        self.store = MemoryStore(self.database)
        self.fence = 0

    async def elect(self, node_id: str) -> int:
        from manager.store.interface import Delete

        key = KEYS.key("leader")
        await self.store.txn([], [Delete(key)])
        self.fence = (await self.store.txn([absent(key)], [Put(key, encode(Leader(node_id=node_id)))])).revision
        return self.fence

    @asynccontextmanager
    async def leader(self, node_id: str, faults: Any = None) -> AsyncIterator[tuple[Committer, Mirror]]:
        term = await self.elect(node_id)
        store = MemoryStore(self.database, faults=faults) if faults else MemoryStore(self.database)
        async with Mirror(store, KEYS) as mirror:
            await mirror.wait_listed()
            await mirror.wait_current()
            yield Committer(store, mirror, KEYS, SystemClock(), term), mirror

    def tasks(self) -> dict[str, Task]:
        items = self.database.range("/covey/task/", 0, "", 0)[0]
        return {item.key.rsplit("/", 1)[1]: decode(item.value, item.mod_revision) for item in items}  # type: ignore[misc]


@pytest.fixture
def world() -> World:
    made = World()
    service = Service(id="s", spec={"Name": "s", "TaskTemplate": {}, "Mode": {"Replicated": {"Replicas": 1000}}})
    made.database.txn([], [Put(KEYS.key("service", "s"), encode(service))])
    for number in range(3):
        node = Node(id=f"n{number}")
        made.database.txn([], [Put(KEYS.key("node", node.id), encode(node))])
    return made


def create(number: int, revision: int) -> Plan:
    names = [f"t{index}" for index in range(number)]
    rows: dict[str, Any] = {
        "ids": names,
        "slots": list(range(1, number + 1)),
        "node_ids": [""] * number,
        "attempts": [1] * number,
        "replaces": [""] * number,
    }
    return Plan(revision, (CreateTasks(prototype=Task(id="", service_id="s", service_name="s"), cause="test", **rows),), "test")


def decided(mirror: Mirror, plan: Plan) -> Pass:
    """A pass whose one decision wants ``plan``, done."""

    def decision(*given: Any) -> Generator[None, None, Plan]:
        yield from ()
        return plan

    work = Pass(mirror.snapshot(), 1.0, Settings.test(), (Stage("test", decision),))
    assert list(work.steps())
    return work


@pytest.mark.asyncio
async def test_a_plan_of_many_tasks_is_written_in_several_transactions_and_seen_at_once(world: World) -> None:
    async with world.leader("m1") as (committer, mirror):
        outcome = await committer.commit(decided(mirror, create(300, mirror.revision)))
        assert outcome == (3, 0, 0)
        assert len(mirror.snapshot().tasks) == 300
        again = await committer.commit(decided(mirror, create(300, mirror.revision)))
        assert len(world.tasks()) == 300, again


@pytest.mark.asyncio
async def test_a_deposed_leader_writes_nothing_and_learns_it(world: World) -> None:
    async with world.leader("m1") as (old, mirror):
        await world.elect("m2")
        with pytest.raises(Deposed):
            await old.commit(decided(mirror, create(200, mirror.revision)))
    assert world.tasks() == {}


@pytest.mark.asyncio
async def test_two_leaders_at_once_make_every_task_once_and_only_the_newer_writes(world: World) -> None:
    async with world.leader("m1") as (old, old_mirror), world.leader("m2") as (new, new_mirror):
        outcomes = await asyncio.gather(
            old.commit(decided(old_mirror, create(200, old_mirror.revision))),
            new.commit(decided(new_mirror, create(200, new_mirror.revision))),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], Deposed)
        assert outcomes[1].lost == 0  # type: ignore[union-attr]
        fenced = new.statistics()["transactions"]
    assert len(world.tasks()) == 200
    assert fenced == 2


@pytest.mark.asyncio
async def test_a_stale_plan_loses_and_is_decided_again_from_what_beat_it(world: World) -> None:
    async with world.leader("m1") as (committer, mirror):
        await committer.commit(decided(mirror, create(1, mirror.revision)))
        other = world.tasks()["t0"]
        status = NodeStatus(id="n0", state="ready")
        plan = Plan(
            mirror.revision,
            (MoveTasks(("t0",), "move", desired=TaskState.SHUTDOWN), PutNodeStatus(status, "ready")),
            "test",
        )
        moved = asyncio.create_task(committer.commit(decided(mirror, plan)))
        # In the same moment the task is written by somebody the mirror has not heard of yet.
        world.database.txn([], [Put(KEYS.key("task", "t0"), encode(other))])
        outcome = await moved
        assert outcome.lost == 1
        assert world.tasks()["t0"].desired == TaskState.RUNNING
        assert (await committer.commit(decided(mirror, plan))).lost == 0
        assert world.tasks()["t0"].desired == TaskState.SHUTDOWN


@pytest.mark.asyncio
async def test_an_unknown_outcome_is_read_before_deciding_again(world: World) -> None:
    broken = iter([True])

    def faults(call: str, keys: tuple[str, ...]) -> Verdict:
        return Verdict(fail=Fail.AFTER if call == "txn" and next(broken, False) else Fail.NO)

    async with world.leader("m1", faults) as (committer, mirror):
        outcome = await committer.commit(decided(mirror, create(5, mirror.revision)))
        assert (outcome.applied, outcome.lost) == (0, 1)
        assert committer.statistics()["unknown"] == 1
        assert len(mirror.snapshot().tasks) == 5, "what was written before the answer was lost is in the mirror"


@pytest.mark.asyncio
async def test_what_no_transaction_can_hold_does_not_stop_the_committer_for_good(world: World) -> None:
    async with world.leader("m1") as (committer, mirror):
        huge = create(1, mirror.revision)
        prototype = Task(id="", service_id="s", message="x" * (MAX_REQUEST_BYTES + 1))
        for _ in range(20):
            large = dataclasses.replace(huge.changes[0], prototype=prototype)  # type: ignore[type-var]
            with pytest.raises(ExceptionGroup) as fault:
                await committer.commit(decided(mirror, Plan(mirror.revision, (large,), "test")))
            assert fault.group_contains(Internal, match="larger than one transaction")
        outcome = await asyncio.wait_for(committer.commit(decided(mirror, create(3, mirror.revision))), 5)
    assert outcome == (1, 0, 0)
