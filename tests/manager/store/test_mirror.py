"""The mirror: whole, current, mended. On the memory store, with its faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from covey.model.objects import Config, Service, Stored, Task
from covey.model.task_states import TaskState
from manager.store import mirror as mirror_module
from manager.store.codec import encode
from manager.store.interface import Delete, Put, StoreUnavailable, Watch, WatchBatch
from manager.store.keys import Keys
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mirror import Mirror
from manager.store.mvcc import Database
from manager.store.notify import BACKLOG, Board, Changed, ChangesLost, Events

pytestmark = pytest.mark.asyncio

KEYS = Keys()


def service(id: str, name: str = "") -> Service:
    return Service(id=id, spec={"Name": name or id})


def task(id: str, service_id: str = "s", state: TaskState = TaskState.NEW) -> Task:
    return Task(id=id, service_id=service_id, slot=1, state=state)


def put(item: Stored) -> Put:
    return Put(KEYS.key(item.kind, getattr(item, "id", "")), encode(item))


async def write(store: MemoryStore, *items: Stored) -> int:
    return (await store.txn([], [put(item) for item in items])).revision


@asynccontextmanager
async def listed(store: MemoryStore, resync: float = 60.0) -> AsyncIterator[Mirror]:
    async with store, Mirror(store, KEYS, resync=resync) as mirror:
        await asyncio.wait_for(mirror.wait_listed(), 5)
        yield mirror


async def until(what: str, holds: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within 10 s: {what}"
        await asyncio.sleep(0.005)


async def test_it_lists_then_follows_and_a_read_waits_for_its_write() -> None:
    store = MemoryStore()
    await write(store, *(service(f"s{i}") for i in range(3)))
    async with listed(store) as mirror:
        assert set(mirror.snapshot().services) == {"s0", "s1", "s2"}
        revision = await write(store, service("s3"), task("t1", "s3"))
        await mirror.wait_current()
        snapshot = mirror.snapshot()
        assert snapshot.revision == revision
        assert snapshot.services["s3"].version == revision
        assert list(snapshot.by_service["s3"]) == ["t1"]
        await store.txn([], [Delete(KEYS.key("task", "t1"))])
        await mirror.wait_current()
        assert not mirror.snapshot().tasks


async def test_what_is_lent_stands_still_until_it_is_given_back() -> None:
    store = MemoryStore()
    await write(store, service("s0"))
    async with listed(store, resync=0.01) as mirror:
        async with mirror.lend() as snapshot:
            revision = await write(store, service("s1"))
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert mirror.snapshot() is snapshot
                assert set(snapshot.services) == {"s0"}
        await mirror.wait_revision(revision)
        assert set(mirror.snapshot().services) == {"s0", "s1"}
        assert mirror.statistics()["repairs"] == 0, "what waited was no mistake of the watch's"


async def test_a_borrower_that_fails_gives_back() -> None:
    store = MemoryStore()
    async with listed(store) as mirror:
        with pytest.raises(ZeroDivisionError):
            async with mirror.lend():
                raise ZeroDivisionError
        revision = await write(store, service("s1"))
        await mirror.wait_revision(revision)
        assert "s1" in mirror.snapshot().services


async def test_tasks_of_one_service_version_share_their_spec() -> None:
    store = MemoryStore()
    spec = {"ContainerSpec": {"Image": "a"}}
    tasks = [Task(id=f"t{n}", service_id="shared", spec=dict(spec), spec_version=1 + n // 2) for n in range(3)]
    other = Task(id="other", service_id="shared", spec={"ContainerSpec": {"Image": "b"}})
    await write(store, service("shared"), *tasks, other)
    async with listed(store) as mirror:
        held = mirror.snapshot().tasks
        assert held["t0"].spec is held["t1"].spec
        assert held["t2"].spec == held["t0"].spec
        assert held["other"].spec == {"ContainerSpec": {"Image": "b"}}, "the same version with another spec keeps its own"


async def test_before_the_listing_there_is_nothing_to_see() -> None:
    store = MemoryStore(faults=lambda call, keys: Verdict(fail=Fail.BEFORE))
    async with store, Mirror(store, KEYS) as mirror:
        await until("the failed listing is told", lambda: mirror.statistics()["trouble"])
        with pytest.raises(StoreUnavailable, match=r"not read the whole store yet .*does not answer"):
            mirror.snapshot()


async def test_a_late_watch_makes_the_read_barrier_say_so() -> None:
    slow = False
    store = MemoryStore(faults=lambda call, keys: Verdict(before=3600) if slow and call in ("watch", "keys") else Verdict())
    async with listed(store) as mirror:
        slow = True
        revision = await write(store, service("s"))
        with pytest.raises(StoreUnavailable, match=f"not yet {revision}"):
            await mirror.wait_current(timeout=0.1)
        assert mirror.snapshot().revision < revision


class LossyStore(MemoryStore):
    """Its watches swallow the events of the keys in ``lost`` and go on as if nothing had been."""

    lost: frozenset[str] = frozenset()
    opened = 0

    def watch(self, prefixes: Sequence[str], from_revision: int) -> Watch:  # type: ignore[override]
        self.opened += 1
        inner, store = super().watch(prefixes, from_revision), self
        take = inner._take

        def lossy() -> WatchBatch | None:
            batch = take()
            if batch is None:
                return None
            return WatchBatch(batch.revision, tuple(event for event in batch.events if event.item.key not in store.lost))

        inner._take = lossy  # type: ignore[method-assign]
        return inner


async def test_a_resync_finds_what_the_watch_lost_and_watches_anew() -> None:
    store = LossyStore()
    store.lost = frozenset(KEYS.key("service", id) for id in ("new", "changed", "gone"))
    await write(store, service("changed"), service("gone"), service("same"))
    async with listed(store, resync=0.2) as mirror:
        with mirror.events(("service",)) as events:
            await write(store, service("new"), service("changed", "now"))
            await store.txn([], [Delete(KEYS.key("service", "gone"))])
            await until("the repair", lambda: mirror.statistics()["repairs"])
            assert {id: item.name for id, item in mirror.snapshot().services.items()} == {
                "new": "new",
                "changed": "now",
                "same": "same",
            }
            told = {
                change.id: (change.before is None, change.after is None) for change in [await anext(events) for _ in range(3)]
            }
            assert told == {"new": (True, False), "changed": (False, False), "gone": (False, True)}
        assert mirror.statistics()["repairs"] == 3
        await until("a second watch", lambda: store.opened == 2)
        assert mirror.statistics()["lists"] == 1
        store.lost = frozenset()
        await write(store, service("later"))
        await mirror.wait_current()
        assert "later" in mirror.snapshot().services


@pytest.mark.parametrize("lag", [0.0, 0.01])
async def test_resyncs_of_a_right_mirror_repair_nothing(lag: float) -> None:
    store = MemoryStore(faults=lambda call, keys: Verdict(before=lag) if call == "watch" else Verdict())
    async with listed(store, resync=0.01) as mirror:
        for i in range(60):
            await write(store, service(f"s{i % 7}", f"n{i}"), task(f"t{i % 5}"))
            await store.txn([], [Delete(KEYS.key("service", f"s{(i + 3) % 7}"))])
            await asyncio.sleep(0.002)
        await until("a few resyncs", lambda: mirror.statistics()["resyncs"] >= 5)
        assert mirror.statistics()["repairs"] == 0
        await mirror.wait_current()
        items = (await store.range(KEYS.prefix("service"))).items
        assert {KEYS.parse(item.key).id for item in items} == set(mirror.snapshot().services)


async def test_a_resync_that_is_slow_does_not_undo_what_came_meanwhile() -> None:
    holding = asyncio.Event()
    release = asyncio.Event()

    class SlowKeys(MemoryStore):
        async def keys(self, *args: object, **options: object):  # type: ignore[no-untyped-def, override]
            page = await super().keys(*args, **options)  # type: ignore[arg-type]
            holding.set()
            await release.wait()
            return page

    store = SlowKeys()
    await write(store, service("deleted"), service("changed"))
    async with listed(store, resync=0.01) as mirror:
        await asyncio.wait_for(holding.wait(), 5)
        await store.txn([], [Delete(KEYS.key("service", "deleted")), put(service("changed", "now")), put(service("created"))])
        await mirror.wait_current()
        release.set()
        await until("the resync", lambda: mirror.statistics()["resyncs"])
        assert {item.name for item in mirror.snapshot().services.values()} == {"now", "created"}
        assert mirror.statistics()["repairs"] == 0


async def test_what_a_resync_has_passed_is_old_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "DOUBT_AFTER", 0.05)
    held_back = False
    store = MemoryStore(faults=lambda call, keys: Verdict(fail=Fail.BEFORE) if held_back and call == "watch" else Verdict())
    async with listed(store, resync=0.05) as mirror:
        with mirror.events(("service",)) as events:
            held_back = True
            await write(store, service("flash"))
            revision = (await store.txn([], [Delete(KEYS.key("service", "flash"))])).revision
            await mirror.wait_revision(revision)
            held_back = False
            await until("the watch is back", lambda: mirror.statistics()["stale"] == 2)
            await write(store, service("next"))
            assert (await asyncio.wait_for(anext(events), 5)).id == "next"


async def test_compaction_under_a_broken_watch_lists_again() -> None:
    broken = False
    store = MemoryStore(faults=lambda call, keys: Verdict(fail=Fail.BEFORE) if broken and call == "watch" else Verdict())
    await write(store, service("old"), service("gone"))
    async with listed(store) as mirror:
        with mirror.changes(("service",)) as changed:
            changed.take()
            broken = True
            await store.txn([], [Delete(KEYS.key("service", "gone"))])
            await write(store, service("old", "changed"), service("new"))
            await store.compact(await write(store, task("t")))
            broken = False
            await asyncio.wait_for(changed.wait(), 5)
        assert {item.name for item in mirror.snapshot().services.values()} == {"changed", "new"}
        assert mirror.statistics()["lists"] == 2


async def test_a_store_restored_from_a_copy_is_believed() -> None:
    database = Database()
    store = MemoryStore(database)
    await write(store, service("s", "first"))
    await write(store, service("t"))
    async with listed(store) as mirror:
        assert mirror.snapshot().services["s"].name == "first"
        older = MemoryStore(Database())
        await write(older, service("s", "other"))
        store.database = older.database
        mirror._follower.cancel()  # type: ignore[union-attr]
        mirror._listed_at = 0
        await mirror._list()
        assert {item.name for item in mirror.snapshot().services.values()} == {"other"}
        assert mirror.revision == older.database.revision


async def test_many_keys_and_large_values_come_in_pages() -> None:
    pages: list[tuple[str, ...]] = []
    store = MemoryStore(faults=lambda call, keys: (pages.append(keys) if call == "range" else None) or Verdict())
    for start in range(0, 1200, 100):
        await write(store, *(task(f"t{start + i}") for i in range(100)))
    for i in range(10):
        await write(store, Config(id=f"c{i}", spec={}, data=bytes(100_000)))
    async with listed(store) as mirror:
        assert len(mirror.snapshot().tasks) == 1200
        assert len(mirror.objects("config")) == 10
        assert pages.count((KEYS.prefix("task"),)) == 3
        assert pages.count((KEYS.prefix("config"),)) == 2


async def test_what_cannot_be_read_is_left_out_and_named() -> None:
    store = MemoryStore()
    bad = KEYS.key("service", "bad")
    await store.txn(
        [], [Put(bad, b"rubbish"), put(service("good")), Put("/covey/unknown/x", b""), Put("/covey/leaderboard", b"")]
    )
    async with listed(store, resync=0.01) as mirror:
        assert set(mirror.snapshot().services) == {"good"}
        assert mirror.statistics()["unreadable"] == [bad]
        await until("resyncs", lambda: mirror.statistics()["resyncs"] > 2)
        assert mirror.statistics()["repairs"] == 0
        await store.txn([], [Put(bad, encode(task("bad"))), Put("/covey/unknown/y", b"")])
        await mirror.wait_current()
        assert mirror.statistics()["unreadable"] == [bad]
        await write(store, service("bad"))
        await mirror.wait_current()
        assert mirror.statistics()["unreadable"] == []
        assert "bad" in mirror.snapshot().services


async def test_a_spec_that_cannot_be_does_not_stop_the_mirror() -> None:
    store = MemoryStore()
    await write(store, Service(id="bad", spec={"Name": "bad", "Mode": 5}), service("good"))
    async with listed(store) as mirror:
        assert set(mirror.snapshot().services) == {"good"}
        assert mirror.statistics()["unreadable"] == [KEYS.key("service", "bad")]


async def test_events_keep_every_step_in_order() -> None:
    delayed = asyncio.Event()
    store = MemoryStore(faults=lambda call, keys: Verdict(before=0.05) if call == "watch" and delayed.is_set() else Verdict())
    async with listed(store) as mirror:
        with mirror.events(("task",)) as events, mirror.changes(("task", "node")) as changed:
            await write(store, service("s"), task("t"))
            for state in (TaskState.PENDING, TaskState.ASSIGNED):
                await write(store, task("t", state=state))
            await store.txn([], [Delete(KEYS.key("task", "t"))])
            steps = [await asyncio.wait_for(anext(events), 5) for _ in range(4)]
            states = [(getattr(step.before, "state", None), getattr(step.after, "state", None)) for step in steps]
            assert states == [
                (None, TaskState.NEW),
                (TaskState.NEW, TaskState.PENDING),
                (TaskState.PENDING, TaskState.ASSIGNED),
                (TaskState.ASSIGNED, None),
            ]
            assert [step.revision for step in steps] == list(range(steps[0].revision, steps[0].revision + 4))
            assert await changed.wait() == {"task"}
            assert changed.take() == frozenset()


async def test_a_slow_listener_is_told_what_it_lost() -> None:
    board = Board()
    with Events(board, ("task",)) as events:
        board.tell([Changed("task", str(i), None, None, i) for i in range(BACKLOG + 5)])
        for _ in range(BACKLOG):
            await anext(events)
        with pytest.raises(ChangesLost, match="missed 5 changes"):
            await anext(events)
    assert not board.events


async def test_errors_of_the_body_pass_unwrapped_and_nothing_is_left_running() -> None:
    async def broken() -> None:
        async with listed(MemoryStore()):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await broken()
    task_of_body = asyncio.create_task(cancelled_body())
    await asyncio.sleep(0.05)
    task_of_body.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task_of_body
    await until("nothing is left", lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def cancelled_body() -> None:
    async with listed(MemoryStore()):
        await asyncio.Event().wait()
