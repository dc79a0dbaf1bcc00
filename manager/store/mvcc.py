"""A store as a plain data structure: keys with revisions, history, leases, with etcd's semantics.

It decides what a transaction does; it is synchronous and deterministic, is told the time (seconds of any steady clock)
and knows neither tasks nor faults: memory.py wraps it as a Store, the simulation may hold it directly.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from manager.store.interface import (
    Compacted,
    Compare,
    Delete,
    DeleteRange,
    EventKind,
    FutureRevision,
    KeyValue,
    LeaseLost,
    Operation,
    Put,
    Relation,
    Target,
    TxnResult,
    WatchEvent,
)
from manager.store.limits import check_txn

FIRST_REVISION = 1

HOLDS: dict[Relation, Callable[[int, int], bool]] = {
    Relation.EQUAL: lambda mine, number: mine == number,
    Relation.NOT_EQUAL: lambda mine, number: mine != number,
    Relation.GREATER: lambda mine, number: mine > number,
    Relation.LESS: lambda mine, number: mine < number,
}

FIELD: dict[Target, Callable[[KeyValue], int]] = {
    Target.MOD: lambda item: item.mod_revision,
    Target.CREATE: lambda item: item.create_revision,
    Target.VERSION: lambda item: item.version,
    Target.LEASE: lambda item: item.lease,
}


@dataclass
class _Claim:
    """A lease: it ends at ``deadline`` and takes ``keys`` with it."""

    ttl: float
    deadline: float
    keys: set[str] = field(default_factory=set)


class Database:
    """Keys, their history since the last compaction, and leases.

    ``changed`` callbacks run after every new revision or compaction; they must not call back in.
    """

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self.compacted = 0
        self.changed: list[Callable[[], None]] = []
        self._now: dict[str, KeyValue] = {}
        self._order: list[str] = []
        self._history: list[tuple[int, tuple[WatchEvent, ...]]] = []
        self._versions: dict[str, list[KeyValue]] = {}
        self._leases: dict[int, _Claim] = {}
        self._next_lease = 1

    def get(self, key: str) -> KeyValue | None:
        return self._now.get(key)

    def range(self, prefix: str, limit: int, after_key: str, revision: int) -> tuple[list[KeyValue], bool]:
        """Up to ``limit`` (0: all) keys in order as of ``revision`` (0: now), and whether there are more."""
        self._check_readable(revision)
        found: list[KeyValue] = []
        for key in self._keys_from(max(prefix, after_key)):
            if not key.startswith(prefix):
                break
            item = self._at(key, revision)
            if item is None or key <= after_key:
                continue
            if limit and len(found) == limit:
                return found, True
            found.append(item)
        return found, False

    def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        """As Store.txn, without the outcome ever being unknown."""
        check_txn(compares, operations)
        if not all(self._holds(compare) for compare in compares):
            return TxnResult(False, self.revision)
        for operation in operations:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise LeaseLost(f"lease {operation.lease:x} of key {operation.key} is gone: grant a new one")
        revision = self.revision + 1
        events = [event for operation in operations for event in self._apply(operation, revision)]
        self._commit(events)
        return TxnResult(True, self.revision)

    def history(self, prefixes: Sequence[str], from_revision: int, most: int) -> list[tuple[int, list[WatchEvent]]]:
        """(revision, events of ``prefixes``, perhaps none) of up to ``most`` revisions from ``from_revision`` on."""
        if from_revision < self.compacted:
            raise Compacted(self.compacted)
        start = bisect.bisect_left(self._history, from_revision, key=lambda entry: entry[0])
        wanted = tuple(prefixes)
        return [
            (revision, [event for event in events if event.item.key.startswith(wanted)])
            for revision, events in self._history[start : start + most]
        ]

    def compact(self, revision: int) -> None:
        """Forget versions that ``revision`` no longer shows, and events below it."""
        if revision > self.revision:
            raise FutureRevision(f"store is at revision {self.revision}: cannot compact at {revision}")
        if revision <= self.compacted:
            return
        self.compacted = revision
        self._history = [entry for entry in self._history if entry[0] >= revision]
        for key, versions in list(self._versions.items()):
            shown = bisect.bisect_right(versions, revision, key=lambda item: item.mod_revision) - 1
            first = max(shown, 0)
            if shown >= 0 and versions[shown].version == 0:
                first += 1
            self._versions[key] = versions[first:]
            if not self._versions[key]:
                del self._versions[key]
                self._order.pop(bisect.bisect_left(self._order, key))
        self._notify()

    def grant(self, ttl: float, now: float) -> int:
        """The id of a new lease that ends ``ttl`` seconds after ``now``."""
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease] = _Claim(ttl, now + ttl)
        return lease

    def renew(self, lease: int, now: float) -> float:
        """Seconds the lease now has. Raises LeaseLost."""
        claim = self._leases.get(lease)
        if claim is None:
            raise LeaseLost(f"lease {lease:x} has ended: grant a new one")
        claim.deadline = now + claim.ttl
        return claim.ttl

    def revoke(self, lease: int) -> None:
        """End the lease; its keys go in one revision."""
        claim = self._leases.pop(lease, None)
        if claim is None:
            return
        revision = self.revision + 1
        self._commit([event for key in sorted(claim.keys) for event in self._remove(key, revision)])

    def expire(self, now: float) -> None:
        """End every lease whose time is over, the earliest first."""
        over = sorted((claim.deadline, lease) for lease, claim in self._leases.items() if claim.deadline <= now)
        for _, lease in over:
            self.revoke(lease)

    def next_expiry(self) -> float | None:
        """When the next lease ends if nothing renews it."""
        return min((claim.deadline for claim in self._leases.values()), default=None)

    def size(self) -> tuple[int, int, int]:
        """(keys, versions kept, leases)."""
        return len(self._now), sum(map(len, self._versions.values())), len(self._leases)

    def _keys_from(self, key: str) -> Iterator[str]:
        for at in range(bisect.bisect_left(self._order, key), len(self._order)):
            yield self._order[at]

    def _check_readable(self, revision: int) -> None:
        if revision > self.revision:
            raise FutureRevision(f"store is at revision {self.revision}: cannot read at {revision}")
        if revision and revision < self.compacted:
            raise Compacted(self.compacted)

    def _at(self, key: str, revision: int) -> KeyValue | None:
        if not revision:
            return self._now.get(key)
        versions = self._versions[key]
        at = bisect.bisect_right(versions, revision, key=lambda item: item.mod_revision) - 1
        return versions[at] if at >= 0 and versions[at].version else None

    def _holds(self, compare: Compare) -> bool:
        item = self._now.get(compare.key)
        mine = FIELD[compare.target](item) if item is not None else 0
        return HOLDS[compare.relation](mine, compare.number)

    def _apply(self, operation: Operation, revision: int) -> list[WatchEvent]:
        if isinstance(operation, Put):
            return [self._put(operation, revision)]
        if isinstance(operation, Delete):
            return self._remove(operation.key, revision)
        assert isinstance(operation, DeleteRange)
        doomed = [item.key for item in self.range(operation.prefix, 0, "", 0)[0]]
        return [event for key in doomed for event in self._remove(key, revision)]

    def _put(self, put: Put, revision: int) -> WatchEvent:
        old = self._now.get(put.key)
        if old is not None and old.lease in self._leases:
            self._leases[old.lease].keys.discard(put.key)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        item = KeyValue(
            put.key,
            put.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            put.lease,
        )
        self._now[put.key] = item
        self._remember(item)
        return WatchEvent(EventKind.PUT, item)

    def _remove(self, key: str, revision: int) -> list[WatchEvent]:
        old = self._now.pop(key, None)
        if old is None:
            return []
        if old.lease in self._leases:
            self._leases[old.lease].keys.discard(key)
        gone = KeyValue(key, b"", 0, revision, 0, 0)
        self._remember(gone)
        return [WatchEvent(EventKind.DELETE, gone)]

    def _remember(self, item: KeyValue) -> None:
        if item.key not in self._versions:
            self._versions[item.key] = []
            bisect.insort(self._order, item.key)
        self._versions[item.key].append(item)

    def _commit(self, events: list[WatchEvent]) -> None:
        if events:
            self.revision += 1
            self._history.append((self.revision, tuple(events)))
            self._notify()

    def _notify(self) -> None:
        for callback in self.changed:
            callback()
