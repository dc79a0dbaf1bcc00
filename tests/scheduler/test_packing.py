"""Lists that are packed: the improver's sets are feasible and close, and what it is not made for goes the usual way."""

from __future__ import annotations

import random

import msgspec
import pytest

from scheduler.index import Index
from scheduler.placement import place
from scheduler.placement.improve import Amount, fill
from scheduler.plan import AssignTasks
from scheduler.settings import Settings
from scheduler.steps import whole
from scheduler.verify import verify
from tests.scheduler.test_placement_reference import NOW, Case


@pytest.mark.parametrize("seed", range(20))
def test_a_node_gets_what_fits_and_a_request_no_more_often_than_it_waits(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [Amount(rng.randint(0, 100), rng.randint(0, 100)) for _ in range(rng.randint(0, 8))]
    requests = [Amount(rng.randint(0, 60), rng.randint(0, 60)) for _ in range(rng.randint(0, 6))]
    counts = [rng.randint(0, 5) for _ in requests]
    filled = whole(fill(nodes, requests, counts, rng.choice((0, 10, 500))))
    assert len(filled) == len(nodes)
    for node, chosen in zip(nodes, filled, strict=True):
        assert sum(requests[at].cpus for at in chosen) <= node.cpus
        assert sum(requests[at].memory for at in chosen) <= node.memory
    for at, count in enumerate(counts):
        assert sum(chosen.count(at) for chosen in filled) <= count


def test_a_set_that_fills_a_node_is_found() -> None:
    nodes = [Amount(100, 100)] * 3
    requests = [Amount(60, 10), Amount(50, 10), Amount(40, 10), Amount(30, 10), Amount(20, 10)]
    filled = whole(fill(nodes, requests, [1, 2, 1, 2, 2], 1000))
    assert [sum(requests[at].cpus for at in chosen) for chosen in filled] == [100, 100, 100]


@pytest.mark.parametrize("seed", range(10))
def test_improved_plans_hold(seed: int) -> None:
    """Whatever waits beside it."""
    case = Case(seed)
    index = Index(case.settings.nominal)
    changes = [(kind, key, msgspec.structs.replace(value, version=1)) for kind, key, value in case.objects() if value]
    index.apply(changes, 1)
    for effort, most in ((50, 1 << 40), (500, 7)):
        settings = Settings(pass_tasks=most, strategy="pack", pack_effort=effort)
        plan = place.decide(index.snapshot(), NOW, settings)
        ids = [task_id for change in plan.changes if isinstance(change, AssignTasks) for task_id in change.ids]
        assert len(ids) == len(set(ids)) <= most
        assert not verify(plan, index.snapshot(), settings)[1]
