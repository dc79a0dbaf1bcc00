"""What must hold in every history: checked at every revision of the store, at every container start, and at the end.

The oracles see everything (the store, every process, every container) and share no code with what they judge but the
table of transitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from covey.model.objects import KINDS, Leader, NodeStatus, Session, Stored, Task, TaskStatus
from covey.model.task_states import Actor, TaskState, is_terminal, may_desire, may_move
from covey.wire.messages import StatusBatch, StatusStored
from manager.store.interface import EventKind, WatchEvent
from manager.store.keys import TABLE, Writer
from scheduler.index import Index
from tests.sim import drains, jobs
from tests.sim.controller import Controller
from tests.sim.loop import current
from tests.sim.scarcity import ScarcityOracle
from tests.sim.updates import UpdateOracle

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

S = TaskState

LEADERS = frozenset(kind for kind, rule in TABLE.items() if rule.writer is Writer.LEADER)
REAPED = frozenset(kind for kind, rule in TABLE.items() if rule.reaper is Writer.LEADER)
#: A session record this old must be known to whoever declares nodes down, unless its view is being delayed on purpose.
KNOWN_SESSION = 0.5
#: No node is down that was heard, in a session that was in the store, so many seconds ago (13.5 less a lost lease's 5).
QUIET = 8.5


class Broken(AssertionError):
    """An oracle found what must never be."""


class Oracles:
    """Judges one history. The first breach is kept; ``check`` raises it."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.truth = Index()
        self.breach: Broken | None = None
        self.created: set[str] = set()
        self.fresh: set[str] = set()
        self.starts: dict[str, str] = {}
        self.offered: dict[str, dict[int, StatusBatch]] = {}
        self.session_since: dict[str, float] = {}
        self.updates = UpdateOracle(sim, self.truth, self.broken)
        self.scarcity = ScarcityOracle(sim, self.truth, self.broken)

    def broken(self, what: str, details: str) -> None:
        if self.breach is None:
            self.breach = Broken(f"{what}: {details} (at {self.sim.loop.time():.3f} s, revision {self.truth.revision})")

    def check(self) -> None:
        self.scarcity.check()
        if self.breach is not None:
            raise self.breach

    # -- the store -------------------------------------------------------------------------------------------------

    def committed(self, revision: int, events: list[WatchEvent]) -> None:
        """A transaction, or the end of a lease, has changed the store."""
        self.fresh.clear()
        process = current()
        writer = self.sim.by_process.get(process) if process is not None else None
        changes: list[tuple[str, str, Stored | None]] = []
        for kind_of_event, item in events:
            kind, key = self.sim.keys.object_id(item.key)
            value = self.sim.decode(item.value, item.mod_revision) if kind_of_event is EventKind.PUT else None
            old = cast("Stored | None", self.truth.objects(kind).get(key))
            self._judge(kind, key, old, value, writer)
            self.updates.before(kind, key, old, value, Writer.API if writer is None else Writer.LEADER)
            self.scarcity.before(kind, key, old, value)
            changes.append((kind, key, value))
        self.truth.apply(changes, revision)
        self._judge_whole(changes, writer)
        self.updates.after(changes)
        self.scarcity.after(changes, writer)

    def _judge(self, kind: str, key: str, old: Stored | None, new: Stored | None, writer: Controller | None) -> None:
        stored_kind = "allocation" if kind.endswith("_allocation") else kind
        if stored_kind in LEADERS or kind in LEADERS or (new is None and kind in REAPED):
            self._judge_fence(kind, key, writer)
        if kind == "task":
            self._judge_task(key, cast("Task | None", old), cast("Task | None", new))
        elif kind == "task_status" and new is not None:
            self._judge_status(cast("TaskStatus | None", old), cast("TaskStatus", new), writer)
        elif kind == "node_status" and new is not None:
            self._judge_verdict(cast("NodeStatus", new), writer)
        elif kind == "session":
            if new is None:
                self.session_since.pop(key, None)
            elif old is None or cast("Session", old).session_id != cast("Session", new).session_id:
                self.session_since.setdefault(key, self.sim.loop.time())

    def _judge_fence(self, kind: str, key: str, writer: Controller | None) -> None:
        leader = cast("Leader | None", self.truth.objects("leader").get("leader"))
        name = writer.name if writer is not None else "nobody"
        if leader is None or leader.node_id != name:
            self.broken("a write by a deposed leader", f"{name} wrote {kind} {key}; the leader is {leader}")

    def _judge_task(self, key: str, old: Task | None, new: Task | None) -> None:
        if new is None:
            if old is not None and old.desired < S.SHUTDOWN:
                self.broken("a wanted task was deleted", f"{old}")
            return
        if old is None:
            if key in self.created:
                self.broken("a task id was used twice", f"{key}")
            self.created.add(key)
            self.fresh.add(key)
            self.sim.cover("tasks created")
            self.sim.cover(f"leader: {new.state.label}")
            if new.state != S.NEW and not may_move(Actor.LEADER, S.NEW, new.state):
                self.broken("a task was made in a state that a leader may not take it to", f"{key}: {new.state.label}")
            return
        if new.state != old.state:
            self.sim.cover(f"leader: {new.state.label}")
            if not may_move(Actor.LEADER, old.state, new.state):
                self.broken("the leader moved a task where it may not", f"{key}: {old.state.label} to {new.state.label}")
        if new.desired != old.desired and not may_desire(old.desired, new.desired):
            self.broken("a desired state fell", f"{key}: {old.desired.label} to {new.desired.label}")
        if old.node_id and new.node_id != old.node_id:
            self.broken("a task changed its node", f"{key}: {old.node_id} to {new.node_id}")

    def _judge_status(self, old: TaskStatus | None, new: TaskStatus, writer: Controller | None) -> None:
        before = old.state if old is not None else S.ASSIGNED
        if new.state != before:
            self.sim.cover(f"worker: {new.state.label}")
            if not may_move(Actor.WORKER, before, new.state):
                self.broken("a status fell", f"{new.id}: {before.label} to {new.state.label}")
        task = cast("Task | None", self.truth.objects("task").get(new.id))
        if task is None or task.node_id != new.node_id or task.state < S.ASSIGNED:
            self.broken("a status of a task that is not the node's", f"{new.id} by {new.node_id}: {task}")
        session = cast("Session | None", self.truth.objects("session").get(new.node_id))
        if session is None or writer is None or session.manager_id != writer.name:
            name = writer.name if writer is not None else "nobody"
            self.broken("a status by a manager that does not hold the session", f"{new.id} by {name}: {session}")

    def _judge_verdict(self, new: NodeStatus, writer: Controller | None) -> None:
        self.sim.cover(f"node: {new.state}")
        if new.state != "down":
            return
        now, since = self.sim.loop.time(), self.session_since.get(new.id)
        if writer is not None and (now < writer.excused_until or writer.writes_late()):
            return
        if since is not None:
            if now - since > KNOWN_SESSION:
                self.broken("a live node was declared down", f"{new.id} has had a session record since {since:.3f} s")
            return
        quiet = now - self.sim.heard(new.id)
        if quiet < QUIET:
            self.broken("a live node was declared down", f"{new.id} was heard {quiet:.3f} s ago in a session")

    def _judge_whole(self, changes: list[tuple[str, str, Stored | None]], writer: Controller | None) -> None:
        """What spans several objects."""
        for kind, key, value in changes:
            if kind == "task" and isinstance(value, Task):
                self._judge_slot(value)
                if value.id in self.fresh:
                    drains.judge(self, value, writer)
                    if value.job_iteration:
                        jobs.judge(self, value, writer)
                self._judge_capacity(value.node_id)
                if value.networks and S.PENDING <= value.state <= S.ASSIGNED and value.desired < S.SHUTDOWN:
                    self._judge_addresses(value)
            elif kind == "task_status" and (task := self.truth.snapshot().tasks.get(key)) is not None:
                self._judge_slot(task)

    def _judge_slot(self, task: Task) -> None:
        snapshot = self.truth.snapshot()
        if task.desired >= S.SHUTDOWN:
            return
        wanted = [
            other.id
            for other in snapshot.tasks_of(task.service_id)
            if other.slot_key == task.slot_key and other.desired < S.SHUTDOWN and not is_terminal(snapshot.state(other))
        ]
        spec = snapshot.service_specs.get(task.service_id)
        allowed = 2 if spec is None or "start-first" in (spec.update.order, spec.rollback.order) else 1
        if len(wanted) > allowed:
            self.broken("two wanted tasks in a slot", f"{task.service_id} slot {task.slot or task.node_id}: {wanted}")

    def _judge_capacity(self, node_id: str) -> None:
        snapshot = self.truth.snapshot()
        view = snapshot.nodes.get(node_id)
        if view is None:
            return
        used, total = snapshot.columns.used_cpus[view.row], snapshot.columns.total_cpus[view.row]
        if used > total:
            self.broken("more reserved than there is", f"{node_id}: {used} of {total} nano-CPUs")

    def _judge_addresses(self, task: Task) -> None:
        snapshot = self.truth.snapshot()
        mine = {(given.network_id, address) for given in task.networks for address in given.addresses}
        for other in snapshot.tasks.values():
            if other.id == task.id or not other.networks or other.state == S.REMOVE:
                continue
            status = snapshot.statuses.get(other.id)
            if status is not None and is_terminal(status.state):
                continue
            theirs = {(given.network_id, address) for given in other.networks for address in given.addresses}
            if mine & theirs:
                self.broken("an address was given twice", f"{mine & theirs} to {task.id} and {other.id}")

    # -- workers ---------------------------------------------------------------------------------------------------

    def container_started(self, node: str, task_id: str) -> None:
        """A container's process was started."""
        if task_id in self.starts:
            self.broken("a task was started twice", f"{task_id} on {self.starts[task_id]} and on {node}")
        self.starts[task_id] = node
        task = self.truth.snapshot().tasks.get(task_id)
        if task is not None and task.node_id != node:
            self.broken("a task was started on another node", f"{task_id} of {task.node_id} on {node}")

    def reported(self, session_id: str, batch: StatusBatch) -> None:
        """A worker has sent a batch."""
        self.offered.setdefault(session_id, {})[batch.sequence] = batch

    def acknowledged(self, node: str, session_id: str, stored: StatusStored) -> None:
        """A manager says that batches up to a sequence are in the store: they had better be."""
        refused = {task_id for task_id, _ in stored.refused}
        snapshot = self.truth.snapshot()
        for sequence, batch in list(self.offered.get(session_id, {}).items()):
            if sequence > stored.sequence:
                continue
            del self.offered[session_id][sequence]
            for status in batch.statuses:
                task, held = snapshot.tasks.get(status.id), snapshot.statuses.get(status.id)
                if status.id in refused or task is None:
                    continue
                if held is None or held.state < status.state:
                    self.broken("an acknowledged status is not stored", f"{node}: {status.id} {status.state.label}, has {held}")

    # -- the end ---------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Faults are over and the cluster is at rest: everything is as it was asked for."""
        self._check_acknowledged()
        for service_id in self.truth.snapshot().services:
            if problem := self.service_problem(service_id):
                self.broken("not what was asked for", problem)
        self._check_containers()
        for name, controller in self.sim.controllers.items():
            if controller.mirror is None:
                self.broken("a manager does not serve", name)
                continue
            for kind in KINDS:
                if dict(controller.mirror.objects(kind)) != dict(self.truth.objects(kind)):
                    self.broken("a stale mirror", f"{name} differs in {kind}")
        self.check()

    def _check_acknowledged(self) -> None:
        """The door's acknowledged writes are kept."""
        for (kind, key), expected in self.sim.client.acknowledged.items():
            held = self.truth.objects(kind).get(key)
            if not any(_same(held, value) for value in (*expected, self.updates.reverted.get(key))):
                self.broken("an acknowledged write is lost", f"{kind} {key}: {held}, not one of {expected}")

    def service_problem(self, service_id: str) -> str:
        """What a service lacks or has too much of, or "" when it is exactly as wanted: in the store and on the nodes."""
        snapshot = self.truth.snapshot()
        spec = snapshot.service_specs[service_id]
        waiting = self.scarcity.rightly_waiting(service_id) if self.sim.world.scarce else []
        if spec.is_job:
            return jobs.problem(self, snapshot.services[service_id], waiting)
        wanted: set[tuple[int, str]]
        if spec.stopped:
            wanted = set()
        elif spec.mode == "global":
            active = [view.id for view in snapshot.nodes.values() if view.node.availability == "active"]
            wanted = {(0, node_id) for node_id in active if node_id in self.sim.machines}
        else:
            wanted = {(slot, "") for slot in range(1, spec.replicas + 1)}
        tasks = [t for t in snapshot.tasks_of(service_id) if t.desired == S.RUNNING and snapshot.state(t) == S.RUNNING]
        slots = [(t.slot, "" if t.slot else t.node_id) for t in tasks]
        filled = set(slots) | {(t.slot, "") for t in waiting}
        if len(filled) != len(wanted) or (spec.mode == "global" and filled != wanted) or len(set(slots)) != len(slots):
            lacks = f"has {sorted(slots)} running, and {sorted(filled - set(slots))} wait rightly"
            return f"service {service_id} ({spec.mode}, {len(wanted)} wanted) {lacks}"
        lacking = [t.id for t in tasks if not self._runs(t)]
        if lacking:
            return f"tasks {lacking} of service {service_id} run in the store only"
        return self.updates.going_on(service_id) if not waiting else ""

    def _runs(self, task: Task) -> bool:
        machine = self.sim.machines.get(task.node_id)
        container = machine.containers.get(task.id) if machine is not None else None
        return container is not None and container.state == "running"

    def surplus(self) -> list[str]:
        """Containers that run though nobody wants them."""
        snapshot = self.truth.snapshot()
        return [
            f"{machine.name}: {container.task_id}"
            for machine in self.sim.machines.values()
            for container in machine.running()
            if (task := snapshot.tasks.get(container.task_id)) is None or task.desired >= S.SHUTDOWN
        ]

    def _check_containers(self) -> None:
        if surplus := self.surplus():
            self.broken("containers that nobody wants", f"{surplus}")


def _same(one: Stored | None, other: Stored | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(getattr(one, name) == getattr(other, name) for name in one.__struct_fields__ if name != "version")
