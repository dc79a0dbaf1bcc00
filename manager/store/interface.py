"""The Store seam: what a manager may ask of the place where the desired state lives.

It decides the shapes and the errors (limits.py: the limits); it must not know etcd, sockets or clocks. Two stores are
held to it by tests/contract: ``etcd.EtcdStore`` and ``memory.MemoryStore``. Keys are ``str``, values ``bytes``; a
revision is the store's counter of changes, one for all keys; revision 0 in a request means "now".
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from covey.errors import CoveyError, Internal, InvalidArgument, Unavailable

DEFAULT_PAGE = 500


class StoreUnavailable(Unavailable):
    """No endpoint answered in time. Nothing was changed; the call may be repeated."""


class OutcomeUnknown(Unavailable):
    """The connection broke while a transaction was under way: it may have been applied or not. Read, then decide."""


class Compacted(CoveyError):
    """History up to ``revision`` is gone (or the store is not the one it was): list again, then watch from there."""

    status = 503

    def __init__(self, revision: int, message: str = "") -> None:
        super().__init__(message or f"store history up to revision {revision} is compacted: list again, then watch")
        self.revision = revision


class FutureRevision(CoveyError):
    """A revision was asked that the store has not reached; it may have been restored from an older copy."""

    status = 503


class TxnTooLarge(InvalidArgument):
    """A transaction is over the store's limits: split it."""


class InvalidTxn(InvalidArgument):
    """A transaction that no store accepts: an empty key, or one key written twice."""


class LeaseLost(CoveyError):
    """The lease has expired or was revoked, and every key on it is gone: grant a new one and start over."""

    status = 503


class ForeignKey(Internal):
    """A writer touched a key that is not its own (rule 3 of the house); the message names both."""


class KeyValue(NamedTuple):
    """One key at one revision. ``version`` counts its changes since creation; ``lease`` is 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class KeyRevision(NamedTuple):
    """A key without its value: what a resync compares."""

    key: str
    mod_revision: int


class Page(NamedTuple):
    """Part of a range in key order. Pass ``after_key=items[-1].key`` and ``revision`` for the next while ``more``."""

    items: tuple[KeyValue, ...]
    revision: int
    more: bool


class KeyPage(NamedTuple):
    """As Page, keys and mod_revisions only."""

    items: tuple[KeyRevision, ...]
    revision: int
    more: bool


class Target(enum.Enum):
    """The field of a key that a compare reads; of an absent key each is 0."""

    MOD = "mod_revision"
    CREATE = "create_revision"
    VERSION = "version"
    LEASE = "lease"


class Relation(enum.Enum):
    """How a compare relates the key's field to its number."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


class Compare(NamedTuple):
    """One condition of a transaction. Use the functions below to make one."""

    key: str
    target: Target
    relation: Relation
    number: int


def mod_is(key: str, revision: int) -> Compare:
    """The key was last changed at ``revision`` (0: it is absent)."""
    return Compare(key, Target.MOD, Relation.EQUAL, revision)


def created_at(key: str, revision: int) -> Compare:
    """The key was created at ``revision``: the fence of a leader."""
    return Compare(key, Target.CREATE, Relation.EQUAL, revision)


def exists(key: str) -> Compare:
    """The key is there."""
    return Compare(key, Target.CREATE, Relation.GREATER, 0)


def absent(key: str) -> Compare:
    """The key is not there: the compare of a create."""
    return Compare(key, Target.CREATE, Relation.EQUAL, 0)


def lease_is(key: str, lease: int) -> Compare:
    """The key hangs on ``lease``; absent counts as lease 0."""
    return Compare(key, Target.LEASE, Relation.EQUAL, lease)


class Put(NamedTuple):
    """Write a value. ``lease`` 0 takes the key off any lease it hung on."""

    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """Remove a key; of a missing one nothing happens."""

    key: str


class DeleteRange(NamedTuple):
    """Remove every key that starts with ``prefix``."""

    prefix: str


Operation = Put | Delete | DeleteRange


class TxnResult(NamedTuple):
    """``ok``: all compares held and all operations were applied at ``revision``. Else nothing was, as of ``revision``."""

    ok: bool
    revision: int


class EventKind(enum.Enum):
    PUT = "put"
    DELETE = "delete"


class WatchEvent(NamedTuple):
    """A key was written or removed. Of a removal ``item`` holds key and mod_revision only, the rest is empty."""

    kind: EventKind
    item: KeyValue


class WatchBatch(NamedTuple):
    """Every event of the watched prefixes up to ``revision`` has now been given; no events: progress only.

    The events of one revision are never split over two batches.
    """

    revision: int
    events: tuple[WatchEvent, ...]


class Lease:
    """A claim of ``ttl`` seconds, as granted, that ends unless renewed.

    ``lost`` is set once it is gone, or could be gone for all we know.
    """

    def __init__(self, id: int, ttl: float) -> None:
        self.id = id
        self.ttl = ttl
        self.lost = asyncio.Event()


class Watch(Protocol):
    """A running watch: ``async with store.watch(...) as watch: async for batch in watch``.

    It reconnects by itself and goes on after the last batch. Raises Compacted when it cannot.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> WatchBatch: ...

    def ask_progress(self) -> None:
        """Ask for a batch that says how far the watch is; it comes when the store can vouch for it, maybe later."""


class StoreStatus(NamedTuple):
    """What the answering endpoint says of itself. ``database_bytes`` is 0 where it has no meaning."""

    endpoint: str
    version: str
    revision: int
    leader: bool
    database_bytes: int
    alarms: tuple[str, ...]


class Store(Protocol):
    """The seam itself. Every call may raise StoreUnavailable; only ``txn`` may raise OutcomeUnknown."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def get(self, key: str) -> KeyValue | None:
        """The key now (linearizable), or None."""

    async def range(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> Page:
        """One page of the keys that start with ``prefix``, in order, after ``after_key``, as of ``revision``.

        Raises Compacted or FutureRevision when ``revision`` cannot be read.
        """

    async def keys(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> KeyPage:
        """As ``range``, without values."""

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        """Apply ``operations`` at one new revision if every compare holds.

        An operation list that changes nothing (all deletes of missing keys) is ok and makes no revision. Raises
        TxnTooLarge, InvalidTxn, LeaseLost (a put on a lease that is gone) and OutcomeUnknown.
        """

    def watch(self, prefixes: Sequence[str], from_revision: int) -> Watch:
        """Every change at ``from_revision`` (at least 1) or later of keys that start with one of ``prefixes``."""

    async def grant(self, ttl: float) -> Lease:
        """A new lease of at least ``ttl`` seconds; nothing renews it yet."""

    def keep_alive(self, lease: Lease) -> AbstractAsyncContextManager[Lease]:
        """Renew ``lease`` in the background while inside, independent of what the event loop is busy with."""

    async def renew(self, lease: Lease) -> float:
        """Renew once; seconds until it would end. Raises LeaseLost."""

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove its keys; of one that is gone nothing happens."""

    async def revision(self) -> int:
        """The store's revision now, linearizable: every transaction that was acknowledged before is at or below it."""

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``; already compacted is fine. Raises FutureRevision."""

    async def status(self) -> StoreStatus:
        """Ask the endpoint how it is."""

    def statistics(self) -> dict[str, Any]:
        """Counters since the start; costs nothing, touches no network."""
