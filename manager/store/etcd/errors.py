"""What an etcd error means for us: a table from status code and text to an error of the seam.

It decides whether a failed call may have been applied and whether another endpoint could do better. Texts are those of
etcd's api/v3rpc/rpctypes/error.go (3.4 to 3.6) and of gRPC's own client.
"""

from __future__ import annotations

import enum
from typing import Any

from covey.errors import CoveyError
from manager.store.etcd.stubs import Code, RpcError
from manager.store.interface import Compacted, FutureRevision, InvalidTxn, LeaseLost, StoreUnavailable, TxnTooLarge


class Fate(enum.Enum):
    """What became of a failed call."""

    UNTOUCHED = "the store did not do it; another endpoint or moment may"
    UNKNOWN = "the store may have done it"
    TOKEN = "not done: the login has run out"
    REFUSED = "the store will never do it"


UNTOUCHED_TEXTS = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
)
"""An UNAVAILABLE or RESOURCE_EXHAUSTED with one of these came before the request reached the log."""

TOKEN_TEXTS = ("invalid auth token", "revision of auth store is old", "user name is empty")

BROKEN_CODES = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNKNOWN, Code.INTERNAL, Code.CANCELLED, Code.ABORTED)


def fate_of(error: Any) -> Fate:
    """Sort an AioRpcError."""
    code, text = error.code(), error.details() or ""
    if any(known in text for known in TOKEN_TEXTS):
        return Fate.TOKEN
    if code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED) and any(known in text for known in UNTOUCHED_TEXTS):
        return Fate.UNTOUCHED
    return Fate.UNKNOWN if code in BROKEN_CODES else Fate.REFUSED


def refusal(error: Any, call: str, revision: int = 0) -> CoveyError:
    """The seam's error for a REFUSED call; ``revision`` is the one that was asked for."""
    code, text = error.code(), error.details() or ""
    if code is Code.OUT_OF_RANGE:
        if "compacted" in text:
            return Compacted(revision)
        return FutureRevision(f"etcd has not reached revision {revision} ({text}): was it restored from a copy? List again")
    if code is Code.NOT_FOUND and "lease" in text:
        return LeaseLost(f"lease is gone ({text}): grant a new one and start over")
    if "too large" in text or "too many operations" in text or "larger than max" in text:
        return TxnTooLarge(f"etcd refused {call}: {text}: split the transaction or store less")
    if "database space exceeded" in text:
        return StoreUnavailable(f"etcd refused {call}: {text}: compact and defragment it, then disarm its alarm")
    if code is Code.INVALID_ARGUMENT:
        return InvalidTxn(f"etcd refused {call}: {text}")
    if code in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED):
        return StoreUnavailable(f"etcd refused {call}: {text}: check the store's user, password and role")
    return StoreUnavailable(f"etcd refused {call}: {code.name} {text}: see etcd's log")


__all__ = ["Fate", "RpcError", "fate_of", "refusal"]
