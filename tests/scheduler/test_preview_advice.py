"""Advice is what has been tried: each line, followed alone, lets the task be placed; and a copied world stays as it is."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from covey.model.task_states import TaskState
from scheduler.preview.advice import advise
from scheduler.preview.frozen import frozen
from tests.scheduler.apply import World

MIB = 1024 * 1024


def world_of(*nodes: tuple[str, float, int, dict[str, str]]) -> World:
    world = World()
    for name, cpus, memory, labels in nodes:
        world.node(name, cpus=cpus, memory=memory * MIB, labels=labels)
    world.settle()
    return world


def waiting(world: World, placement: dict[str, Any] | None = None, cpus: float = 0, memory: int = 0, **spec: Any) -> str:
    """The id of a task that waits for a node."""
    reserved = {"NanoCPUs": int(cpus * 1e9), "MemoryBytes": memory * MIB, **spec.pop("reserved", {})}
    template = {"ContainerSpec": {"Image": "i"}, "Placement": placement or {}, "Resources": {"Reservations": reserved}}
    world.service("web", template=template, **spec)
    world.settle()
    return next(task.id for task in world.tasks("web") if task.state == TaskState.PENDING)


def advice(world: World, task_id: str) -> list[str]:
    with world.index.freeze_check() as snapshot:
        return list(advise(snapshot, task_id, world.now, world.settings))


EAST, WEST = {"zone": "east", "disk": "hdd"}, {"zone": "west", "disk": "ssd"}


def test_reservations_are_lowered_to_what_one_node_has_free() -> None:
    world = world_of(("n1", 2, 4096, {}), ("n2", 3.5, 512, {}))
    assert advice(world, waiting(world, cpus=4, memory=1024)) == [
        "reserve at most 2 CPUs (4 asked for): it then fits on n1",
    ]
    world = world_of(("n1", 1, 256, {}))
    assert advice(world, waiting(world, cpus=4, memory=1024)) == [
        "reserve at most 1 CPUs (4 asked for) and at most 256 MiB (1024 asked for): it then fits on n1",
    ]


def test_constraints_are_taken_back_one_by_one_and_all() -> None:
    world = world_of(("n1", 4, 1024, EAST), ("n2", 4, 1024, WEST))
    task = waiting(world, {"Constraints": ["node.labels.zone==east", "node.labels.disk==ssd"]})
    assert advice(world, task) == [
        "take back the constraint node.labels.zone == east: it then fits on n2",
        "take back the constraint node.labels.disk == ssd: it then fits on n1",
        "take back all constraints: it then fits on n1, n2",
    ]


def test_what_does_not_help_alone_is_no_advice() -> None:
    world = world_of(("n1", 1, 1024, EAST))
    assert advice(world, waiting(world, {"Constraints": ["node.labels.zone==west"]}, cpus=4)) == []


def test_replicas_ports_plugins_platforms_and_kinds_of_resources() -> None:
    world = world_of(("n1", 4, 1024, {}))
    assert advice(world, waiting(world, {"MaxReplicas": 1}, replicas=2)) == [
        "allow more than 1 replicas a node: it then fits on n1"
    ]
    world = world_of(("n1", 4, 1024, {}))
    ports = {"Ports": [{"TargetPort": 80, "PublishedPort": 80, "PublishMode": "host"}]}
    assert advice(world, waiting(world, replicas=2, EndpointSpec=ports)) == ["publish no port in host mode: it then fits on n1"]
    world = world_of(("n1", 4, 1024, {}))
    arm = {"Platforms": [{"OS": "linux", "Architecture": "arm64"}]}
    assert advice(world, waiting(world, arm)) == ["use an image for other platforms: it then fits on n1"]
    world = world_of(("n1", 4, 1024, {}))
    gpu = {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]}
    assert advice(world, waiting(world, reserved=gpu)) == ["reserve fewer generic resources (gpu): it then fits on n1"]


def test_required_affinities() -> None:
    world = world_of(("n1", 4, 1024, {}))
    near = {"Affinities": [{"Service": "cache", "Required": True}]}
    assert advice(world, waiting(world, near)) == ["require no affinity to other services: it then fits on n1"]


def test_a_task_that_fits_needs_no_advice_and_many_nodes_are_counted() -> None:
    world = world_of(*((f"n{number}", 4, 1024, EAST) for number in range(5)))
    task = waiting(world, {"Constraints": ["node.labels.zone==west"]})
    assert advice(world, task) == ["take back the constraint node.labels.zone == west: it then fits on n0, n1, n2 and 2 more"]
    world.node("n9", labels=WEST)
    world.decide("liveness")
    world.commit(world.decide("liveness"))
    assert advice(world, task) == []
    with pytest.raises(KeyError):
        advice(world, "nosuch")


@pytest.mark.parametrize("seed", range(20))
def test_lowered_reservations_are_then_placed(seed: int) -> None:
    rng = random.Random(seed)
    world = world_of(*((f"n{number}", rng.choice((1, 2, 3.5)), rng.choice((256, 512)), {}) for number in range(3)))
    task = waiting(world, cpus=rng.choice((4, 8)), memory=rng.choice((0, 128, 1024)))
    (line,) = advice(world, task)
    words = line.partition(":")[0].split()
    less = {unit: float(number) for number, unit in pairwise(words) if unit in ("CPUs", "MiB")}
    old = world.snapshot.task_specs[task].reservations
    reserved = {
        "NanoCPUs": int(less.get("CPUs", old.nano_cpus / 1e9) * 1e9),
        "MemoryBytes": int(less.get("MiB", old.memory_bytes / MIB)) * MIB,
    }
    world.service("web", template={"ContainerSpec": {"Image": "i"}, "Resources": {"Reservations": reserved}})
    world.settle()
    assert any(task.state == TaskState.ASSIGNED for task in world.tasks("web")), line


def test_a_copy_stays_as_it_is_while_the_world_goes_on() -> None:
    world = world_of(("n1", 4, 1024, {}), ("n2", 4, 1024, {}))
    world.service("web", replicas=3)
    world.settle()
    copy = frozen(world.snapshot)
    before = (repr(copy), copy.columns.used_cpus.tolist(), list(copy.by_service["web"]), copy.waiting.grouped())
    world.service("web", replicas=6, template={"ContainerSpec": {"Image": "i:2"}})
    world.service("big", template={"Resources": {"Reservations": {"NanoCPUs": 10**12}}})
    world.drop("node", "n2")
    world.run()
    assert (repr(copy), copy.columns.used_cpus.tolist(), list(copy.by_service["web"]), copy.waiting.grouped()) == before
    assert repr(frozen(world.snapshot)) != before[0]
