"""The cluster's state in memory: listed once, followed by a watch, checked against the store every minute.

It decides when what it holds is wrong and how to mend it; what the objects mean and how they are found is the index's
business (scheduler/index.py). Batches are applied whole, and never while somebody decides: decisions are synchronous and so
is applying, and who decides in several steps holds the mirror still meanwhile (``lend``). One-way door: changes at or below
``_listed_at`` are old news, whatever the watch says.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from covey.clock import Clock, SystemClock
from covey.model.objects import KINDS, Service, Stored
from covey.model.spec import read_service_spec
from manager.store.codec import Unreadable, decode
from manager.store.interface import (
    Compacted,
    EventKind,
    FutureRevision,
    KeyValue,
    Store,
    StoreUnavailable,
    Watch,
    WatchBatch,
)
from manager.store.keys import TABLE, Key, Keys
from manager.store.listing import list_all, list_changed, list_keys
from manager.store.notify import Board, Changed, Events, Kinds
from scheduler.index import Index
from scheduler.snapshot import Snapshot

RESYNC = 60.0
PAUSE = 0.5
ASK_AFTER = 0.05
"""Seconds a reader waits before the watch is asked how far it is, ..."""
DOUBT_AFTER = 2.0
"""... and before the store is compared key by key."""
READ_TIMEOUT = 10.0

log = logging.getLogger(__name__)


class Step(NamedTuple):
    """A key, whose it is, what it holds now (None: nothing), since which revision."""

    key: str
    name: Key
    item: KeyValue | None
    at: int


class Mirror:
    """``async with Mirror(store, keys) as mirror: await mirror.wait_listed()``; then ``snapshot()`` any time."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        index: Index | None = None,
        clock: Clock | None = None,
        resync: float = RESYNC,
    ) -> None:
        self._store = store
        self._keys = keys
        self._index = index if index is not None else Index()
        self._clock = clock or SystemClock()
        self._resync_every = resync
        self._board = Board()
        self._held: dict[str, int] = {}
        self._listed = asyncio.Event()
        self._listed_at = 0
        self._gone: dict[str, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0
        self._watch: Watch | None = None
        self._follower: asyncio.Task[None] | None = None
        self._resync_now = asyncio.Event()
        self._comparing = asyncio.Lock()
        self._still = asyncio.Lock()
        self._group = asyncio.TaskGroup()
        self._loops: list[asyncio.Task[None]] = []
        self._unreadable: set[str] = set()
        self._trouble = ""
        self._counts = dict.fromkeys(("lists", "resyncs", "repairs", "batches", "events", "stale", "watch_restarts"), 0)
        self._busy = 0.0

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._loops = [
            self._group.create_task(self._run(), name="mirror: follow the store"),
            self._group.create_task(self._resync_forever(), name="mirror: resync"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loop in self._loops:
            loop.cancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)

    @property
    def revision(self) -> int:
        """The store revision up to which everything is here."""
        return self._index.revision

    def snapshot(self) -> Snapshot:
        """What is here now, lent until the next await. Raises StoreUnavailable before the first listing is whole."""
        self._need_listed()
        return self._index.snapshot()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Snapshot]:
        """The snapshot, for one who decides in several steps of the event loop: until given back, nothing is applied.

        What the store says meanwhile waits, and so do readers for whom it has to be here: keep it short.
        """
        async with self._still:
            yield self.snapshot()

    def objects(self, kind: str) -> Mapping[str, Stored]:
        """Every object of a kind by id, lent like a snapshot (secrets, configs, names and what a Snapshot has not)."""
        self._need_listed()
        return self._index.objects(kind)

    def changes(self, kinds: Collection[str]) -> Kinds:
        """Listen for which kinds change."""
        return Kinds(self._board, kinds)

    def events(self, kinds: Collection[str] = tuple(KINDS)) -> Events:
        """Listen to each change, with the object before and after."""
        return Events(self._board, kinds)

    async def wait_listed(self) -> None:
        """Return once the state is whole for the first time."""
        await self._listed.wait()

    async def wait_current(self, timeout: float = READ_TIMEOUT) -> None:
        """The read barrier: return once everything is here that the store had when this was called.

        Raises StoreUnavailable after ``timeout`` seconds.
        """
        await self.wait_revision(await self._store.revision(), timeout)

    async def wait_revision(self, revision: int, timeout: float = READ_TIMEOUT) -> None:
        """Return once everything up to ``revision`` is here. Raises StoreUnavailable after ``timeout`` seconds."""
        if self._listed.is_set() and self.revision >= revision:
            return
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (revision, self._arrivals, arrived))
        try:
            async with asyncio.timeout(timeout):
                await self._hurry(arrived)
        except TimeoutError:
            raise StoreUnavailable(
                f"this manager has seen the store up to revision {self.revision}, not yet {revision}, for {timeout:g} s "
                f"({self._trouble or 'the watch is late'}): ask another manager or try again"
            ) from None
        finally:
            arrived.cancel()

    def statistics(self) -> dict[str, Any]:
        """Counters since the start; ``repairs``: keys that a resync found wrong; ``unreadable``: keys left out.

        ``apply_seconds``: what reading values and indexing them took.
        """
        return {
            **self._counts,
            "apply_seconds": round(self._busy, 4),
            "revision": self.revision,
            "listed": self._listed.is_set(),
            "keys": len(self._held),
            "unreadable": sorted(self._unreadable),
            "waiting": len(self._waiting),
            "trouble": self._trouble,
        }

    def _need_listed(self) -> None:
        if not self._listed.is_set():
            why = f" ({self._trouble})" if self._trouble else ""
            raise StoreUnavailable(f"this manager has not read the whole store yet{why}: try again in a moment")

    async def _hurry(self, arrived: asyncio.Future[None]) -> None:
        """Wait for ``arrived``; the longer it takes, the harder ask."""
        for patience in (ASK_AFTER, DOUBT_AFTER):
            done, _ = await asyncio.wait([arrived], timeout=patience)
            if done:
                return
            if patience == ASK_AFTER and self._watch is not None:
                self._watch.ask_progress()
        self._resync_now.set()
        await arrived

    async def _run(self) -> None:
        """List, follow until the watch cannot go on, and again. After a resync, following is enough."""
        whole = False
        while True:
            try:
                if not whole:
                    await self._list()
                whole = False
                await self._follow()
                whole = True
            except (Compacted, FutureRevision, StoreUnavailable) as error:
                self._trouble = error.message
                log.warning("mirror lists again: %s", error.message)
                await self._clock.sleep(PAUSE)

    async def _list(self) -> None:
        """Bring everything to one revision of the store, whatever is held: the first time, or when history is gone.

        The first time nobody looks yet and pages are applied as they come, later all differences at once.
        """
        async with self._comparing:
            revision = await self._store.revision()
            seen: set[str] = set()
            different: list[Step] = []
            async for page in list_all(self._store, self._keys, revision):
                seen.update(item.key for item in page)
                different += [self._step(item) for item in page if self._differs(item)]
                if not self._listed.is_set():
                    self._apply(different, revision)
                    different = []
            different += [self._removal(key, revision) for key in self._held if key not in seen]
            async with self._still:
                self._apply(different, revision)
            self._counts["lists"] += 1
            self._trouble = ""
            self._arrive_at(revision, listed=True)
            if not self._listed.is_set():
                self._listed.set()
                self._board.tell_kinds(KINDS)

    async def _follow(self) -> None:
        """Apply what the watch brings; returns when a resync found it wanting."""
        self._follower = asyncio.create_task(self._read_watch(), name="mirror: watch")
        try:
            await asyncio.wait([self._follower])
        finally:
            self._follower.cancel()
            await asyncio.wait([self._follower])
        if not self._follower.cancelled():
            self._follower.result()

    async def _read_watch(self) -> None:
        async with self._store.watch([self._keys.everything()], self.revision + 1) as watch:
            self._watch = watch
            try:
                async for batch in watch:
                    async with self._still:
                        self._take(batch)
            finally:
                self._watch = None

    def _take(self, batch: WatchBatch) -> None:
        steps: list[Step] = []
        for kind, item in batch.events:
            if item.mod_revision <= self._listed_at:
                self._counts["stale"] += 1
            elif (name := self._keys.find(item.key)) is not None:
                steps.append(Step(item.key, name, item if kind is EventKind.PUT else None, item.mod_revision))
        if self._comparing.locked():
            self._gone.update((step.key, step.at) for step in steps if step.item is None)
        self._counts["batches"] += 1
        self._counts["events"] += len(batch.events)
        revision = max(batch.revision, self.revision)
        self._apply(steps, revision)
        self._arrive_at(revision)

    async def _resync_forever(self) -> None:
        await self._listed.wait()
        while True:
            sleeper = asyncio.create_task(self._clock.sleep(self._resync_every), name="mirror: until the next resync")
            asked = asyncio.create_task(self._resync_now.wait(), name="mirror: resync asked for")
            try:
                await asyncio.wait([sleeper, asked], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                asked.cancel()
            self._resync_now.clear()
            try:
                await self._resync()
            except (Compacted, FutureRevision, StoreUnavailable) as error:
                self._trouble = error.message
                log.warning("mirror could not compare itself with the store: %s", error.message)

    async def _resync(self) -> None:
        """Compare every key's mod_revision with the store's, fetch what differs, and doubt the watch if anything did."""
        async with self._comparing:
            try:
                present, revision = await list_keys(self._store, self._keys)
                await self._let_watch_reach(revision)
                stale = [key for key, mod_revision in present.items() if self._is_stale(key, mod_revision, revision)]
                fresh = await list_changed(self._store, self._keys, stale, len(present), revision)
                async with self._still:
                    steps = [self._step(item) for item in fresh if self._is_stale(item.key, item.mod_revision, revision)]
                    gone = [key for key, at in self._held.items() if key not in present and at <= revision]
                    steps += [self._removal(key, revision) for key in gone]
                    self._apply(steps, max(revision, self.revision))
            finally:
                self._gone.clear()
            self._counts["resyncs"] += 1
            self._arrive_at(revision, listed=True)
            if steps:
                self._counts["repairs"] += len(steps)
                self._counts["watch_restarts"] += 1
                log.warning("mirror missed %d changes, the first of %s: watching anew", len(steps), steps[0].key)
                if self._follower is not None:
                    self._follower.cancel()

    def _step(self, item: KeyValue) -> Step:
        return Step(item.key, self._keys.object_id(item.key), item, item.mod_revision)

    def _removal(self, key: str, at: int) -> Step:
        return Step(key, self._keys.object_id(key), None, at)

    def _is_stale(self, key: str, mod_revision: int, listed_at: int) -> bool:
        """Whether the store's key, as of ``listed_at``, is news: the watch may be past that already, a removal included."""
        held = self._held.get(key, 0)
        return held != mod_revision and max(held, self._gone.get(key, 0)) <= listed_at

    def _differs(self, item: KeyValue) -> bool:
        """By content too: a store that was restored from a copy may give a revision twice."""
        if self._held.get(item.key) != item.mod_revision:
            return True
        name = self._keys.object_id(item.key)
        return self._read(name, item) != self._index.objects(name.kind).get(name.id)

    async def _let_watch_reach(self, revision: int) -> None:
        """What the watch still brings is no mistake of its; what it does not bring within DOUBT_AFTER is."""
        if self.revision >= revision:
            return
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (revision, self._arrivals, arrived))
        if self._watch is not None:
            self._watch.ask_progress()
        await asyncio.wait([arrived], timeout=DOUBT_AFTER)
        arrived.cancel()

    def _apply(self, steps: Iterable[Step], revision: int) -> None:
        """Hand changes to the index, in order, and tell who listens."""
        began = self._clock.monotonic()
        changes: list[Changed] = []
        latest: dict[Key, Stored | None] = {}
        for key, name, item, at in steps:
            if item is None:
                self._held.pop(key, None)
                self._unreadable.discard(key)
                after = None
            else:
                self._held[key] = item.mod_revision
                after = self._read(name, item)
                if after is None:
                    continue
            before = latest[name] if name in latest else self._index.objects(name.kind).get(name.id)
            latest[name] = after
            if before is not None or after is not None:
                changes.append(Changed(name.kind, name.id, before, after, at))
        self._index.apply([(change.kind, change.id, change.after) for change in changes], revision)
        self._busy += self._clock.monotonic() - began
        if changes and self._listed.is_set():
            self._board.tell(changes)

    def _read(self, name: Key, item: KeyValue) -> Stored | None:
        """The object, or None for what this release cannot read: that is left out and named in statistics."""
        try:
            stored = decode(item.value, item.mod_revision)
            if stored.kind != name.kind:
                raise Unreadable(f"key {item.key} holds a {stored.kind}: remove it, it was written by hand")
            if isinstance(stored, Service):
                _check_spec(stored)
        except Unreadable as error:
            log.error("mirror leaves out %s: %s", item.key, error.message)
            self._unreadable.add(item.key)
            return None
        self._unreadable.discard(item.key)
        return stored

    def _arrive_at(self, revision: int, listed: bool = False) -> None:
        if listed:
            self._listed_at = revision
        while self._waiting and (self._waiting[0][0] <= self.revision or self._waiting[0][2].done()):
            arrived = heapq.heappop(self._waiting)[2]
            if not arrived.done():
                arrived.set_result(None)


def _check_spec(service: Service) -> None:
    """A spec that no view can be made of must not stop every manager: the door lets none in, but it may be older."""
    try:
        read_service_spec(service.spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"service {service.id} has a spec that cannot be ({error}): update or remove it") from None


assert set(TABLE) == set(KINDS), "every stored kind has a writer, and every writer's kind a struct"
