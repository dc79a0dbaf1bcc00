"""Bugs to be planted: each a small patch of the real code, as somebody might write it by mistake. The simulation must
find every one of them; that is what its oracles are measured by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import msgspec

from covey.model.task_states import TaskState
from manager import committer, leader, loops, transactions
from manager.dispatcher import dispatcher, status
from manager.dispatcher.session import Session
from manager.store.interface import exists
from manager.store.mirror import Mirror
from scheduler import passes, restart, rollout, update_status, writes
from scheduler.allocation import hosts
from scheduler.placement.capacity import Capacity
from scheduler.reconcile import slots
from scheduler.restart import Verdict
from scheduler.settings import Settings
from scheduler.writes import Group
from worker.agent.machine import AgentMachine
from worker.agent.vocabulary import Found

Plant = Callable[[], AbstractContextManager[Any]]


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> AbstractContextManager[Any]:
    """``owner.name`` becomes what ``make`` makes of it."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def no_fence() -> AbstractContextManager[Any]:
    """The leader's transactions do not compare the leader key."""
    return replace(committer, "fence", lambda real: lambda keys, revision: exists(keys.key("cluster")))


@contextmanager
def rank_falls() -> Iterator[None]:
    """A worker that comes back reports anew from the start, and the manager writes down whatever it is told."""

    def reunite(real: Any) -> Any:
        def forgetful(self: AgentMachine, held: Any, found: Found | None) -> None:
            real(self, held, found)
            if found is not None and held.state == TaskState.RUNNING:
                held.record = msgspec.structs.replace(
                    held.record, status=msgspec.structs.replace(held.status, state=TaskState.STARTING)
                )

        return forgetful

    with replace(AgentMachine, "_reunite", reunite), replace(status, "may_move", lambda real: lambda *args: True):
        yield


def double_start_after_crash() -> AbstractContextManager[Any]:
    """An agent that comes back and misses a container makes it again."""

    def wrap(real: Any) -> Any:
        def reunite(self: AgentMachine, held: Any, found: Found | None) -> None:
            if found is None and held.record.started and held.state == TaskState.RUNNING:
                held.record = msgspec.structs.replace(
                    held.record,
                    started=False,
                    status=msgspec.structs.replace(held.status, state=TaskState.ACCEPTED, container_id=""),
                )
            real(self, held, found)

        return reunite

    return replace(AgentMachine, "_reunite", wrap)


@contextmanager
def stale_mirror() -> Iterator[None]:
    """The mirror loses a batch now and then, and never compares itself with the store."""
    batches = iter(range(1 << 30))

    def take(real: Any) -> Any:
        def lose(self: Mirror, batch: Any) -> None:
            if next(batches) % 211 == 210:
                batch = batch._replace(events=())
            real(self, batch)

        return lose

    async def nothing(self: Mirror) -> None:
        return

    with replace(Mirror, "_take", take), mock.patch.object(Mirror, "_resync", nothing):
        yield


@contextmanager
def lost_assignment() -> Iterator[None]:
    """A session is now and then not told that something changed."""
    calls = iter(range(1 << 30))

    def wrap(real: Any) -> Any:
        def touch(self: Session, cause: str) -> None:
            if next(calls) % 19 != 18:
                real(self, cause)

        return touch

    with replace(Session, "touch", wrap):
        yield


def split_transaction() -> AbstractContextManager[Any]:
    """A successor and the end of its predecessor are written one after the other."""

    def wrap(real: Any) -> Any:
        def apart(plan: Any, snapshot: Any, now: float) -> Iterator[Group]:
            for group in real(plan, snapshot, now):
                for write in group.writes:
                    yield Group((write,), group.cause)

        return apart

    def alone(real: Any) -> Any:
        def transactions(groups: Any, fenced: Any, keys: Any) -> Any:
            for group in groups:
                yield from real([group], fenced, keys)

        return transactions

    stack = ExitStack()
    stack.enter_context(replace(passes, "groups", wrap))
    stack.enter_context(replace(committer, "transactions", alone))
    return stack


def torn_pass() -> AbstractContextManager[Any]:
    """A pass that gives a new task its node forgets what was to be written together with that task."""

    def wrap(real: Any) -> Any:
        def join(self: passes._Batch, touched: Any, group: Group) -> Group:
            joined: Group = real(self, touched, group)
            named = {write.id for write in group.writes}
            return joined._replace(writes=tuple(write for write in joined.writes if write.id in named))

        return join

    return replace(passes._Batch, "_join", wrap)


@contextmanager
def stalled_manager() -> Iterator[None]:
    """A manager takes the time it was stalled itself for the silence of its workers, and is quick to judge."""

    async def watch(self: Any) -> None:
        tick = self._settings.session_silence / 6
        before = self._clock.monotonic()
        while True:
            await self._clock.sleep(tick)
            now = self._clock.monotonic()
            passed, before = now - before, now
            for session in list(self._sessions.values()):
                session.silence += passed
                if session.silence > self._settings.session_silence and session.record:
                    await self._bury(session)

    def blind(real: Any) -> Any:
        def table(late: Any) -> Any:
            return real(lambda: 0.0)

        return table

    with (
        mock.patch.object(dispatcher.Dispatcher, "_watch_silence", watch),
        replace(loops, "table", blind),
        mock.patch.object(Settings, "grace", return_value=0.5),
    ):
        yield


@contextmanager
def blind_to_own_lateness() -> Iterator[None]:
    """A leader that was stopped judges by the time that passed, and its verdict does not ask for sessions opened since."""

    def blind(real: Any) -> Any:
        return lambda late: real(lambda: 0.0)

    def unguarded(real: Any) -> Any:
        return lambda change: ()

    with replace(loops, "table", blind), replace(writes, "_absent", unguarded):
        yield


def address_reuse() -> AbstractContextManager[Any]:
    """Addresses of a task that is told to stop are free at once."""

    def wrap(real: Any) -> Any:
        return lambda snapshot, task: task.desired < TaskState.SHUTDOWN and real(snapshot, task)

    return replace(hosts, "keeps_addresses", wrap)


def wrong_count_on_restart() -> AbstractContextManager[Any]:
    """A task that was rejected is not tried again."""

    def wrap(real: Any) -> Any:
        def decide(history: Any, policy: Any, now: float, delay: float) -> Verdict:
            if history[-1].state == TaskState.REJECTED:
                return Verdict(False, 0.0, "rejected")
            verdict: Verdict = real(history, policy, now, delay)
            return verdict

        return decide

    stack = ExitStack()
    stack.enter_context(replace(restart, "decide", wrap))
    return stack


def orphan_not_healed() -> AbstractContextManager[Any]:
    """A worker keeps what a complete assignment no longer names."""

    def wrap(real: Any) -> Any:
        return lambda self, message: [] if message.complete else real(self, message)

    return replace(AgentMachine, "_dismissed_tasks", wrap)


def id_comes_again() -> AbstractContextManager[Any]:
    """A slot that was given up and comes back counts its attempts from one."""

    def wrap(real: Any) -> Any:
        def attempt(self: slots.Work, key: slots.SlotKey) -> int:
            slot = self.slots.get(key)
            return slot.history[-1].task.attempt + 1 if slot is not None else 1

        return attempt

    return replace(slots.Work, "_attempt", wrap)


@contextmanager
def capacity_is_not_spent() -> Iterator[None]:
    """Placement and verification look at each task alone."""
    with replace(Capacity, "spend_one", lambda real: lambda self, row, request: 0.0):
        with replace(Capacity, "spend", lambda real: lambda self, rows, counts, request: None):
            yield


def no_compare() -> AbstractContextManager[Any]:
    """The leader writes over whatever stands in the store now."""

    def wrap(real: Any) -> Any:
        def conditions(write: Any, keys: Any) -> Any:
            _, operation = real(write, keys)
            return exists(keys.key("leader")), operation

        return conditions

    return replace(transactions, "conditions", wrap)


def acknowledged_too_soon() -> AbstractContextManager[Any]:
    """A status whose transaction was lost is acknowledged all the same."""

    async def store(self: Any, node_id: str, record: Callable[[], int], statuses: Any) -> list[tuple[str, str]]:
        verdict = status.judge(self._mirror.snapshot(), node_id, statuses)
        if verdict.write:
            compares, operations = self._txn(node_id, record(), verdict)
            try:
                await self._store.txn(compares, operations)
            except Exception:
                pass
        return list(verdict.refused)

    return mock.patch.object(status.StatusWriter, "_store_part", store)


def status_without_session() -> AbstractContextManager[Any]:
    """Statuses are written without comparing the session's record."""

    def wrap(real: Any) -> Any:
        def txn(self: Any, node_id: str, revision: int, verdict: Any) -> Any:
            compares, operations = real(self, node_id, revision, verdict)
            return compares[1:], operations

        return txn

    return replace(status.StatusWriter, "_txn", wrap)


def older_assignment() -> AbstractContextManager[Any]:
    """A worker does not say which revision it has applied, and takes what is older."""

    def wrap(real: Any) -> Any:
        def assigned(self: AgentMachine, event: Any) -> None:
            self._revision = 0
            real(self, event)

        return assigned

    stack = ExitStack()
    stack.enter_context(replace(AgentMachine, "_on_assigned", wrap))
    stack.enter_context(mock.patch.object(AgentMachine, "revision", 0))
    return stack


def drained_is_not_replaced() -> AbstractContextManager[Any]:
    """Tasks on a drained node are told to stop, and their slots are taken for filled."""

    def tend(real: Any) -> Any:
        def careless(work: slots.Work, slot: slots.Slot) -> None:
            if not slot.active and slot.history[-1].task.desired >= TaskState.SHUTDOWN:
                return
            real(work, slot)

        return careless

    stack = ExitStack()
    for owner in ("scheduler.reconcile.replicated", "scheduler.reconcile.global_"):
        stack.enter_context(mock.patch(f"{owner}.tend", tend(slots.tend)))
    return stack


def deposed_leader_goes_on() -> AbstractContextManager[Any]:
    """A manager whose lease is lost does not notice, and its writes are not fenced."""

    async def never(self: Any, term: Any, lease: Any) -> None:
        await asyncio.Event().wait()

    stack = ExitStack()
    stack.enter_context(mock.patch.object(leader.Candidate, "_wait_deposed", never))
    stack.enter_context(no_fence())
    return stack


def orphans_at_once() -> AbstractContextManager[Any]:
    """A node is down as soon as its session record is gone."""
    return mock.patch.object(Settings, "grace", return_value=0.0)


def stuck_after_crash() -> AbstractContextManager[Any]:
    """A container that was journaled as started, and never was, is left alone (a bug that was there)."""

    def wrap(real: Any) -> Any:
        def advance(self: AgentMachine, held: Any) -> None:
            if held.state == TaskState.STARTING and not held.record.started and not held.doing:
                return
            real(self, held)

        return advance

    return replace(AgentMachine, "_advance", wrap)


def ignores_parallelism() -> AbstractContextManager[Any]:
    """An update takes all outdated slots at once."""
    return replace(rollout, "_room", lambda real: lambda work, standing, waiting: waiting)


def forgets_its_pause_after_an_election() -> AbstractContextManager[Any]:
    """A new leader goes on with what its predecessor had paused."""

    def wrap(real: Any) -> Any:
        def follow(work: Any, standing: Any) -> bool:
            led_since = work.snapshot.leader.elected_at if work.snapshot.leader is not None else work.now
            held = work.snapshot.service_statuses.get(work.service.id)
            paused = held is not None and held.update is not None and held.update.state in update_status.HELD
            return bool(real(work, standing)) or (paused and work.now - led_since < 15)

        return follow

    return replace(update_status, "follow", wrap)


def forgets_what_a_former_update_took_down() -> AbstractContextManager[Any]:
    """A newer spec counts only its own tasks that do not run yet."""

    def wrap(real: Any) -> Any:
        def survey(work: slots.Work, *args: Any) -> Any:
            standing = yield from real(work, *args)
            generation = work.service.generation
            standing.flying = {
                key for key in standing.flying if any(a.task.rollout == generation for a in work.slots[key].active)
            }
            return standing

        return survey

    return replace(rollout, "survey", wrap)


def start_first_stops_first() -> AbstractContextManager[Any]:
    """The order of an update is not looked at."""

    def wrap(real: Any) -> Any:
        def policy(self: slots.Work) -> Any:
            return msgspec.structs.replace(real.fget(self), order="stop-first")

        return property(policy)

    return replace(slots.Work, "policy", wrap)


def nobody_watches_the_last_task() -> AbstractContextManager[Any]:
    """An update is complete as soon as its last task runs."""
    return replace(update_status, "_monitored", lambda real: lambda work, standing: True)


def rolls_back_without_being_asked() -> AbstractContextManager[Any]:
    """An update that fails is rolled back whatever its policy says."""

    def wrap(real: Any) -> Any:
        def policy(self: slots.Work) -> Any:
            return msgspec.structs.replace(real.fget(self), failure_action="rollback")

        return property(policy)

    return replace(slots.Work, "policy", wrap)


#: Bug → the seed that found it last, tried first: a history changes with the code, and then another will do.
BUGS: dict[Plant, int] = {
    no_fence: 14,
    rank_falls: 1,
    double_start_after_crash: 71,
    stale_mirror: 1,
    lost_assignment: 13,
    split_transaction: 2,
    torn_pass: 9,
    stalled_manager: 4,
    blind_to_own_lateness: 10,
    address_reuse: 3,
    wrong_count_on_restart: 16,
    orphan_not_healed: 48,
    id_comes_again: 26,
    capacity_is_not_spent: 152,
    no_compare: 1,
    acknowledged_too_soon: 1,
    status_without_session: 6,
    older_assignment: 87,
    drained_is_not_replaced: 12,
    deposed_leader_goes_on: 14,
    orphans_at_once: 2,
    stuck_after_crash: 4,
    ignores_parallelism: 2,
    forgets_its_pause_after_an_election: 41,
    forgets_what_a_former_update_took_down: 68,
    start_first_stops_first: 1,
    nobody_watches_the_last_task: 1,
    rolls_back_without_being_asked: 14,
}
