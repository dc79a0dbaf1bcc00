"""No decision looks at more than so many objects between two stops, however large one service is. Counted, not timed.

How long the steps are is measured by `scripts/bench scheduler` (tests/bench/longest.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest

from covey.model.objects import DrainPolicy
from covey.model.task_states import TaskState as S
from scheduler import allocate, liveness, reap, verify, waiting
from scheduler.passes import TASKS, Pass
from scheduler.placement import place
from scheduler.plan import Plan
from scheduler.reconcile import decide as reconcile
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole
from tests.scheduler.apply import World

V = TypeVar("V")

PART = 20
MANY = 400
LOOKED_AT = ("tasks", "statuses", "task_specs", "services", "service_specs", "service_allocations")


class Counted(Mapping[str, V]):
    """A mapping that notes how often it is looked into."""

    def __init__(self, base: Mapping[str, V], tick: Callable[[], None]) -> None:
        self._base = base
        self._tick = tick

    def __getitem__(self, key: str) -> V:
        self._tick()
        return self._base[key]

    def __iter__(self) -> Iterator[str]:
        for key in self._base:
            self._tick()
            yield key

    def __len__(self) -> int:
        return len(self._base)


class Looks:
    """How often a snapshot is looked into: since the last stop, at most between two, and in all."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = self.most = self.total = 0
        fields: dict[str, Any] = {name: Counted(getattr(snapshot, name), self._tick) for name in LOOKED_AT}
        self.snapshot = replace(snapshot, **fields)

    def _tick(self) -> None:
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)

    def through(self, work: Generator[None, None, V]) -> V:
        while True:
            self.now = 0
            try:
                next(work)
            except StopIteration as done:
                made: V = done.value
                return made


def settled() -> World:
    """One service whose tasks all run."""
    world = World()
    for number in range(4):
        world.node(f"n{number}", cpus=400, memory=1 << 40)
    world.step()
    world.service("web", replicas=MANY)
    world.run()
    assert len(world.running("web")) == MANY
    return world


def scaled_down() -> World:
    world = settled()
    world.service("web", replicas=MANY // 4)
    return world


def outdated() -> World:
    world = settled()
    world.service("web", template={"ContainerSpec": {"Image": "other"}}, replicas=MANY, UpdateConfig={"Parallelism": 0})
    return world


def everywhere() -> World:
    world = World()
    for number in range(MANY):
        world.node(f"n{number}")
    world.step()
    world.service("agent", Mode={"Global": {}})
    world.run()
    world.drop("node", "n7")
    return world


def job() -> World:
    world = World()
    world.node("n1", cpus=400, memory=1 << 40)
    world.step()
    world.service("work", Mode={"ReplicatedJob": {"MaxConcurrent": MANY, "TotalCompletions": MANY}})
    world.commit(world.decide("reconcile"))
    return world


def fresh() -> World:
    """One service whose tasks are made and have nothing yet."""
    world = World()
    world.node("n1", cpus=400, memory=1 << 40)
    world.step()
    world.service("web", replicas=MANY)
    world.commit(world.decide("reconcile"))
    return world


def waits(strategy: str, fits: bool) -> Callable[[], World]:
    """As many services as tasks, all of which wait for a node."""

    def make() -> World:
        world = World()
        world.node("n1", cpus=400 if fits else 1, memory=1 << 40)
        world.step()
        for number in range(MANY):
            asked = {"Resources": {"Reservations": {"NanoCPUs": 2_000_000_000 + number}}, "Placement": {"Strategy": strategy}}
            world.service(f"s{number}", template={"ContainerSpec": {"Image": "a"}, **(asked if not fits or number % 2 else {})})
        world.commit(world.decide("reconcile"))
        world.commit(world.decide("allocate"))
        assert len(world.snapshot.waiting) == MANY
        return world

    return make


def drained() -> World:
    """Half of a large service is to leave its nodes, of each one by one."""
    world = World()
    for number in range(PART):
        world.node(f"n{number}", cpus=400, memory=1 << 40)
    world.step()
    world.service("web", replicas=MANY)
    world.run()
    for number in range(0, PART, 2):
        node = world.snapshot.nodes[f"n{number}"].node
        world.put(msgspec.structs.replace(node, availability="drain", drain=DrainPolicy(parallelism=3)))
    return world


def lost() -> World:
    """Every node is down, and the tasks of all are nobody's."""
    world = everywhere()
    for node_id, status in world.snapshot.node_statuses.items():
        world.put(msgspec.structs.replace(status, state="down"))
        world.drop("session", node_id)
    return world


def removed() -> World:
    world = fresh()
    world.drop("service", "web")
    world.commit(world.decide("reconcile"))
    return world


Decision = Callable[[Snapshot, float, Settings], Generator[None, None, Plan]]

#: decision → how often an object is looked at or into at most.
RECONCILE, ALLOCATE, PLACE, REAP = (reconcile.parts, 8), (allocate.parts, 6), (place.parts, 12), (reap.parts, 6)
LIVENESS = (liveness.parts, 6)


@pytest.mark.parametrize(
    ("decision", "make"),
    [
        pytest.param(RECONCILE, settled, id="reconcile what is settled"),
        pytest.param(RECONCILE, scaled_down, id="scale down"),
        pytest.param(RECONCILE, outdated, id="roll out"),
        pytest.param(RECONCILE, everywhere, id="reconcile a global service"),
        pytest.param(RECONCILE, job, id="reconcile a job"),
        pytest.param(RECONCILE, drained, id="drain step by step"),
        pytest.param(LIVENESS, lost, id="lose every node"),
        pytest.param(ALLOCATE, fresh, id="allocate tasks"),
        pytest.param(ALLOCATE, waits("binpack", True), id="allocate services"),
        pytest.param(PLACE, waits("binpack", True), id="place"),
        pytest.param(PLACE, waits("pack", True), id="pack"),
        pytest.param(PLACE, waits("binpack", False), id="say why there is no place"),
        pytest.param(REAP, settled, id="reap what is settled"),
        pytest.param(REAP, removed, id="reap what is to be removed"),
    ],
)
def test_so_much_is_looked_at_between_two_stops(
    decision: tuple[Decision, int], make: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "reconcile.decide.PART",
        "allocate.PART",
        "placement.lists.PART",
        "placement.place.STEP",
        "reap.PART",
        "liveness.PART",
    ):
        monkeypatch.setattr(f"scheduler.{name}", PART)
    monkeypatch.setattr(waiting, "PART", PART)
    world = make()
    parts, looks_each = decision
    looks = Looks(world.snapshot)
    plan = looks.through(parts(looks.snapshot, world.now, world.settings))
    assert looks.total >= MANY, "the whole was looked at"
    assert looks.most <= PART * looks_each + 10, f"{looks.most} looks without a stop, of {looks.total}"
    assert plan == whole(parts(world.snapshot, world.now, world.settings))


def test_a_large_plan_is_verified_with_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.draft.BATCH", PART)
    monkeypatch.setattr(verify, "PART", PART)
    world = removed()
    plan = world.decide("reap")
    looks = Looks(world.snapshot)
    accepted, refused = looks.through(verify.parts(plan, looks.snapshot, world.settings))
    assert (accepted, refused) == (plan, ())
    assert sum(len(change.ids) for change in accepted.changes if hasattr(change, "ids")) == MANY
    assert looks.most <= 4 * PART


def test_a_successor_in_a_large_service_is_verified_with_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PART", PART)
    world = settled()
    world.report(world.running("web")[0].id, S.FAILED)
    plan = world.decide("reconcile")
    looks = Looks(world.snapshot)
    accepted, refused = looks.through(verify.parts(plan, looks.snapshot, world.settings))
    assert (bool(accepted), refused) == (True, ())
    assert looks.total > MANY
    assert looks.most <= 4 * PART


def test_a_pass_stops_within_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.reconcile.decide.PART", PART)
    world = settled()
    steps = list(Pass(world.snapshot, world.now, world.settings, TASKS).steps())
    assert steps.count("reconcile") >= 2 * MANY // PART


def test_effort_is_due_when_so_much_is_done_and_counts_anew() -> None:
    effort = Effort(3)
    assert [effort.due() for _ in range(6)] == [False, False, True] * 2
    effort.add(2)
    assert effort.due()
    assert effort.due(5)
