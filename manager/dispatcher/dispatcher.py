"""The sessions of this manager: who may open one, when its record is written and removed, who is told of which change.

A record is leased with this manager's lease and kept while the worker is heard, and for a short silence after (a quick
reconnect is no event); what a vanished record means for the node is the leader's to say. Time this process itself was stalled
is no silence of a worker's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from covey.clock import Clock
from covey.entropy import object_id
from covey.errors import CoveyError, Forbidden, NotFound, Unavailable
from covey.model.objects import ClusterLogin, Config, NodeDescription, NodeInfo, Secret, ServiceLogin, Task, TaskStatus
from covey.model.objects import Session as Record
from covey.model.task_states import is_terminal
from covey.wire.messages import AnyMessage, DialBack, ImageReport, LoginsGiven, LoginsWanted, OpenSession, SessionOpened
from manager import logins
from manager.dispatcher.assignments import Holding, holding
from manager.dispatcher.link import Closed, Link
from manager.dispatcher.port import HELLO_SECONDS, TooMany
from manager.dispatcher.session import Session
from manager.dispatcher.status import StatusWriter
from manager.images.fanout import Fanout
from manager.lease import Claim
from manager.store.codec import encode
from manager.store.interface import Compare, Delete, LeaseLost, Operation, OutcomeUnknown, Put, Store, exists, mod_is
from manager.store.keys import Keys
from manager.store.mirror import Mirror
from manager.store.notify import Changed, ChangesLost
from scheduler.settings import Settings

log = logging.getLogger(__name__)

#: The kinds whose changes may concern what a node holds, or its session.
WATCHED = (
    "task",
    "task_status",
    "service_allocation",
    "network",
    "network_allocation",
    "secret",
    "config",
    "session",
    "node",
)
#: A tick of the silence watch is this part of the silence allowed.
TICKS = 6
RETRY_SECONDS = 0.2


class Dispatcher:
    """Run ``run`` in a TaskGroup; ``serve`` is the cluster port's handler for sessions."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        claim: Claim,
        keys: Keys,
        clock: Clock,
        settings: Settings,
        manager_id: str,
        address: str,
        managers: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._claim = claim
        self._keys = keys
        self._clock = clock
        self._settings = settings
        self._manager_id = manager_id
        self._address = address
        self._managers = managers
        self._sessions: dict[str, Session] = {}
        self._registrations: dict[str, deque[float]] = {}
        self._writer = StatusWriter(store, mirror, keys, clock)
        self.images = Fanout(clock, self._post)
        self._counts = dict.fromkeys(("opened", "superseded", "silent", "limited", "records_renewed"), 0)
        self._busy = 0.0

    async def run(self) -> None:
        """Follow changes, silence and the lease until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="dispatcher: changes")
            group.create_task(self._watch_silence(), name="dispatcher: silence")
            group.create_task(self._follow_lease(), name="dispatcher: lease")
            group.create_task(self._writer.run(), name="dispatcher: statuses")
            group.create_task(self.images.run(), name="dispatcher: images")

    async def serve(self, link: Link) -> None:
        """A worker opens its session; returns when it is over."""
        assert link.peer is not None
        node_id = link.peer.node_id
        await self._admit(node_id)
        opening = await link.expect(OpenSession, HELLO_SECONDS)
        await self._mirror.wait_revision(opening.revision)
        if (former := self._sessions.get(node_id)) is not None:
            self._counts["superseded"] += former.linked
            former.end("superseded", "the node has opened another session")
        session = Session(object_id(), node_id, opening.address or link.address, self._clock.now(), link)
        self._sessions[node_id] = session
        try:
            await self._register(session, opening.description)
            self._counts["opened"] += 1
            log.info("session %s of node %s from %s", session.id, node_id, link.address)
            jitter = self._settings.heartbeat_jitter
            period = self._settings.heartbeat + random.uniform(-jitter, jitter)
            opened = SessionOpened(session_id=session.id, heartbeat=period, managers=tuple(self._managers()))
            self.images.joined(node_id, _blob_port(session.address, opening.blob_port))
            await session.run(self, self._writer, opened)
        except Closed as why:
            log.info("session %s of node %s lost its link: %s", session.id, node_id, why or "closed")
        finally:
            session.linked = False
            if self._sessions.get(node_id, session) is session:
                self.images.left(node_id)
            if not session.record and self._sessions.get(node_id) is session:
                del self._sessions[node_id]

    async def ask(self, node_id: str, message: DialBack) -> None:
        """Send a DialBack over the node's session. Raises Unavailable when it has none here."""
        session = self._sessions.get(node_id)
        if session is None or not session.linked:
            held = cast("Record | None", self._mirror.objects("session").get(node_id))
            if held is not None and held.manager_id != self._manager_id:
                raise Unavailable(f"node {node_id} is connected to manager {held.manager_id}: ask that one")
            raise Unavailable(f"node {node_id} is not connected: start its daemon, see `node ls`")
        await session.send(message)

    async def held_by(self, node_id: str, former: Holding) -> Holding:
        """What the node should hold now; ``former`` is what it was told to."""
        began = self._clock.monotonic()
        secrets = cast("dict[str, Secret]", self._mirror.objects("secret"))
        configs = cast("dict[str, Config]", self._mirror.objects("config"))
        held = holding(self._mirror.snapshot(), secrets, configs, node_id, former)
        self._busy += self._clock.monotonic() - began
        return held

    async def describe(self, session: Session, description: NodeDescription) -> None:
        """Store a changed description; a session that is gone meanwhile says it again when it comes back."""
        put = self._info(session, description)
        if put is not None:
            await self._store.txn([mod_is(self._keys.key("session", session.node_id), session.record)], [put])

    def heard_of_images(self, session: Session, message: ImageReport) -> None:
        """What a node says of images; of one that has opened another session meanwhile, nothing counts."""
        if self._sessions.get(session.node_id) is session:
            self.images.heard(session.node_id, message)

    def logins_wanted(self, session: Session, message: LoginsWanted) -> None:
        """Answer with the logins of now for an image that the node needs; only who asked in vain is logged."""
        cluster = cast("dict[str, ClusterLogin]", self._mirror.objects("login"))
        services = cast("dict[str, ServiceLogin]", self._mirror.objects("service_login"))
        try:
            found = logins.for_node(self._mirror.snapshot(), cluster, services, session.node_id, message.image)
        except Forbidden as refusal:
            log.warning("%s", refusal.message)
            session.post(LoginsGiven(request=message.request, error=refusal.message))
            return
        session.post(LoginsGiven(request=message.request, logins=found))

    def _post(self, node_id: str, message: AnyMessage) -> None:
        if (session := self._sessions.get(node_id)) is not None and session.linked:
            session.post(message)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start and the sessions there are; ``holding_seconds``: finding out what nodes should hold."""
        sessions = {node_id: session.statistics() for node_id, session in self._sessions.items()}
        busy = round(self._busy, 4)
        return {**self._counts, "holding_seconds": busy, "statuses": self._writer.statistics(), "sessions": sessions}

    async def _admit(self, node_id: str) -> None:
        """Raises NotFound for a removed node, TooMany for one that comes too often."""
        if node_id not in self._mirror.snapshot().nodes:
            await self._mirror.wait_current()
            if node_id not in self._mirror.snapshot().nodes:
                raise NotFound(f"node {node_id} is not part of the cluster (removed?): leave and join again")
        now, window = self._clock.monotonic(), self._settings.registration_window
        recent = self._registrations.setdefault(node_id, deque())
        while recent and recent[0] <= now - window:
            recent.popleft()
        if len(recent) >= self._settings.registrations:
            self._counts["limited"] += 1
            wait = recent[0] + window - now
            raise TooMany(f"node {node_id} registered {len(recent)} times within {window:g} s: wait {wait:.1f} s", wait)
        recent.append(now)

    async def _register(self, session: Session, description: NodeDescription | None) -> None:
        """Write the session's record on the lease held now, and the node's description if it changed."""
        key = self._keys.key("session", session.node_id)
        compares: list[Compare] = [exists(self._keys.key("node", session.node_id))]
        while self._sessions.get(session.node_id) is session:
            lease = await self._claim.wait_lease()
            record = Record(id=session.node_id, session_id=session.id, manager_id=self._manager_id, opened_at=session.opened_at)
            operations: list[Operation] = [Put(key, encode(record), lease.id)]
            if description is not None and (put := self._info(session, description)) is not None:
                operations.append(put)
            try:
                result = await self._store.txn(compares, operations)
            except LeaseLost:
                await self._clock.sleep(RETRY_SECONDS)
                continue
            except OutcomeUnknown:
                continue
            if not result.ok:
                raise NotFound(f"node {session.node_id} was removed from the cluster: leave and join again")
            session.record = result.revision
            return

    def _info(self, session: Session, description: NodeDescription) -> Put | None:
        mine = self._address if session.node_id == self._manager_id else ""
        info = NodeInfo(id=session.node_id, description=description, address=session.address, manager_address=mine)
        held = self._mirror.objects("node_info").get(session.node_id)
        if held is not None and NodeInfo(**{**_fields(held), "version": 0}) == info:
            return None
        return Put(self._keys.key("node_info", session.node_id), encode(info))

    async def _follow_lease(self) -> None:
        """When the lease was lost every record is gone: put those of live sessions on the new one."""
        lease = await self._claim.wait_lease()
        while True:
            if self._claim.lease is lease:
                await self._claim.wait_change()
                continue
            lease = await self._claim.wait_lease()
            for session in [session for session in self._sessions.values() if session.record]:
                try:
                    await self._register(session, None)
                    self._counts["records_renewed"] += 1
                except CoveyError as error:
                    session.end("removed" if isinstance(error, NotFound) else "stopping", error.message)

    async def _watch_silence(self) -> None:
        allowed = self._settings.session_silence
        tick = allowed / TICKS
        before = self._clock.monotonic()
        while True:
            await self._clock.sleep(tick)
            now = self._clock.monotonic()
            # A longer tick is this process's own lateness: what workers sent meanwhile is still to be read.
            passed, before = min(now - before, 1.5 * tick), now
            for session in list(self._sessions.values()):
                session.silence += passed
                if session.silence > allowed and session.record:
                    await self._bury(session)

    async def _bury(self, session: Session) -> None:
        """Nothing was heard of the worker for too long: its record goes, the leader does the rest."""
        if session.linked:
            session.end("superseded", f"nothing heard for {session.silence:.1f} s")
        key = self._keys.key("session", session.node_id)
        try:
            await self._store.txn([mod_is(key, session.record)], [Delete(key)])
        except CoveyError as error:
            log.warning("session record of node %s not removed: %s", session.node_id, error.message)
            return
        log.warning("node %s has been silent for %.1f s: its session record is removed", session.node_id, session.silence)
        self._counts["silent"] += 1
        session.record = 0
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]

    async def _follow(self) -> None:
        while True:
            with self._mirror.events(WATCHED) as events:
                for session in self._sessions.values():
                    session.touch("changes were missed")
                try:
                    async for changed in events:
                        self._note(changed)
                except ChangesLost as lost:
                    log.warning("dispatcher: %s", lost.message)

    def _note(self, changed: Changed) -> None:
        match changed.kind:
            case "task":
                for task in (cast("Task | None", changed.before), cast("Task | None", changed.after)):
                    if task is not None and task.node_id:
                        self._touch(task.node_id, task.cause)
            case "task_status":
                self._note_status(cast("TaskStatus | None", changed.before), cast("TaskStatus | None", changed.after))
            case "service_allocation":
                snapshot = self._mirror.snapshot()
                for node_id in dict.fromkeys(task.node_id for task in snapshot.tasks_of(changed.id)):
                    self._touch(node_id, f"ports of service {changed.id} changed")
            case "session":
                self._note_session(changed)
            case "node":
                if changed.after is None:
                    self._forget(changed.id)
            case _:
                for session in self._sessions.values():
                    session.touch(f"{changed.kind} {changed.id} changed")

    def _forget(self, node_id: str) -> None:
        self._registrations.pop(node_id, None)
        if (session := self._sessions.get(node_id)) is not None:
            session.end("removed", f"node {node_id} was removed from the cluster")

    def _note_status(self, before: TaskStatus | None, after: TaskStatus | None) -> None:
        """A task that is over no longer holds its secrets on the node."""
        if after is not None and is_terminal(after.state) and not (before is not None and is_terminal(before.state)):
            self._touch(after.node_id, f"task {after.id} is {after.state.label}")

    def _note_session(self, changed: Changed) -> None:
        session, after = self._sessions.get(changed.id), cast("Record | None", changed.after)
        if session is None or after is None or after.session_id == session.id:
            return
        if session.record and after.version > session.record:
            session.record = 0
            session.end("superseded", f"the node has opened a session with manager {after.manager_id}")

    def _touch(self, node_id: str, cause: str) -> None:
        if (session := self._sessions.get(node_id)) is not None:
            session.touch(cause)


def _blob_port(address: str, port: int) -> str:
    """host:port of a node's blob port, "" when it has none."""
    if not port:
        return ""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _fields(held: Any) -> dict[str, Any]:
    return {name: getattr(held, name) for name in held.__struct_fields__}
