"""Part of the table `scheduler`: the longest step of a pass, by what it does; rule 15 of the house allows 50 ms.

Worlds of which a pass was too long once. Nothing is written: each pass is done on the world as it stands, by ``Pass.steps``, as
the leader's runner does, and what passes between two stops is CPU time of this process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from covey.ids import task_id
from covey.model.objects import Node, NodeDescription, NodeInfo, NodeStatus, Service, Session, Stored, Task, TaskStatus
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import TaskState
from scheduler import liveness, reap
from scheduler.index import Index
from scheduler.passes import TASKS, Pass, Stage
from scheduler.settings import Settings

NOW = 1_000_000.0
LIMIT = 0.05
OTHERS = (Stage("liveness", liveness.parts), Stage("reap", reap.parts))

Change = tuple[str, str, Stored | None]


def run() -> None:
    """Print a line a world."""
    print(f"\n{'longest step of a pass, CPU time (aim: 50 ms)':58}{'ms':>8}  of")
    for title, made, stages in WORLDS:
        name, seconds, steps = _longest(list(made()), stages)
        verdict = "met" if seconds <= LIMIT else "MISSED"
        print(f"{title:58}{seconds * 1000:8.1f}  {name}, {steps} steps  {verdict}", flush=True)


def _longest(objects: list[Change], stages: Sequence[Stage]) -> tuple[str, float, int]:
    index = Index()
    index.apply(objects, 1)
    gc.collect()
    gc.freeze()
    most, where, steps = 0.0, "", 0
    work = Pass(index.snapshot(), NOW, Settings(), stages)
    began = time.process_time()
    for name in work.steps():
        spent = time.process_time() - began
        steps += 1
        if spent > most:
            most, where = spent, name
        began = time.process_time()
    gc.unfreeze()
    return where, most, steps


def _nodes(count: int) -> Iterator[Change]:
    size = Resources(nano_cpus=640 * NANO, memory_bytes=2560 * 1024 * MIB)
    for number in range(count):
        name = f"node{number:06}"
        yield ("node", name, Node(id=name, name=name, version=1))
        described = NodeDescription(hostname=name, architecture="x86_64", resources=size)
        yield ("node_info", name, NodeInfo(id=name, description=described, version=1))
        yield ("node_status", name, NodeStatus(id=name, state="ready", session="s", version=1))
        yield ("session", name, Session(id=name, session_id="s", manager_id="m", version=1))


def _services(count: int, replicas: int, state: TaskState | None, **fields: Any) -> Iterator[Change]:
    """Services on 1,000 nodes; their tasks run, or are in ``state``, or there are none yet (None)."""
    yield from _nodes(1000)
    for number in range(count):
        name = f"service{number:06}"
        template = {
            "ContainerSpec": {"Image": "app"},
            "Resources": {"Reservations": {"NanoCPUs": (number % 1000 + 1) * 1000, "MemoryBytes": (number % 977 + 1) * 1024}},
        }
        spec = {"Name": name, "Mode": {"Replicated": {"Replicas": replicas}}, "TaskTemplate": template}
        yield ("service", name, Service(id=name, spec=spec, created_at=NOW - 200, version=1))
        for slot in range(1, replicas + 1 if state is not None else 1):
            key = task_id(name, slot, "", 1)
            node = f"node{slot % 1000:06}" if state == TaskState.RUNNING else ""
            task = Task(
                id=key, service_id=name, service_name=name, slot=slot, spec=template, node_id=node, version=1,
                state=TaskState.ASSIGNED if node else state or TaskState.NEW, created_at=NOW - 100, **fields,
            )  # fmt: skip
            yield ("task", key, task)
            if node:
                yield ("task_status", key, TaskStatus(id=key, node_id=node, state=TaskState.RUNNING, at=NOW - 50, version=1))


def _updated(replicas: int) -> Iterator[Change]:
    """One service all of whose tasks are of a former spec."""
    for kind, key, value in _services(1, replicas, TaskState.RUNNING):
        if isinstance(value, Service):
            spec = {**value.spec, "UpdateConfig": {"Parallelism": 0}}
            spec["TaskTemplate"] = {**spec["TaskTemplate"], "ForceUpdate": 1}
            value = msgspec.structs.replace(value, spec=spec, spec_version=2, generation=2)
        yield kind, key, value


WORLDS: Sequence[tuple[str, Callable[[], Iterator[Change]], Sequence[Stage]]] = (
    ("one service of 10,000 tasks, nothing to do", lambda: _services(1, 10_000, TaskState.RUNNING), TASKS),
    ("one service of 100,000 tasks, nothing to do", lambda: _services(1, 100_000, TaskState.RUNNING), TASKS),
    ("one service of 10,000 tasks to be made", lambda: _services(1, 10_000, None), TASKS),
    ("one service of 10,000 tasks to be replaced at once", lambda: _updated(10_000), TASKS),
    ("one service of 100,000 tasks that wait", lambda: _services(1, 100_000, TaskState.PENDING), TASKS),
    ("100,000 services of one task that waits", lambda: _services(100_000, 1, TaskState.PENDING), TASKS),
    ("liveness and reap, one service of 100,000 tasks", lambda: _services(1, 100_000, TaskState.RUNNING), OTHERS),
    ("liveness and reap, 100,000 services of one task", lambda: _services(100_000, 1, TaskState.RUNNING), OTHERS),
    (
        "reap, 100,000 tasks that are to be removed",
        lambda: _services(50, 2000, TaskState.PENDING, desired=TaskState.REMOVE),
        OTHERS,
    ),
)
