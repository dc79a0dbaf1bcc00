"""What one transaction may be: the limits of the store, checked before it is sent, the same for every store.

It decides sizes and overlaps only; whether compares hold is the store's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager.store.interface import Compare, Delete, DeleteRange, InvalidTxn, Operation, Put, TxnTooLarge

MAX_OPERATIONS = 128
"""Compares, and operations, that one transaction may have (etcd's default --max-txn-ops, which counts each list)."""

MAX_REQUEST_BYTES = 1536 * 1024
"""Bytes of one request (etcd's default --max-request-bytes)."""

OPERATION_OVERHEAD = 48
"""Bytes that framing may add to one compare or operation; the raft entry around them is within the reserve below."""

REQUEST_RESERVE = 4096


def check_txn(compares: Sequence[Compare], operations: Sequence[Operation]) -> None:
    """Refuse what every store would refuse, with numbers. Raises TxnTooLarge or InvalidTxn."""
    for noun, count in (("compares", len(compares)), ("operations", len(operations))):
        if count > MAX_OPERATIONS:
            raise TxnTooLarge(f"transaction has {count} {noun}, the store takes {MAX_OPERATIONS}: split it")
    size = request_bytes(compares, operations)
    if size > MAX_REQUEST_BYTES:
        raise TxnTooLarge(f"transaction is {size} bytes, the store takes {MAX_REQUEST_BYTES}: split it or store less")
    puts: set[str] = set()
    for operation in operations:
        if isinstance(operation, Put):
            if not operation.key:
                raise InvalidTxn("put of an empty key: name the key")
            if operation.key in puts:
                raise InvalidTxn(f"key {operation.key} is put twice in one transaction: put it once")
            puts.add(operation.key)
    for operation in operations:
        _check_delete(operation, puts)


def _check_delete(operation: Operation, puts: set[str]) -> None:
    if isinstance(operation, Delete):
        if not operation.key:
            raise InvalidTxn("delete of an empty key: name the key")
        if operation.key in puts:
            raise InvalidTxn(f"key {operation.key} is put and deleted in one transaction: do one of them")
    elif isinstance(operation, DeleteRange):
        overlap = next((key for key in puts if key.startswith(operation.prefix)), None)
        if overlap is not None:
            raise InvalidTxn(f"key {overlap} is put and deleted (by prefix) in one transaction: do one of them")


def operation_bytes(operation: Operation) -> int:
    """Upper bound of what ``operation`` adds to a request; for a committer that fills transactions."""
    if isinstance(operation, Put):
        return len(operation.key.encode()) + len(operation.value) + OPERATION_OVERHEAD
    if isinstance(operation, Delete):
        return len(operation.key.encode()) + OPERATION_OVERHEAD
    return 2 * len(operation.prefix.encode()) + OPERATION_OVERHEAD


def compare_bytes(compare: Compare) -> int:
    """Upper bound of what ``compare`` adds to a request."""
    return len(compare.key.encode()) + OPERATION_OVERHEAD


def request_bytes(compares: Sequence[Compare], operations: Sequence[Operation]) -> int:
    """Upper bound of the request's size on the wire."""
    return sum(map(compare_bytes, compares)) + sum(map(operation_bytes, operations)) + REQUEST_RESERVE
