"""A Store in the hands of one writer: a transaction that touches another writer's key is refused before it is sent.

It decides nothing but that; the table is keys.py's. Compares and reads may name any key.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from manager.store.interface import (
    DEFAULT_PAGE,
    Compare,
    ForeignKey,
    KeyPage,
    KeyValue,
    Lease,
    Operation,
    Page,
    Put,
    Store,
    StoreStatus,
    TxnResult,
    Watch,
)
from manager.store.keys import Keys, Writer


class WriterStore:
    """See interface.Store; writes as ``writer`` only. Entering and leaving it does not touch ``store``."""

    def __init__(self, store: Store, writer: Writer, keys: Keys) -> None:
        self._store = store
        self._writer = writer
        self._keys = keys

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        """As Store.txn; raises ForeignKey too."""
        for operation in operations:
            self._check(operation)
        return await self._store.txn(compares, operations)

    def _check(self, operation: Operation) -> None:
        allowed = self._keys.may_put if isinstance(operation, Put) else self._keys.may_delete
        if not allowed(self._writer, operation[0]):
            owner = self._keys.rule_of_prefix(operation[0]).writer
            verb = "write" if isinstance(operation, Put) else "remove"
            raise ForeignKey(f"{self._writer} may not {verb} key {operation[0]}: it belongs to {owner} (manager/store/keys.py)")

    async def get(self, key: str) -> KeyValue | None:
        return await self._store.get(key)

    async def range(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> Page:
        return await self._store.range(prefix, limit=limit, after_key=after_key, revision=revision)

    async def keys(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> KeyPage:
        return await self._store.keys(prefix, limit=limit, after_key=after_key, revision=revision)

    def watch(self, prefixes: Sequence[str], from_revision: int) -> Watch:
        return self._store.watch(prefixes, from_revision)

    async def grant(self, ttl: float) -> Lease:
        return await self._store.grant(ttl)

    def keep_alive(self, lease: Lease) -> AbstractAsyncContextManager[Lease]:
        return self._store.keep_alive(lease)

    async def renew(self, lease: Lease) -> float:
        return await self._store.renew(lease)

    async def revoke(self, lease: Lease) -> None:
        await self._store.revoke(lease)

    async def revision(self) -> int:
        return await self._store.revision()

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def status(self) -> StoreStatus:
        return await self._store.status()

    def statistics(self) -> dict[str, Any]:
        return self._store.statistics()
