"""Our shapes to etcd's messages and back. No connection, no errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manager.store.etcd.stubs import kv, pb
from manager.store.interface import (
    Compare,
    Delete,
    EventKind,
    KeyRevision,
    KeyValue,
    Operation,
    Put,
    Relation,
    Target,
    WatchEvent,
)

RELATION: dict[Relation, Any] = {
    Relation.EQUAL: pb.Compare.EQUAL,
    Relation.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Relation.GREATER: pb.Compare.GREATER,
    Relation.LESS: pb.Compare.LESS,
}

TARGET: dict[Target, Any] = {
    Target.MOD: pb.Compare.MOD,
    Target.CREATE: pb.Compare.CREATE,
    Target.VERSION: pb.Compare.VERSION,
    Target.LEASE: pb.Compare.LEASE,
}


def prefix_end(prefix: str) -> bytes:
    """The first key behind all that start with ``prefix``; for the empty one etcd's sign for "to the end"."""
    raw = prefix.encode()
    return raw[:-1] + bytes((raw[-1] + 1,)) if raw else b"\0"


def common_prefix(prefixes: Sequence[str]) -> str:
    """The longest string that all start with: one watch on it keeps the order of revisions over all of them."""
    low, high = min(prefixes), max(prefixes)
    length = next((at for at, char in enumerate(low) if at >= len(high) or high[at] != char), len(low))
    return low[:length]


def range_request(prefix: str, limit: int, after_key: str, revision: int, keys_only: bool) -> Any:
    start = max(prefix.encode() or b"\0", after_key.encode() + b"\0" if after_key else b"")
    return pb.RangeRequest(
        key=start,
        range_end=prefix_end(prefix),
        limit=limit,
        revision=revision,
        keys_only=keys_only,
    )


def txn_request(compares: Sequence[Compare], operations: Sequence[Operation]) -> Any:
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_operation(operation) for operation in operations],
    )


def watch_request(prefixes: Sequence[str], start_revision: int) -> Any:
    prefix = common_prefix(prefixes)
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=prefix.encode() or b"\0",
            range_end=prefix_end(prefix),
            start_revision=start_revision,
            progress_notify=True,
            fragment=True,
        )
    )


def progress_request() -> Any:
    return pb.WatchRequest(progress_request=pb.WatchProgressRequest())


def key_value(message: Any) -> KeyValue:
    return KeyValue(
        message.key.decode(),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def key_revision(message: Any) -> KeyRevision:
    return KeyRevision(message.key.decode(), message.mod_revision)


def watch_event(message: Any) -> WatchEvent:
    kind = EventKind.DELETE if message.type == kv.Event.DELETE else EventKind.PUT
    return WatchEvent(kind, key_value(message.kv))


def _compare(compare: Compare) -> Any:
    return pb.Compare(
        key=compare.key.encode(),
        target=TARGET[compare.target],
        result=RELATION[compare.relation],
        **{compare.target.value: compare.number},
    )


def _operation(operation: Operation) -> Any:
    if isinstance(operation, Put):
        put = pb.PutRequest(key=operation.key.encode(), value=operation.value, lease=operation.lease)
        return pb.RequestOp(request_put=put)
    if isinstance(operation, Delete):
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=operation.key.encode()))
    prefix = operation.prefix
    doomed = pb.DeleteRangeRequest(key=prefix.encode() or b"\0", range_end=prefix_end(prefix))
    return pb.RequestOp(request_delete_range=doomed)
