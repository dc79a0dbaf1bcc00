"""A small world for the brain's tests: an index, a revision, and a committer that writes what a plan says.

Not a test itself. ``World.step`` asks every decision once, in the order of the leader's loops, and applies their plans.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from covey.model import versions
from covey.model.objects import (
    Cluster,
    Leader,
    Network,
    Node,
    NodeDescription,
    NodeInfo,
    Service,
    Session,
    Stored,
    Task,
    TaskStatus,
)
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import Actor, TaskState, may_desire, may_move
from scheduler import allocate, liveness, reap, verify
from scheduler.index import Index
from scheduler.passes import TASKS, Pass, Stage
from scheduler.placement import place
from scheduler.plan import Plan
from scheduler.reconcile import decide as reconcile
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.writes import Group, groups

Decide = Callable[[Snapshot, float, Settings], Plan]

LOOPS: dict[str, Decide] = {
    "liveness": liveness.decide,
    "reconcile": reconcile.decide,
    "allocate": allocate.decide,
    "placement": place.decide,
    "reap": reap.decide,
}


class Stale(AssertionError):
    """A write expected another version than the world holds: the plan was not made from this world."""


class World:
    """Objects by kind and id, a clock that is set by hand, and the decisions."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.default()
        self.index = Index(self.settings.nominal)
        self.now = 1_000_000.0
        self.put(Cluster(id="cluster1"), key="cluster")
        self.put(Leader(node_id="m1", elected_at=self.now - 3600), key="leader")

    @property
    def snapshot(self) -> Snapshot:
        return self.index.snapshot()

    def put(self, value: Stored, key: str = "") -> None:
        """Write an object as its owner would."""
        revision = self.index.revision + 1
        key = key or value.id  # type: ignore[attr-defined]
        stored = msgspec.structs.replace(value, version=revision)
        self.index.apply([(value.kind, key, stored)], revision)

    def drop(self, kind: str, key: str) -> None:
        self.index.apply([(kind, key, None)], self.index.revision + 1)

    def node(self, node_id: str, *, cpus: float = 4, memory: int = 1024 * MIB, session: bool = True, **fields: Any) -> None:
        """A node that has joined, and has a session unless told otherwise."""
        self.put(Node(id=node_id, name=node_id, **fields))
        said = NodeDescription(
            hostname=node_id,
            architecture="x86_64",
            resources=Resources(nano_cpus=int(cpus * NANO), memory_bytes=memory),
        )
        self.put(NodeInfo(id=node_id, description=said, address="192.0.2.1"))
        if session:
            self.session(node_id)

    def session(self, node_id: str, session_id: str = "") -> None:
        session_id = session_id or f"session-{node_id}-{self.index.revision}"
        self.put(Session(id=node_id, session_id=session_id, manager_id="m1", opened_at=self.now))

    def service(self, service_id: str, *, replicas: int = 1, template: dict[str, Any] | None = None, **spec: Any) -> Service:
        """Create or update a service; ``spec`` are top-level fields of the Engine API's object."""
        held = self.snapshot.services.get(service_id)
        whole = {
            "Name": service_id,
            "Mode": {"Replicated": {"Replicas": replicas}},
            "TaskTemplate": template or {"ContainerSpec": {"Image": "busybox"}},
            **spec,
        }
        service = (
            versions.updated(held, whole, self.now)
            if held
            else Service(
                id=service_id,
                spec=whole,
                created_at=self.now,
                updated_at=self.now,
                **versions.first_execution(whole, self.now),
            )
        )
        self.put(service)
        return service

    def network(self, network_id: str, **spec: Any) -> None:
        self.put(Network(id=network_id, spec={"Name": network_id, "Driver": "overlay", **spec}, created_at=self.now))

    def report(self, task_id: str, state: TaskState, **fields: Any) -> None:
        """The worker's word on a task; AssertionError if the table forbids it."""
        held = self.snapshot.statuses.get(task_id)
        old = held.state if held else TaskState.ASSIGNED
        assert may_move(Actor.WORKER, old, state), f"{old!r} to {state!r}"
        node_id = self.snapshot.tasks[task_id].node_id
        running = state == TaskState.RUNNING
        started_at = fields.pop("started_at", self.now if running else held.started_at if held else 0.0)
        times = {"at": self.now, "stored_at": self.now, "started_at": started_at}
        self.put(TaskStatus(id=task_id, node_id=node_id, state=state, **times, **fields))

    def decide(self, name: str, **more: Any) -> Plan:
        """One decision, on a world that is checked to stay as it is meanwhile."""
        with self.index.freeze_check() as snapshot:
            return LOOPS[name](snapshot, self.now, self.settings, **more)

    def commit(self, plan: Plan) -> int:
        """Apply ``plan`` group by group; the number of writes. Stale and transitions that are not allowed raise."""
        accepted, refusals = verify.verify(plan, self.snapshot, self.settings)
        assert not refusals, f"a fresh plan was refused: {refusals}"
        assert accepted == plan
        return self.write(list(groups(plan, self.snapshot, self.now)))

    def plan_pass(self, stages: Sequence[Stage] = TASKS) -> Pass:
        """A pass of decisions that build on each other, done; the world is checked to stay as it is meanwhile."""
        with self.index.freeze_check() as snapshot:
            work = Pass(snapshot, self.now, self.settings, stages)
            for _ in work.steps():
                pass
            assert not work.refusals, f"what a pass decided itself was refused: {work.refusals}"
        return work

    def write(self, made: Sequence[Group]) -> int:
        """Apply groups, each at a revision of its own; the number of writes."""
        written = 0
        for group in made:
            revision = self.index.revision + 1
            changes: list[tuple[str, str, Stored | None]] = []
            for write in group.writes:
                held = self.index.objects(write.kind).get(write.id)
                if (held.version if held else 0) != write.expected_version:
                    raise Stale(f"{write.kind} {write.id}: expected {write.expected_version}, is {held}")
                check_transition(held, write.value)
                value = write.value
                changes.append((write.kind, write.id, msgspec.structs.replace(value, version=revision) if value else None))
            self.index.apply(changes, revision)
            written += len(changes)
        return written

    def step(self) -> int:
        """Every decision once, each applied; how much was written."""
        return sum(self.commit(self.decide(name)) for name in LOOPS)

    def settle(self, limit: int = 30) -> None:
        """Until no decision wants anything any more. AssertionError if that does not come."""
        for _ in range(limit):
            if not self.step():
                return
        plans = {name: self.decide(name) for name in LOOPS}
        raise AssertionError(f"no rest after {limit} rounds: {[plan for plan in plans.values() if plan]}")

    def run(self) -> None:
        """Settle with workers that do as they are told: what is to run runs, what is to stop stops."""
        for _ in range(30):
            self.settle()
            if not self.work():
                return
        raise AssertionError("workers and leader do not come to rest")

    def work(self) -> bool:
        """One round of obedient workers on nodes with a session; whether anything happened."""
        snapshot, reports = self.snapshot, []
        for task in snapshot.tasks.values():
            status = snapshot.statuses.get(task.id)
            state = status.state if status else TaskState.ASSIGNED
            view = snapshot.nodes.get(task.node_id)
            if task.state < TaskState.ASSIGNED or state > TaskState.RUNNING or view is None or view.session is None:
                continue
            wanted = TaskState.SHUTDOWN if task.desired >= TaskState.SHUTDOWN else task.desired
            if state < wanted:
                reports.append((task.id, wanted))
        for task_id, state in reports:
            self.report(task_id, state)
        return bool(reports)

    def tasks(self, service_id: str) -> list[Task]:
        return sorted(self.snapshot.tasks_of(service_id), key=lambda t: (t.slot, "" if t.slot else t.node_id, t.attempt))

    def running(self, service_id: str) -> list[Task]:
        """Wanted tasks whose worker says they run."""
        snapshot = self.snapshot
        return [t for t in self.tasks(service_id) if t.desired == TaskState.RUNNING and snapshot.state(t) == TaskState.RUNNING]


def busy(rng: random.Random) -> World:
    """A world in which everything is somewhere in between."""
    world = World()
    for number in range(4):
        world.node(f"n{number}")
    world.network("net")
    networks = {"ContainerSpec": {"Image": "busybox"}, "Networks": [{"Target": "net"}]}
    world.service("with-net", replicas=rng.randint(1, 6), template=networks)
    world.service("plain", replicas=rng.randint(1, 6))
    world.service("everywhere", Mode={"Global": {}})
    for _ in range(rng.randint(0, 6)):
        world.step()
        for task in list(world.snapshot.tasks.values()):
            status = world.snapshot.statuses.get(task.id)
            if task.state == TaskState.ASSIGNED and status is None and rng.random() < 0.6:
                world.report(task.id, rng.choice((TaskState.RUNNING, TaskState.FAILED, TaskState.COMPLETE)))
        world.now += rng.choice((0, 1, 10))
        world.service("plain", replicas=rng.randint(0, 8))
    if rng.random() < 0.5:
        world.drop("service", "plain")
    return world


def check_transition(held: Stored | None, value: Stored | None) -> None:
    """The leader moves tasks along the table only."""
    if isinstance(held, Task) and isinstance(value, Task):
        assert value.state == held.state or may_move(Actor.LEADER, held.state, value.state), (held, value)
        assert value.desired == held.desired or may_desire(held.desired, value.desired), (held, value)
