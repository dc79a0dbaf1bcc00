"""The Store on etcd 3.4 and later.

It decides which call of etcd serves which call of the seam; failover is connection.py's, streams are watch.py's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self

from covey.clock import Clock
from manager.store.etcd.connection import DEFAULT_TIMING, OPEN, Access, Connection, Timing
from manager.store.etcd.encode import key_revision, key_value, range_request, txn_request
from manager.store.etcd.leases import Keeper
from manager.store.etcd.stubs import RpcError, grpc, pb
from manager.store.etcd.watch import EtcdWatch
from manager.store.interface import (
    DEFAULT_PAGE,
    Compacted,
    Compare,
    FutureRevision,
    KeyPage,
    KeyValue,
    Lease,
    LeaseLost,
    Operation,
    Page,
    StoreStatus,
    StoreUnavailable,
    TxnResult,
)
from manager.store.limits import check_txn

FENCE_KEY = b"/"
"""Any key does to learn the revision: a linearizable read of one that is not there is the cheapest."""


class EtcdStore:
    """See interface.Store. ``endpoints`` as ``connection.parse_address`` reads them."""

    def __init__(
        self,
        endpoints: Sequence[str],
        access: Access = OPEN,
        timing: Timing = DEFAULT_TIMING,
        clock: Clock | None = None,
    ) -> None:
        self._connection = Connection(endpoints, access, timing, clock)
        self._watches: list[EtcdWatch] = []
        self._keepers: list[Keeper] = []

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._connection.call("kv", "Range", pb.RangeRequest(key=key.encode()))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> Page:
        answer = await self._range(prefix, limit, after_key, revision, keys_only=False)
        return Page(tuple(map(key_value, answer.kvs)), revision or answer.header.revision, answer.more)

    async def keys(self, prefix: str, *, limit: int = DEFAULT_PAGE, after_key: str = "", revision: int = 0) -> KeyPage:
        answer = await self._range(prefix, limit, after_key, revision, keys_only=True)
        return KeyPage(tuple(map(key_revision, answer.kvs)), revision or answer.header.revision, answer.more)

    async def _range(self, prefix: str, limit: int, after_key: str, revision: int, *, keys_only: bool) -> Any:
        request = range_request(prefix, limit, after_key, revision, keys_only)
        return await self._connection.call("kv", "Range", request, revision=revision)

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        check_txn(compares, operations)
        answer = await self._connection.call("kv", "Txn", txn_request(compares, operations), repeatable=False)
        return TxnResult(answer.succeeded, answer.header.revision)

    def watch(self, prefixes: Sequence[str], from_revision: int) -> EtcdWatch:
        return EtcdWatch(self._connection, tuple(prefixes), from_revision, self._watches)

    async def grant(self, ttl: float) -> Lease:
        answer = await self._connection.call("lease", "LeaseGrant", pb.LeaseGrantRequest(TTL=math.ceil(ttl)))
        return Lease(answer.ID, float(answer.TTL))

    def keep_alive(self, lease: Lease) -> AbstractAsyncContextManager[Lease]:
        return self._kept_alive(lease)

    @asynccontextmanager
    async def _kept_alive(self, lease: Lease) -> AsyncIterator[Lease]:
        keeper = Keeper(self._connection, lease)
        self._keepers.append(keeper)
        keeper.start()
        try:
            yield lease
        finally:
            self._keepers.remove(keeper)
            await keeper.stop()

    async def renew(self, lease: Lease) -> float:
        endpoint = self._connection.current
        try:
            await self._connection.connect(endpoint)
            call = endpoint.lease.LeaseKeepAlive(
                iter((pb.LeaseKeepAliveRequest(ID=lease.id),)),
                timeout=self._connection.timing.attempt,
                metadata=endpoint.token,
            )
            answer = await call.read()
            call.cancel()
        except RpcError as error:
            self._connection.fail(endpoint)
            raise StoreUnavailable(
                f"etcd at {endpoint.address} does not renew lease {lease.id:x} ({error.details()}): try again"
            ) from None
        if answer is grpc.aio.EOF or answer.TTL <= 0:
            lease.lost.set()
            raise LeaseLost(f"lease {lease.id:x} has ended: grant a new one and start over")
        return float(answer.TTL)

    async def revoke(self, lease: Lease) -> None:
        try:
            await self._connection.call("lease", "LeaseRevoke", pb.LeaseRevokeRequest(ID=lease.id))
        except LeaseLost:
            pass
        lease.lost.set()

    async def revision(self) -> int:
        answer = await self._connection.call("kv", "Range", pb.RangeRequest(key=FENCE_KEY, count_only=True))
        return int(answer.header.revision)

    async def compact(self, revision: int) -> None:
        try:
            request = pb.CompactionRequest(revision=revision)
            await self._connection.call("kv", "Compact", request, revision=revision)
        except Compacted:
            pass
        except FutureRevision:
            raise FutureRevision(f"etcd has not reached revision {revision}: cannot compact there") from None

    async def status(self) -> StoreStatus:
        answer = await self._connection.call("maintenance", "Status", pb.StatusRequest())
        alarms = await self._connection.call("maintenance", "Alarm", pb.AlarmRequest())
        return StoreStatus(
            endpoint=self._connection.current.address,
            version=answer.version,
            revision=answer.header.revision,
            leader=answer.leader == answer.header.member_id,
            database_bytes=answer.dbSize,
            alarms=tuple(pb.AlarmType.Name(alarm.alarm) for alarm in alarms.alarms),
        )

    def statistics(self) -> dict[str, Any]:
        connection = self._connection
        return {
            "calls": dict(connection.calls),
            "endpoint": connection.current.address,
            "endpoints": {endpoint.address: endpoint.failures for endpoint in connection.endpoints},
            "repeats": connection.repeats,
            "unknown_outcomes": connection.unknown_outcomes,
            "down_since": connection.down_since,
            "watches": [watch.statistics() for watch in self._watches],
            "leases": {f"{keeper.lease.id:x}": keeper.statistics() for keeper in self._keepers},
        }
