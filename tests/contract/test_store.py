"""The contract of interface.Store, word for word, on every store there is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from manager.store.interface import (
    Compacted,
    Compare,
    Delete,
    DeleteRange,
    EventKind,
    FutureRevision,
    InvalidTxn,
    LeaseLost,
    Put,
    Relation,
    Store,
    Target,
    TxnTooLarge,
    Watch,
    WatchEvent,
    absent,
    created_at,
    exists,
    lease_is,
    mod_is,
)

pytestmark = pytest.mark.asyncio

Collect = Callable[[Watch, int], Awaitable[list[WatchEvent]]]


async def put(store: Store, *keys: str, value: bytes = b"v", lease: int = 0) -> int:
    result = await store.txn([], [Put(key, value, lease) for key in keys])
    assert result.ok
    return result.revision


async def test_a_key_carries_its_revisions(store: Store) -> None:
    assert await store.get("/a") is None
    first = await put(store, "/a", value=b"1")
    second = await put(store, "/a", value=b"2")
    item = await store.get("/a")
    assert second == first + 1
    assert item is not None
    assert item == ("/a", b"2", first, second, 2, 0)
    await store.txn([], [Delete("/a")])
    assert await store.get("/a") is None
    again = await put(store, "/a", value=b"")
    assert await store.get("/a") == ("/a", b"", again, again, 1, 0)


async def test_one_revision_a_transaction(store: Store) -> None:
    before = await store.revision()
    result = await store.txn([], [Put("/a", b"1"), Put("/b", b"2"), Delete("/none")])
    assert result == (True, before + 1)
    a, b = await store.get("/a"), await store.get("/b")
    assert a is not None
    assert b is not None
    assert a.mod_revision == b.mod_revision == before + 1
    assert await store.revision() == before + 1


async def test_a_transaction_that_changes_nothing_makes_no_revision(store: Store) -> None:
    before = await store.revision()
    for operations in ([], [Delete("/none")], [DeleteRange("/none/")]):
        assert await store.txn([], operations) == (True, before)
    assert await store.txn([exists("/none")], [Put("/a", b"")]) == (False, before)
    assert await store.revision() == before


async def test_compares(store: Store) -> None:
    created = await put(store, "/a")
    changed = await put(store, "/a")
    lease = await store.grant(30)
    await put(store, "/l", lease=lease.id)
    table = [
        (mod_is("/a", changed), True),
        (mod_is("/a", created), False),
        (mod_is("/none", 0), True),
        (created_at("/a", created), True),
        (created_at("/a", changed), False),
        (exists("/a"), True),
        (exists("/none"), False),
        (absent("/none"), True),
        (absent("/a"), False),
        (lease_is("/l", lease.id), True),
        (lease_is("/l", lease.id + 1), False),
        (lease_is("/a", 0), True),
        (lease_is("/none", 0), True),
        (Compare("/a", Target.VERSION, Relation.EQUAL, 2), True),
        (Compare("/a", Target.MOD, Relation.LESS, changed + 1), True),
        (Compare("/a", Target.MOD, Relation.LESS, changed), False),
        (Compare("/a", Target.MOD, Relation.GREATER, changed - 1), True),
        (Compare("/a", Target.MOD, Relation.NOT_EQUAL, changed), False),
    ]
    for compare, holds in table:
        assert (await store.txn([compare], [])).ok is holds, compare
    assert not (await store.txn([exists("/a"), exists("/none")], [Put("/b", b"")])).ok
    assert await store.get("/b") is None
    await store.revoke(lease)


async def test_of_two_creates_one_wins(store: Store) -> None:
    results = await asyncio.gather(*(store.txn([absent("/a")], [Put("/a", bytes((i,)))]) for i in range(8)))
    assert [result.ok for result in results].count(True) == 1
    winner = next(i for i, result in enumerate(results) if result.ok)
    item = await store.get("/a")
    assert item is not None
    assert item.value == bytes((winner,))


async def test_what_no_store_accepts(store: Store) -> None:
    before = await store.revision()
    for operations in (
        [Put("/a", b"1"), Put("/a", b"2")],
        [Put("/a", b"1"), Delete("/a")],
        [Put("/a/b", b"1"), DeleteRange("/a/")],
        [Put("", b"1")],
        [Delete("")],
    ):
        with pytest.raises(InvalidTxn):
            await store.txn([], operations)
    assert await store.revision() == before


async def test_the_limits_are_inclusive_and_said_in_numbers(store: Store) -> None:
    full = [Put(f"/n/{i:03}", b"") for i in range(128)]
    assert (await store.txn([absent(put.key) for put in full], full)).ok
    with pytest.raises(TxnTooLarge, match="129 operations, the store takes 128"):
        await store.txn([], [*full, Put("/x", b"")])
    with pytest.raises(TxnTooLarge, match="129 compares"):
        await store.txn([exists(f"/{i}") for i in range(129)], [])
    with pytest.raises(TxnTooLarge, match="1572864"):
        await store.txn([], [Put("/big", bytes(1536 * 1024))])
    assert (await store.txn([], [Put("/big", bytes(1536 * 1024 - 5000))])).ok
    many = [Put(f"/n/{i:03}/{'k' * 60}", bytes(12_000)) for i in range(127)]
    assert (await store.txn([absent(put.key) for put in many], many)).ok


async def test_pages_in_order(store: Store) -> None:
    names = [f"/p/{i:02}" for i in range(7)] + ["/p/a", "/p/a/b", "/p/é", "/p/𝄞"]
    await put(store, *names, "/o", "/q")
    got, after, revision = [], "", 0
    while True:
        page = await store.range("/p/", limit=4, after_key=after, revision=revision)
        got += [item.key for item in page.items]
        assert len(page.items) <= 4
        if not page.more:
            break
        after, revision = page.items[-1].key, page.revision
    assert got == sorted(names, key=str.encode)
    assert [item.key for item in (await store.range("/p/a")).items] == ["/p/a", "/p/a/b"]
    assert (await store.range("/none/")).items == ()
    assert not (await store.range("/p/", limit=11)).more


async def test_pages_at_one_revision(store: Store) -> None:
    await put(store, "/p/1", "/p/2", "/p/3", value=b"old")
    page = await store.range("/p/", limit=1)
    await store.txn([], [Put("/p/2", b"new"), Delete("/p/3"), Put("/p/4", b"new")])
    rest = await store.range("/p/", after_key="/p/1", revision=page.revision)
    assert [(item.key, item.value) for item in rest.items] == [("/p/2", b"old"), ("/p/3", b"old")]
    assert rest.revision == page.revision
    now = await store.range("/p/", after_key="/p/1")
    assert [(item.key, item.value) for item in now.items] == [("/p/2", b"new"), ("/p/4", b"new")]
    assert now.revision == page.revision + 1


async def test_keys_without_values(store: Store) -> None:
    first = await put(store, "/p/1")
    second = await put(store, "/p/2")
    page = await store.keys("/p/", limit=1)
    assert page == ((("/p/1", first),), second, True)
    assert (await store.keys("/p/", after_key="/p/1", revision=page.revision)).items == (("/p/2", second),)


async def test_compaction_and_the_future(store: Store) -> None:
    first = await put(store, "/a", value=b"1")
    second = await put(store, "/a", value=b"2")
    third = await put(store, "/a", value=b"3")
    await store.compact(second)
    await store.compact(first)
    with pytest.raises(Compacted):
        await store.range("/a", revision=first)
    assert (await store.range("/a", revision=second)).items[0].value == b"2"
    with pytest.raises(FutureRevision):
        await store.range("/a", revision=third + 10)
    with pytest.raises(FutureRevision):
        await store.compact(third + 10)
    async with store.watch(["/"], first) as watch:
        with pytest.raises(Compacted) as caught:
            await asyncio.wait_for(watch.__anext__(), 10)
    assert caught.value.revision == second


async def test_a_watch_gives_history_then_the_present(store: Store, collect: Collect) -> None:
    first = await put(store, "/w/1", value=b"1")
    await put(store, "/other")
    await store.txn([], [Put("/w/1", b"2"), Put("/w/2", b"2")])
    async with store.watch(["/w/"], first) as watch:
        events = await collect(watch, 3)
        assert [(event.item.key, event.item.value) for event in events] == [
            ("/w/1", b"1"),
            ("/w/1", b"2"),
            ("/w/2", b"2"),
        ]
        assert events[0].item.mod_revision == first
        gone = (await store.txn([], [DeleteRange("/w/")])).revision
        events = await collect(watch, 2)
        assert {event.kind for event in events} == {EventKind.DELETE}
        assert [event.item for event in events] == [("/w/1", b"", 0, gone, 0, 0), ("/w/2", b"", 0, gone, 0, 0)]


async def test_a_watch_starts_at_its_revision(store: Store, collect: Collect) -> None:
    await put(store, "/w/1")
    second = await put(store, "/w/2")
    async with store.watch(["/w/"], second) as watch:
        assert [event.item.key for event in await collect(watch, 1)] == ["/w/2"]
    async with store.watch(["/w/"], second + 1) as watch:
        waiting = asyncio.create_task(collect(watch, 1))
        third = await put(store, "/w/3")
        assert [event.item.mod_revision for event in await waiting] == [third]


async def test_several_prefixes_keep_one_order(store: Store, collect: Collect) -> None:
    start = await store.revision() + 1
    for i in range(20):
        await store.txn([], [Put(f"/w/a/{i}", b""), Put(f"/w/b/{i}", b""), Put(f"/w/c/{i}", b"")])
    async with store.watch(["/w/a/", "/w/c/"], start) as watch:
        events = await collect(watch, 40)
    assert [event.item.key for event in events] == [f"/w/{kind}/{i}" for i in range(20) for kind in "ac"]


async def test_a_transaction_is_never_split_over_batches(store: Store) -> None:
    start = await store.revision() + 1
    for _ in range(30):
        await store.txn([], [Put(f"/w/{n}", bytes(9000)) for n in range(100)])
    seen = start - 1
    async with store.watch(["/w/"], start) as watch, asyncio.timeout(20):
        while seen < start + 29:
            batch = await watch.__anext__()
            revisions = [event.item.mod_revision for event in batch.events]
            assert revisions == sorted(revisions)
            assert len(revisions) == 100 * len(set(revisions))
            assert not revisions or (revisions[0] == seen + 1 and revisions[-1] == batch.revision)
            seen = batch.revision


async def test_progress_passes_changes_elsewhere(store: Store) -> None:
    async with store.watch(["/w/"], await put(store, "/w/1")) as watch, asyncio.timeout(15):
        await watch.__anext__()
        elsewhere = await put(store, "/other")
        watch.ask_progress()
        batch = await watch.__anext__()
        while batch.revision < elsewhere:
            batch = await watch.__anext__()
        assert batch == (elsewhere, ())


async def test_a_lease_takes_its_keys_with_it(store: Store, collect: Collect) -> None:
    lease = await store.grant(1)
    assert lease.ttl >= 1
    start = await put(store, "/l/1", "/l/2", lease=lease.id)
    await put(store, "/l/2")
    async with store.watch(["/l/"], start) as watch:
        events = await collect(watch, 4)
    assert (events[-1].kind, events[-1].item.key) == (EventKind.DELETE, "/l/1")
    assert await store.get("/l/1") is None
    assert await store.get("/l/2") is not None
    with pytest.raises(LeaseLost):
        await store.renew(lease)
    assert lease.lost.is_set()
    with pytest.raises(LeaseLost):
        await put(store, "/l/3", lease=lease.id)
    assert not (await store.txn([exists("/none")], [Put("/l/3", b"", lease.id)])).ok
    await store.revoke(lease)


async def test_a_revoked_lease_ends_at_once_in_one_revision(store: Store) -> None:
    lease = await store.grant(60)
    revision = await put(store, "/l/1", "/l/2", lease=lease.id)
    await store.revoke(lease)
    assert await store.revision() == revision + 1
    assert (await store.range("/l/")).items == ()
    assert lease.lost.is_set()


@pytest.mark.suite
async def test_a_kept_lease_outlives_its_ttl(store: Store) -> None:
    lease = await store.grant(1)
    await put(store, "/l", lease=lease.id)
    async with store.keep_alive(lease):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lease.lost.wait(), 2.2 * lease.ttl)
        assert await store.get("/l") is not None
        await store.revoke(lease)
    assert lease.lost.is_set()


async def test_status_and_statistics(store: Store) -> None:
    revision = await put(store, "/a")
    status = await store.status()
    assert status.revision == revision
    assert status.leader
    assert status.alarms == ()
    assert sum(store.statistics()["calls"].values()) >= 2
