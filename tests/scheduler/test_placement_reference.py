"""Placement equals its plain sequential reference, task by task: every strategy, every filter, preferences, failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from covey.model.objects import (
    Node,
    NodeDescription,
    NodeInfo,
    NodeStatus,
    PortConfig,
    Service,
    Stored,
    Task,
    TaskStatus,
)
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import TaskState as S
from scheduler.index import Index
from scheduler.placement import place, singles
from scheduler.plan import AssignTasks, MoveTasks
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.verify import verify
from tests.scheduler import reference

NOW = 1_000_000.0
STRATEGIES = ("", "binpack", "spread", "pack", "pack-small", "unheard-of")
CONSTRAINTS = (
    "node.labels.zone==a",
    "node.labels.zone != a",
    "node.labels.zone in (a, b)",
    "node.labels.zone not in (a, b)",
    "node.labels.size > 2",
    "node.labels.size < 2",
    "node.labels.zone =~ ^[bc]$",
    "node.role==manager",
    "node.ip==192.0.2.0/30",
    "node.hostname != n3",
)
PREFERENCES = (["node.labels.zone"], ["node.labels.zone", "node.labels.size"], ["engine.labels.rack"])


class Case:
    """A random cluster with random tasks in it; ``many`` services, or a few with many tasks each.

    Priorities only where ``fresh``: nothing runs yet, so nobody can be told to leave, which the reference does not know.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.many = seed % 5 == 0
        self.fresh = seed % 7 == 0
        self.alike = self.rng.random() < 0.5
        self.settings = Settings(pass_tasks=1 << 40, strategy=self.rng.choice(STRATEGIES[1:5]))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def objects(self) -> Iterator[tuple[str, str, Stored | None]]:
        rng = self.rng
        names = [f"n{number}" for number in range(rng.randint(1, 40 if self.many else 12))]
        for number, name in enumerate(names):
            yield from self.node(number, name)
        for number in range(rng.randint(70, 120) if self.many else rng.randint(1, 6)):
            yield from self.service(f"s{number}", names)

    def node(self, number: int, name: str) -> Iterator[tuple[str, str, Stored | None]]:
        rng = self.rng
        labels = {"zone": rng.choice("abc"), "size": str(rng.randint(1, 4))} if self.chance(0.9) else {}
        role, availability = rng.choice(("worker", "manager")), "active" if self.chance(0.9) else rng.choice(("pause", "drain"))
        yield ("node", name, Node(id=name, name=name, role=role, availability=availability, labels=labels))
        if self.chance(0.95):
            cpus, memory = (4, 4096) if self.alike else (rng.choice((1, 2, 4, 8)), rng.choice((512, 1024, 4096)))
            resources = Resources(
                nano_cpus=cpus * NANO,
                memory_bytes=memory * MIB,
                generic={"fpga": rng.randint(0, 3)} if self.chance(0.3) else {},
                generic_named={"gpu": tuple("abc"[: rng.randint(0, 3)])} if self.chance(0.4) else {},
            )
            said = NodeDescription(
                hostname=name,
                architecture=rng.choice(("x86_64", "aarch64", "amd64")),
                resources=resources,
                engine_labels={"rack": rng.choice("xy")},
                plugins=(("Volume", "local"), ("Volume", "nfs")) if self.chance(0.5) else (("Log", "json-file"),),
            )
            yield ("node_info", name, NodeInfo(id=name, description=said, address=f"192.0.2.{number + 1}"))
        yield ("node_status", name, NodeStatus(id=name, state="ready" if self.chance(0.95) else "down"))

    def template(self) -> dict[str, Any]:
        rng = self.rng
        reserved: dict[str, Any] = {}
        if self.chance(0.8):
            reserved["NanoCPUs"] = rng.choice((0, 1, 2, 5, 10, 15)) * NANO // 10
            reserved["MemoryBytes"] = rng.choice((0, 64, 100, 256, 700)) * MIB
        if self.chance(0.1):
            kind, value = rng.choice((("gpu", 1), ("gpu", 2), ("fpga", 1)))
            reserved["GenericResources"] = [{"DiscreteResourceSpec": {"Kind": kind, "Value": value}}]
        placement: dict[str, Any] = {"Strategy": rng.choice(STRATEGIES)}
        if self.fresh:
            placement["Priority"] = rng.choice((0, 0, 1, 5))
        if self.chance(0.25):
            placement["Constraints"] = rng.sample(CONSTRAINTS, rng.randint(1, 2))
        if self.chance(0.2):
            placement["Preferences"] = [{"Spread": {"SpreadDescriptor": each}} for each in rng.choice(PREFERENCES)]
        if self.chance(0.2):
            placement["MaxReplicas"] = rng.randint(1, 3)
        if self.chance(0.2):
            placement["Affinities"] = [self.affinity() for _ in range(rng.randint(1, 3))]
        if self.chance(0.15):
            placement["Platforms"] = [{"OS": rng.choice(("", "linux")), "Architecture": rng.choice(("arm64", "x86_64", ""))}]
        mounts: list[dict[str, Any]] = []
        if self.chance(0.1):
            mounts.append({"Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": rng.choice(("nfs", "local"))}}})
        if self.chance(0.03):
            mounts.append({"Type": "cluster"})
        template = {"ContainerSpec": {"Mounts": mounts}, "Resources": {"Reservations": reserved}, "Placement": placement}
        if self.chance(0.05):
            template["LogDriver"] = {"Name": "journald"}
        return template

    def affinity(self) -> dict[str, Any]:
        rng = self.rng
        weight = rng.choice((-100, -30, 20, 50, 100))
        if self.chance(0.4):
            return {"Constraint": rng.choice(CONSTRAINTS), "Weight": weight}
        topology = rng.choice(("node.id", "node.labels.zone", "engine.labels.rack"))
        wish = {"Service": f"s{rng.randint(0, 6)}", "Topology": topology, "Weight": weight}
        return {**wish, "Required": True} if self.chance(0.3) else wish

    def service(self, name: str, nodes: list[str]) -> Iterator[tuple[str, str, Stored | None]]:
        rng = self.rng
        ports: tuple[PortConfig, ...] = ()
        if self.chance(0.1):
            ports = (PortConfig(target=80, published=rng.choice((80, 81)), mode=rng.choice(("host", "ingress"))),)
        bound = self.chance(0.05)
        for version in range(1, 3 if self.chance(0.1) else 2):
            made = Task(
                id="", service_id=name, spec=self.template(), spec_version=version, ports=ports,
                created_at=NOW - rng.randint(1, 3), state=S.PENDING,
            )  # fmt: skip
            if not self.fresh and (not self.many or self.chance(0.1)):
                for number in range(rng.randint(0, 6)):
                    yield from self.existing(made, f"{name}.{version}.old{number}", nodes)
            for number in range(rng.choice((1, 1, 1, 2, 4)) if self.many else rng.randint(0, 25)):
                slot, node_id = (0, rng.choice(nodes)) if bound else (number + 1, "")
                task_id = f"{name}.{version}.{number}"
                created = made.created_at + rng.choice((0, 0, 0.5))
                waiting = msgspec.structs.replace(made, id=task_id, slot=slot, node_id=node_id, created_at=created)
                yield ("task", task_id, waiting)
            if self.chance(0.5):
                whole = {"Name": name, "TaskTemplate": made.spec}
                yield ("service", name, Service(id=name, spec=whole, spec_version=version))

    def existing(self, made: Task, task_id: str, nodes: list[str]) -> Iterator[tuple[str, str, Stored | None]]:
        rng = self.rng
        # One node has most of the failures, so that they get as many as count.
        node_id = nodes[0] if self.chance(0.6) else rng.choice(nodes)
        state = rng.choice((S.RUNNING, S.STARTING, S.FAILED, S.FAILED, S.FAILED, S.REJECTED, S.COMPLETE))
        desired = rng.choice((S.RUNNING, S.RUNNING, S.SHUTDOWN))
        old = msgspec.structs.replace(made, id=task_id, slot=99, node_id=node_id, state=S.ASSIGNED, desired=desired)
        yield ("task", task_id, old)
        if self.chance(0.9):
            at = NOW - (400 if self.chance(0.1) else rng.randint(0, 290))
            yield ("task_status", task_id, TaskStatus(id=task_id, node_id=node_id, state=state, at=at))


def outcome(snapshot: Snapshot, settings: Settings) -> reference.Outcome:
    """What placement decides, in the reference's form; the plan is also verified."""
    plan = place.decide(snapshot, NOW, settings)
    found = reference.Outcome()
    for change in plan.changes:
        if isinstance(change, AssignTasks):
            for row, (task_id, node_id) in enumerate(zip(change.ids, change.node_ids, strict=True)):
                found.placed[task_id] = (node_id, dict(change.generic_named[row]) if change.generic_named else {})
        elif isinstance(change, MoveTasks):
            found.messages.update(dict.fromkeys(change.ids, change.message or ""))
    assert not verify(plan, snapshot, settings)[1]
    return found


def compare(seed: int) -> tuple[int, int]:
    """Placed and refused tasks of one case, which both decide alike."""
    case = Case(seed)
    index = Index(case.settings.nominal)
    index.apply([(kind, key, msgspec.structs.replace(value, version=1)) for kind, key, value in case.objects() if value], 1)
    with index.freeze_check() as snapshot:
        found = outcome(snapshot, case.settings)
    expected = reference.place(index.snapshot(), NOW, case.settings)
    assert found.placed == expected.placed, f"case {seed}"
    assert found.messages == expected.messages, f"case {seed}"
    return len(found.placed), len(found.messages)


@pytest.mark.parametrize("seed", range(12))
def test_a_few_cases(seed: int) -> None:
    compare(seed)


@pytest.mark.suite
def test_a_thousand_cases() -> None:
    placed, refused = map(sum, zip(*(compare(seed) for seed in range(1000)), strict=True))
    assert placed > 10_000
    assert refused > 2_000


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_cases() -> None:
    for seed in range(10_000):
        compare(seed)


@pytest.mark.suite
def test_small_groups_are_found_in_sorted_lists_and_elsewhere_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short cut is taken, and is a short cut only: without it the same comes out."""
    taken: list[bool] = []
    real = singles.Singles.find

    def find(self: singles.Singles, *args: Any) -> list[int] | None:
        rows = real(self, *args)
        taken.append(rows is not None)
        return rows

    monkeypatch.setattr(singles.Singles, "find", find)
    for seed in range(5, 500, 5):
        compare(seed)
    assert taken.count(True) > 500
    assert taken.count(False) > 50
