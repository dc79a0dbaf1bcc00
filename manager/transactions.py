"""Groups of writes → transactions that fit the store, each fenced. Pure: the committer runs them, the simulation may too.

A group is never split. A transaction compares the leader key's create_revision (the fence: a deposed leader writes nothing)
and the mod_revision of every object it touches (a stale plan writes nothing).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from covey.errors import Internal
from manager.store.codec import encode
from manager.store.interface import Compare, Delete, Operation, Put, absent, created_at, mod_is
from manager.store.keys import Keys
from manager.store.limits import (
    MAX_OPERATIONS,
    MAX_REQUEST_BYTES,
    REQUEST_RESERVE,
    compare_bytes,
    operation_bytes,
)
from scheduler.writes import Group, Write


class Txn(NamedTuple):
    """One transaction: all of ``operations`` if every one of ``compares`` holds. ``groups``: how many it carries."""

    compares: tuple[Compare, ...]
    operations: tuple[Operation, ...]
    groups: int
    cause: str


def fence(keys: Keys, create_revision: int) -> Compare:
    """The compare that only the leader elected at ``create_revision`` passes."""
    return created_at(keys.key("leader"), create_revision)


def conditions(write: Write, keys: Keys) -> tuple[Compare, Operation]:
    """What one write expects to find, and what it does."""
    key = keys.key(write.kind, write.id)
    expected = mod_is(key, write.expected_version) if write.expected_version else absent(key)
    return expected, Delete(key) if write.value is None else Put(key, encode(write.value))


def transactions(groups: Iterable[Group], fenced: Compare, keys: Keys) -> Iterator[Txn]:
    """Transactions that together write ``groups``, in order, each as full as the store's limits allow.

    A key that two groups touch is left to a later transaction of its own: within one it could be put only once. Values are
    encoded as the iterator is drawn. Raises Internal for a group that no transaction can hold.
    """
    compares: list[Compare] = [fenced]
    operations: list[Operation] = []
    touched: set[str] = set()
    base = REQUEST_RESERVE + compare_bytes(fenced)
    size, count, cause = base, 0, ""
    for group in groups:
        pairs = [conditions(write, keys) for write in group.writes]
        guards = [absent(keys.key(kind, object_id)) for kind, object_id in group.absent]
        asked = [*(compare for compare, _ in pairs), *guards]
        grown = sum(map(compare_bytes, asked)) + sum(operation_bytes(operation) for _, operation in pairs)
        if len(asked) + 1 > MAX_OPERATIONS or base + grown > MAX_REQUEST_BYTES:
            raise Internal(
                f"a group of {len(pairs)} writes and {grown} bytes ({group.cause}) is larger than one transaction can be"
            )
        full = len(compares) + len(asked) > MAX_OPERATIONS or size + grown > MAX_REQUEST_BYTES
        if operations and (full or any(compare.key in touched for compare in asked)):
            yield Txn(tuple(compares), tuple(operations), count, cause)
            compares, operations, touched, size, count = [fenced], [], set(), base, 0
        compares += asked
        operations += [operation for _, operation in pairs]
        touched.update(compare.key for compare in asked)
        size, count, cause = size + grown, count + 1, cause if count else group.cause
    if operations:
        yield Txn(tuple(compares), tuple(operations), count, cause)
