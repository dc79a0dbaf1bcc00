"""What workers report, into the store: judged, batched, written while the reporter's session stands.

Reports of many sessions share transactions: what comes while others are on their way waits for the next. A transaction that
is lost says nothing of any one of them, so each of its reporters goes on alone. Pure part: ``judge``. A worker reports only on
tasks that are its own, and a task's rank only rises (covey.model.task_states).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from covey.clock import Clock
from covey.errors import CoveyError
from covey.model.objects import TaskStatus
from covey.model.task_states import Actor, TaskState, may_move
from manager.store.codec import encode
from manager.store.interface import Compare, Operation, OutcomeUnknown, Put, Store, StoreUnavailable, absent, exists, mod_is
from manager.store.keys import Keys
from manager.store.limits import MAX_OPERATIONS
from manager.store.mirror import Mirror
from scheduler.snapshot import Snapshot

log = logging.getLogger(__name__)

#: Two compares a status, and the session's: within the store's 128.
PER_TXN = 60
#: Shared transactions on their way at once; what is reported meanwhile waits to share the next.
IN_FLIGHT = 6
RETRY_SECONDS = 0.2

#: (task id, why).
Refusals = list[tuple[str, str]]


class Verdict(NamedTuple):
    """``write``: (new status, the version it replaces); ``refused``. What is stored already is in neither."""

    write: list[tuple[TaskStatus, int]]
    refused: Refusals


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


class _Report(NamedTuple):
    """A part of what a session reports. ``outcome``: the refused ones once stored, None when it must be written alone."""

    node_id: str
    record: Callable[[], int]
    statuses: Sequence[TaskStatus]
    outcome: asyncio.Future[Refusals | None]


class StatusWriter:
    """Writes for every session of this manager; transactions are shared while ``run`` runs."""

    def __init__(self, store: Store, mirror: Mirror, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._counts = dict.fromkeys(("statuses", "transactions", "lost", "refused"), 0)
        self._busy = 0.0
        self._waiting: deque[_Report] = deque()
        self._arrived = asyncio.Event()
        self._shares = False

    async def run(self) -> None:
        """Write what sessions report, many in one transaction, until cancelled."""
        flight = asyncio.Semaphore(IN_FLIGHT)
        self._shares = True
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._arrived.wait()
                    await flight.acquire()
                    group.create_task(self._write_shared(self._draw(), flight))
        finally:
            self._shares = False
            while self._waiting:
                _settle(self._waiting.popleft(), None)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start; ``busy_seconds``: what judging and encoding took on the event loop."""
        return {**self._counts, "busy_seconds": round(self._busy, 4)}

    async def store(self, node_id: str, record: Callable[[], int], statuses: Sequence[TaskStatus]) -> Refusals:
        """Write ``statuses`` (folded) however often it takes; the refused ones with why.

        ``record`` gives the mod_revision of the session record now. Raises SessionGone when the store has another.
        """
        refused: Refusals = []
        for start in range(0, len(statuses), PER_TXN):
            refused += await self._store_part(node_id, record, statuses[start : start + PER_TXN])
        self._counts["refused"] += len(refused)
        return refused

    def _draw(self) -> list[_Report]:
        """Reports that have waited longest and fit one transaction; those nobody waits for any more are dropped."""
        drawn: list[_Report] = []
        room = MAX_OPERATIONS
        while self._waiting:
            report = self._waiting[0]
            asked = 1 + 2 * len(report.statuses)
            if report.outcome.done():
                self._waiting.popleft()
            elif asked <= room:
                drawn.append(self._waiting.popleft())
                room -= asked
            else:
                break
        if not self._waiting:
            self._arrived.clear()
        return drawn

    async def _write_shared(self, reports: list[_Report], flight: asyncio.Semaphore) -> None:
        """One transaction for all of ``reports``; without success each is left to its reporter."""
        try:
            began = self._clock.monotonic()
            snapshot = self._mirror.snapshot()
            verdicts = [judge(snapshot, report.node_id, report.statuses) for report in reports]
            compares: list[Compare] = []
            operations: list[Operation] = []
            for report, verdict in zip(reports, verdicts, strict=True):
                if verdict.write:
                    asked, puts = self._txn(report.node_id, report.record(), verdict)
                    compares += asked
                    operations += puts
            self._busy += self._clock.monotonic() - began
            if operations:
                result = await self._store.txn(compares, operations)
                self._counts["transactions" if result.ok else "lost"] += 1
                if not result.ok:
                    return
            for report, verdict in zip(reports, verdicts, strict=True):
                self._counts["statuses"] += len(verdict.write)
                _settle(report, verdict.refused)
        except CoveyError as error:
            log.info("statuses of %d nodes are written one node at a time: %s", len(reports), error.message)
        finally:
            flight.release()
            for report in reports:
                _settle(report, None)

    async def _store_part(self, node_id: str, record: Callable[[], int], statuses: Sequence[TaskStatus]) -> Refusals:
        if self._shares:
            report = _Report(node_id, record, statuses, asyncio.get_running_loop().create_future())
            self._waiting.append(report)
            self._arrived.set()
            refused = await report.outcome
            if refused is not None:
                return refused
        return await self._store_alone(node_id, record, statuses)

    async def _store_alone(self, node_id: str, record: Callable[[], int], statuses: Sequence[TaskStatus]) -> Refusals:
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
                await self._catch_up()
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

    async def _catch_up(self) -> None:
        """See everything that may have been written by an attempt whose answer was lost."""
        try:
            await self._mirror.wait_current()
        except StoreUnavailable:
            pass

    def _check_session(self, node_id: str, revision: int, record: Callable[[], int]) -> None:
        held = self._mirror.objects("session").get(node_id)
        if record() == revision and (held is None or held.version != revision):
            raise SessionGone(f"the session record of node {node_id} is of revision {held.version if held else 0}")


def _settle(report: _Report, refused: Refusals | None) -> None:
    """Tell the reporter, unless it was told or has gone."""
    if not report.outcome.done():
        report.outcome.set_result(refused)
