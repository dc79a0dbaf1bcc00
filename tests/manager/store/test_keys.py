"""The table of keys and single writers, and the store that holds writers to it."""

from __future__ import annotations

import pytest

from covey.errors import InvalidArgument, NotFound
from covey.model.objects import KINDS
from manager.store.interface import Delete, DeleteRange, ForeignKey, Put, exists
from manager.store.keys import TABLE, Keys, Writer
from manager.store.memory import MemoryStore
from manager.store.writer import WriterStore

KEYS = Keys()


def test_every_kind_of_object_has_one_row() -> None:
    assert set(TABLE) == set(KINDS)


@pytest.mark.parametrize("kind", TABLE)
def test_a_key_is_taken_apart_as_it_was_built(kind: str) -> None:
    id = "" if TABLE[kind].single else "abc123"
    key = KEYS.key(kind, id)
    assert KEYS.parse(key) == (kind, id)
    assert KEYS.writer_of(key) is TABLE[kind].writer
    assert key.startswith(KEYS.prefix(kind))
    assert KEYS.object_id(key) == (kind, id or kind)


def test_no_prefix_covers_another_kind() -> None:
    keys = {kind: KEYS.key(kind, "" if TABLE[kind].single else "x") for kind in TABLE}
    for kind in TABLE:
        assert [other for other, key in keys.items() if key.startswith(KEYS.prefix(kind))] == [kind]


@pytest.mark.parametrize("name", ["web", "a/b", "ünï", "50%", "..", "a b"])
def test_any_name_can_be_a_key(name: str) -> None:
    key = KEYS.name("service", name)
    assert key.count("/") == 4
    assert KEYS.parse_name(key) == ("service", name)
    assert KEYS.writer_of(key) is Writer.API


@pytest.mark.parametrize(
    "key",
    [
        "/other/task/x",
        "/covey",
        "/covey/",
        "/covey/task",
        "/covey/task/",
        "/covey/leader/x",
        "/covey/leaders",
        "/coveyx/task/1",
    ],
)
def test_a_foreign_key_is_not_ours(key: str) -> None:
    assert not KEYS.knows(key)
    with pytest.raises(NotFound, match="keys"):
        KEYS.parse(key)


def test_ids_and_roots_that_cannot_be() -> None:
    for kind, id in (("task", ""), ("task", "a/b"), ("leader", "x"), ("nothing", "x"), ("task", "a\0")):
        with pytest.raises(InvalidArgument):
            KEYS.key(kind, id)
    for root in ("covey", "/covey/", "/"):
        with pytest.raises(InvalidArgument, match="root"):
            Keys(root)
    assert Keys("/a/b").parse("/a/b/task/x") == ("task", "x")


@pytest.mark.asyncio
async def test_a_writer_writes_its_own_keys_only() -> None:
    async with MemoryStore() as inner:
        stores = {writer: WriterStore(inner, writer, KEYS) for writer in Writer}
        for kind, rule in TABLE.items():
            key = KEYS.key(kind, "" if rule.single else "x")
            for writer, store in stores.items():
                if writer in (rule.writer, rule.rollback):
                    assert (await store.txn([], [Put(key, b"")])).ok
                else:
                    with pytest.raises(ForeignKey, match=f"{writer} may not write key {key}: it belongs to {rule.writer}"):
                        await store.txn([], [Put(key, b"")])
                if writer is rule.writer:
                    continue
                if writer is rule.reaper:
                    assert (await store.txn([exists(key)], [Delete(key)])).ok
                    assert (await store.txn([], [DeleteRange(KEYS.prefix(kind))])).ok
                    continue
                with pytest.raises(ForeignKey, match="may not remove"):
                    await store.txn([], [Delete(key)])
        with pytest.raises(NotFound):
            await stores[Writer.LEADER].txn([], [DeleteRange("/covey/")])
        with pytest.raises(NotFound):
            await stores[Writer.LEADER].txn([], [Put("/elsewhere", b"")])
