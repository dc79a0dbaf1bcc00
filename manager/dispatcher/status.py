"""What workers report, into the store: judged, batched, written while the reporter's session stands.

Pure part: ``judge``. A worker reports only on tasks that are its own, and a task's rank only rises (covey.model.task_states).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from covey.clock import Clock
from covey.model.objects import TaskStatus
from covey.model.task_states import Actor, TaskState, may_move
from manager.store.codec import encode
from manager.store.interface import Compare, Operation, OutcomeUnknown, Put, Store, StoreUnavailable, absent, exists, mod_is
from manager.store.keys import Keys
from manager.store.mirror import Mirror
from scheduler.snapshot import Snapshot

log = logging.getLogger(__name__)

#: Two compares a status, and the session's: within the store's 128.
PER_TXN = 60
RETRY_SECONDS = 0.2


class Verdict(NamedTuple):
    """``write``: (new status, the version it replaces); ``refused``: (task id, why). What is stored already is in neither."""

    write: list[tuple[TaskStatus, int]]
    refused: list[tuple[str, str]]


def fold(statuses: Iterable[TaskStatus]) -> list[TaskStatus]:
    """The last status of each task: several steps may be passed in one write."""
    return list({status.id: status for status in statuses}.values())


def judge(snapshot: Snapshot, node_id: str, statuses: Sequence[TaskStatus]) -> Verdict:
    """What of ``statuses``, at most one a task, is to be written for ``node_id``."""
    verdict = Verdict([], [])
    for status in statuses:
        task, held = snapshot.tasks.get(status.id), snapshot.statuses.get(status.id)
        if task is None or task.node_id != node_id or status.node_id != node_id or task.state < TaskState.ASSIGNED:
            verdict.refused.append((status.id, f"task {status.id} is not assigned to node {node_id}"))
            continue
        if held is None:
            allowed, version = may_move(Actor.WORKER, TaskState.ASSIGNED, status.state), 0
        else:
            if _same(held, status):
                continue
            allowed = status.state == held.state or may_move(Actor.WORKER, held.state, status.state)
            version = held.version
        if allowed:
            verdict.write.append((status, version))
        else:
            old = held.state.label if held else TaskState.ASSIGNED.label
            verdict.refused.append((status.id, f"task {status.id} is {old}: {status.state.label} may not follow"))
    return verdict


def _same(held: TaskStatus, status: TaskStatus) -> bool:
    reported = (name for name in TaskStatus.__struct_fields__ if name not in ("version", "stored_at"))
    return all(getattr(held, name) == getattr(status, name) for name in reported)


class SessionGone(Exception):
    """The reporter's session record is not what it was: another manager may hold the worker now."""


class StatusWriter:
    """Writes for every session of this manager."""

    def __init__(self, store: Store, mirror: Mirror, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._counts = dict.fromkeys(("statuses", "transactions", "lost", "refused"), 0)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start."""
        return dict(self._counts)

    async def store(self, node_id: str, record: Callable[[], int], statuses: Sequence[TaskStatus]) -> list[tuple[str, str]]:
        """Write ``statuses`` (folded) however often it takes; the refused ones with why.

        ``record`` gives the mod_revision of the session record now. Raises SessionGone when the store has another.
        """
        refused: list[tuple[str, str]] = []
        for start in range(0, len(statuses), PER_TXN):
            refused += await self._store_part(node_id, record, statuses[start : start + PER_TXN])
        self._counts["refused"] += len(refused)
        return refused

    async def _store_part(
        self, node_id: str, record: Callable[[], int], statuses: Sequence[TaskStatus]
    ) -> list[tuple[str, str]]:
        while True:
            verdict = judge(self._mirror.snapshot(), node_id, statuses)
            if not verdict.write:
                return verdict.refused
            revision = record()
            compares, operations = self._txn(node_id, revision, verdict)
            try:
                result = await self._store.txn(compares, operations)
                if result.ok:
                    self._counts["transactions"] += 1
                    self._counts["statuses"] += len(verdict.write)
                    return verdict.refused
                self._counts["lost"] += 1
                await self._mirror.wait_revision(result.revision)
            except (OutcomeUnknown, StoreUnavailable) as error:
                log.warning("statuses of node %s not stored yet: %s", node_id, error.message)
                await self._clock.sleep(RETRY_SECONDS)
                await self._settle()
                continue
            self._check_session(node_id, revision, record)

    def _txn(self, node_id: str, revision: int, verdict: Verdict) -> tuple[list[Compare], list[Operation]]:
        compares = [mod_is(self._keys.key("session", node_id), revision)]
        operations: list[Operation] = []
        for status, version in verdict.write:
            key = self._keys.key("task_status", status.id)
            compares += [mod_is(key, version) if version else absent(key), exists(self._keys.key("task", status.id))]
            operations.append(Put(key, encode(self._stamped(status))))
        return compares, operations

    def _stamped(self, status: TaskStatus) -> TaskStatus:
        """With the time at which its state was written down first."""
        held = self._mirror.snapshot().statuses.get(status.id)
        same = held is not None and held.state == status.state and held.stored_at
        return msgspec.structs.replace(status, stored_at=held.stored_at if held and same else self._clock.now())

    async def _settle(self) -> None:
        """See everything that may have been written by an attempt whose answer was lost."""
        try:
            await self._mirror.wait_current()
        except StoreUnavailable:
            pass

    def _check_session(self, node_id: str, revision: int, record: Callable[[], int]) -> None:
        held = self._mirror.objects("session").get(node_id)
        if record() == revision and (held is None or held.version != revision):
            raise SessionGone(f"the session record of node {node_id} is of revision {held.version if held else 0}")
