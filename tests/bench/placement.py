"""The table `scheduler`: how fast placement decides and how tightly it packs, one process on one core, no store.

Speed: a cluster is put into the index as the mirror does it, object by object and in no order (timed as *columns*; *rows* is
the part of it that counts tasks and gives those that wait a row, measured apart), then ``place.decide`` is timed from
``Index.snapshot()`` to the finished Plan: grouping what waits (*group*, printed beside as well), the working copy of the node
columns, the order of the groups, every choice, the task → node map and its tuples. The snapshot has one row a task that waits,
not grouped (scheduler/waiting.py). Beside it: *verify*, as the committer does before it writes, and *encode*, every changed
task to the bytes that are stored. ``pass_tasks`` is lifted: the whole is one pass here, where the leader's are cut.
Times are CPU time of this process, which collects cycles as seldom as a manager. Packing: see
``packing.py``; the longest step of a pass: see ``longest.py``.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import longest
import msgspec
import packing

from covey.ids import task_id
from covey.model.objects import Node, NodeDescription, NodeInfo, NodeStatus, Stored, Task
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import TaskState
from manager.main import COLLECT
from manager.store.codec import encode
from scheduler.index import Index
from scheduler.placement import place
from scheduler.plan import AssignTasks, Plan
from scheduler.settings import Settings
from scheduler.tally import Tally
from scheduler.verify import verify
from scheduler.writes import groups

NOW = 1_000_000.0
SETTINGS = Settings(pass_tasks=1 << 60)
#: (title, nodes, tasks, services, strategy, tasks/s aimed at): 0 services are as many as tasks, each its own request.
CASES = (
    ("50 services", 10_000, 100_000, 50, "binpack", 1_500_000),
    ("50 services", 10_000, 100_000, 50, "spread", 1_500_000),
    ("1,000 services", 10_000, 100_000, 1_000, "binpack", 400_000),
    ("1,000 services", 10_000, 100_000, 1_000, "spread", 400_000),
    ("one-off tasks", 10_000, 100_000, 0, "binpack", 50_000),
    ("one-off tasks", 10_000, 100_000, 0, "spread", 50_000),
)
GROWTH = (
    (1_000, 10_000),
    (1_000, 100_000),
    (10_000, 100_000),
    (10_000, 1_000_000),
    (100_000, 100_000),
    (100_000, 1_000_000),
)


def run(rounds: int, trace: str | None = None) -> int:
    """Print both tables; 0 also when an aim is missed, which the table says."""
    gc.set_threshold(*COLLECT)
    print(f"{'placement, one core, CPU time':44}{'nodes':>8}{'tasks':>9}{'columns s':>10}{'rows s':>8}{'group s':>8}"
          f"{'decide s':>10}{'tasks/s':>11}{'aim':>11}{'verify s':>10}{'encode s':>10}")  # fmt: skip
    for title, nodes, tasks, services, strategy, aim in CASES:
        _row(f"{title}, {strategy}", nodes, tasks, services, strategy, aim, rounds)
    for nodes, tasks in GROWTH:
        _row("growth, 50 services, binpack", nodes, tasks, 50, "binpack", 0, 1)
    packing.run(trace)
    longest.run()
    return 0


def _row(title: str, nodes: int, tasks: int, services: int, strategy: str, aim: int, rounds: int) -> None:
    index = Index()
    objects = list(_cluster(nodes, tasks, services, strategy))
    started = time.process_time()
    index.apply(objects, 1)
    columns = time.process_time() - started
    rows = _rows(index)
    # What the mirror holds is old when a decision runs: collecting it is not the decision's work.
    gc.collect()
    gc.freeze()
    decided = []
    for _ in range(rounds):
        sys.stderr.write(f"\rbench: {title}, {nodes} nodes   ")
        started = time.process_time()
        plan = place.decide(index.snapshot(), NOW, SETTINGS)
        decided.append(time.process_time() - started)
    started = time.process_time()
    index.snapshot().waiting.grouped()
    grouped = time.process_time() - started
    placed = sum(len(change.ids) for change in plan.changes if isinstance(change, AssignTasks))
    if placed != tasks:
        raise SystemExit(f"bench: {title}: {placed} of {tasks} tasks were placed")
    verified, encoded = _committed(plan, index) if tasks <= 100_000 else (float("nan"), float("nan"))
    gc.unfreeze()
    rate = tasks / sorted(decided)[len(decided) // 2]
    said = f"{aim:>11,}" if aim else f"{'':11}"
    verdict = "" if not aim else "  met" if rate >= aim else "  MISSED"
    sys.stderr.write("\r" + " " * 60 + "\r")
    print(f"{title:44}{nodes:8}{tasks:9}{columns:10.2f}{rows:8.2f}{grouped:8.3f}{tasks / rate:10.3f}{rate:11,.0f}{said}"
          f"{verified:10.2f}{encoded:10.2f}{verdict}", flush=True)  # fmt: skip


def _rows(index: Index) -> float:
    """CPU seconds of finding the waiting tasks among all and of giving them a row, as the index does task by task."""
    tally = Tally()
    started = time.process_time()
    for task in index.snapshot().tasks.values():
        tally.count(task.id, task, None)
    return time.process_time() - started


def _committed(plan: Plan, index: Index) -> tuple[float, float]:
    """CPU seconds of verifying the plan, and of making and encoding what is to be written."""
    started = time.process_time()
    accepted, refusals = verify(plan, index.snapshot(), SETTINGS)
    verified = time.process_time() - started
    if refusals:
        raise SystemExit(f"bench: a fresh plan was refused: {refusals[0]}")
    started = time.process_time()
    for group in groups(accepted, index.snapshot(), NOW):
        for write in group.writes:
            if write.value is not None:
                encode(write.value)
    return verified, time.process_time() - started


def _cluster(nodes: int, tasks: int, services: int, strategy: str) -> Iterator[tuple[str, str, Stored | None]]:
    """Nodes of 64 CPUs and 256 GiB (scaled up where there are more tasks a node), and pending tasks."""
    size = max(1, tasks // nodes // 20)
    described = NodeDescription(
        hostname="node",
        architecture="x86_64",
        resources=Resources(nano_cpus=64 * NANO * size, memory_bytes=size * 256 * 1024 * MIB),
    )
    for number in range(nodes):
        name = f"node{number:06}"
        yield ("node", name, Node(id=name, name=name, version=1))
        yield ("node_info", name, NodeInfo(id=name, description=msgspec.structs.replace(described, hostname=name), version=1))
        yield ("node_status", name, NodeStatus(id=name, state="ready", version=1))
    yield from _tasks(tasks, services, strategy)


def _tasks(tasks: int, services: int, strategy: str) -> list[tuple[str, str, Stored | None]]:
    rng = random.Random(1)
    each = tasks // services if services else 1
    made: list[tuple[str, str, Stored | None]] = []
    for number in range(services or tasks):
        service = f"service{number:06}"
        spec = _template(rng, strategy, bool(services))
        for slot in range(1, each + 1):
            name = task_id(service, slot, "", 1)
            task = Task(
                id=name, service_id=service, service_name=service, slot=slot, spec=spec, state=TaskState.PENDING,
                created_at=NOW - 100 + number * 1e-4, version=1,
            )  # fmt: skip
            made.append(("task", name, task))
    rng.shuffle(made)
    return made


def _template(rng: random.Random, strategy: str, few: bool) -> dict[str, Any]:
    """Services ask for whole tenths of a CPU, one-off tasks for any amounts, so that no two are alike."""
    cpus = rng.randint(1, 20) * NANO // 10 if few else rng.randint(NANO // 10, 2 * NANO)
    memory = rng.randint(1, 64) * 64 * MIB if few else rng.randint(64 * MIB, 8192 * MIB)
    return {
        "ContainerSpec": {"Image": "app"},
        "Resources": {"Reservations": {"NanoCPUs": cpus, "MemoryBytes": memory}},
        "Placement": {"Strategy": strategy},
    }
