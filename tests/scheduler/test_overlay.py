"""A speculative snapshot is what the index would show once the writes are stored, versions apart."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from covey.model import versions
from covey.model.objects import Name, Stored
from covey.model.task_states import TaskState
from scheduler.index import Index
from scheduler.overlay import overlay
from scheduler.snapshot import Snapshot
from scheduler.writes import Group, Write, groups
from tests.scheduler.apply import World, busy

MAPPINGS = ("tasks", "statuses", "service_statuses", "network_allocations", "service_allocations")
COLUMNS = ("used_cpus", "used_memory", "nominal_cpus", "nominal_memory", "tasks")


def shown(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that an overlay may change, as plain values without versions."""
    plain: dict[str, Any] = {}
    for name in MAPPINGS:
        held = getattr(snapshot, name)
        plain[name] = {key: msgspec.structs.replace(held[key], version=0) for key in held}
        assert len(held) == len(plain[name])
        assert all(key in held and held.get(key) == held[key] for key in plain[name])
    for name in ("by_service", "by_node"):
        plain[name] = {key: sorted(ids) for key, ids in getattr(snapshot, name).items()}
    plain["specs"] = dict(snapshot.task_specs)
    plain["columns"] = {name: getattr(snapshot.columns, name).tolist() for name in COLUMNS}
    plain["waiting"] = snapshot.waiting.grouped()
    plain["queues"], plain["bonded"] = dict(snapshot.waiting.queues), dict(snapshot.bonded)
    plain["replicas"] = {key: dict(nodes) for key, nodes in snapshot.replicas.items()}
    plain["failures"] = {key: dict(found) for key, found in snapshot.failures.items()}
    return plain


def stored(index: Index, made: list[Group]) -> None:
    revision = index.revision + 1
    changes: list[tuple[str, str, Stored | None]] = []
    for group in made:
        for write in group.writes:
            value = write.value
            changes.append((write.kind, write.id, msgspec.structs.replace(value, version=revision) if value else None))
    index.apply(changes, revision)


@pytest.mark.parametrize("seed", range(40))
def test_an_overlay_shows_what_the_index_will(seed: int) -> None:
    rng = random.Random(seed)
    world = busy(rng)
    for name in ("reconcile", "allocate", "placement", "reap"):
        made = list(groups(world.decide(name), world.snapshot, world.now))
        with world.index.freeze_check() as snapshot:
            ahead = shown(overlay(snapshot, made, world.settings.nominal))
        stored(world.index, made)
        assert ahead == shown(world.snapshot), name


def test_what_is_decided_on_top_expects_what_the_store_holds() -> None:
    world = World()
    world.node("n1")
    world.service("s")
    world.step()
    task = world.tasks("s")[0]
    moved = msgspec.structs.replace(task, desired=TaskState.SHUTDOWN, version=0)
    fresh = msgspec.structs.replace(task, id="fresh", version=0)
    made = [Group((Write("task", task.id, task.version, moved),), ""), Group((Write("task", "fresh", 0, fresh),), "")]
    ahead = overlay(world.snapshot, made, world.settings.nominal)
    assert (ahead.tasks[task.id].version, ahead.tasks["fresh"].version) == (task.version, 0)
    assert overlay(world.snapshot, [], world.settings.nominal) is world.snapshot


def test_a_spec_that_comes_back_shows_with_its_view_and_what_nobody_reads_does_not() -> None:
    world = World()
    world.service("web", replicas=2)
    held = world.service("web", replicas=5)
    held = world.snapshot.services[held.id]
    back = versions.rolled_back(held, world.now)
    past = versions.current(held)
    written = (
        Write("service", held.id, held.version, back),
        Write("past_spec", past.id, 0, past),
        Write("name", "port/80", 0, Name(id=held.id)),
    )
    ahead = overlay(world.snapshot, [Group(written, "the update failed")], world.settings.nominal)
    assert ahead.services["web"].spec["Mode"] == {"Replicated": {"Replicas": 2}}
    assert ahead.services["web"].version == held.version
    assert ahead.service_specs["web"].replicas == 2
    assert ahead.names["port/80"].id == held.id
    assert world.snapshot.service_specs["web"].replicas == 5
