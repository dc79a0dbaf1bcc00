"""What would make a waiting task fit: each thing it asks for is taken back alone, and placement's own filters are asked again.

Pure. It decides which changes are worth naming and their words; whether they help is never its own opinion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from covey.model.objects import Task
from covey.model.resources import MIB, NANO, Resources
from covey.model.spec import PlacementPolicy, TaskSpec
from scheduler.overlay import Layer
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity, Rows
from scheduler.placement.feasible import has_room, suitable
from scheduler.placement.request import request_of
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

#: Nodes that are named in one line.
_NAMED = 3


def advise(snapshot: Snapshot, task_id: str, now: float, settings: Settings) -> tuple[str, ...]:
    """Lines, each a change that alone lets the task be placed now; none: no single change does. KeyError: no such task."""
    asking = _Asking(snapshot, snapshot.tasks[task_id], now, settings)
    spec = snapshot.task_specs[task_id]
    if len(asking.fitting(spec)[1]):
        return ()
    lines = [line for line in (_reserve_less(asking, spec),) if line]
    for words, other, ports in _less(spec, asking.task):
        capacity, rows = asking.fitting(other, ports=ports)
        if len(rows):
            lines.append(f"{words}: it then fits on {_named(capacity, rows)}")
    return tuple(lines)


class _Asking:
    """One task, asked about as if it wanted something else."""

    def __init__(self, snapshot: Snapshot, task: Task, now: float, settings: Settings) -> None:
        self.task = task
        self._snapshot = snapshot
        self._now = now
        self._settings = settings

    def fitting(self, spec: TaskSpec, *, ports: bool = True) -> tuple[Capacity, Rows]:
        """The rows on which the task would fit with ``spec``, and without its ports."""
        task = self.task if ports else msgspec.structs.replace(self.task, ports=())
        specs = Layer(self._snapshot.task_specs, {task.id: spec})
        tasks = Layer(self._snapshot.tasks, {task.id: task})
        capacity = Capacity(replace(self._snapshot, task_specs=specs, tasks=tasks), self._settings)
        request = request_of(task, capacity, self._now, Bonds(capacity), shared=True)
        fits = suitable(capacity, request) & has_room(capacity, request, slice(None))
        rows = np.flatnonzero(fits)
        if task.node_id and not task.slot:
            rows = rows[[capacity.ids[row] == task.node_id for row in rows.tolist()]]
        return capacity, rows


def _reserve_less(asking: _Asking, spec: TaskSpec) -> str:
    """The least that has to be given up of the reservations for one node to have room, as a line; "" if that is no help."""
    asked = spec.reservations
    if not asked:
        return ""
    capacity, rows = asking.fitting(msgspec.structs.replace(spec, reservations=Resources()))
    if not len(rows):
        return ""
    cpus, memory = np.maximum(capacity.free_cpus[rows], 0), np.maximum(capacity.free_memory[rows], 0)
    shares = np.minimum(cpus / max(asked.nano_cpus, 1), 1.0) + np.minimum(memory / max(asked.memory_bytes, 1), 1.0)
    best = int(shares.argmax())
    lowered = Resources(
        nano_cpus=min(asked.nano_cpus, int(cpus[best])),
        memory_bytes=min(asked.memory_bytes, int(memory[best])),
        generic=asked.generic,
        generic_named=asked.generic_named,
    )
    _, fitting = asking.fitting(msgspec.structs.replace(spec, reservations=lowered))
    if not len(fitting):
        kinds = ", ".join(sorted({*asked.generic, *asked.generic_named}))
        return f"reserve fewer generic resources ({kinds}): it then fits on {_named(capacity, rows)}" if kinds else ""
    parts = []
    if lowered.nano_cpus < asked.nano_cpus:
        parts.append(f"at most {lowered.nano_cpus / NANO:g} CPUs ({asked.nano_cpus / NANO:g} asked for)")
    if lowered.memory_bytes < asked.memory_bytes:
        parts.append(f"at most {lowered.memory_bytes / MIB:g} MiB ({asked.memory_bytes / MIB:g} asked for)")
    return f"reserve {' and '.join(parts)}: it then fits on {_named(capacity, rows[best : best + 1])}"


def _less(spec: TaskSpec, task: Task) -> Iterator[tuple[str, TaskSpec, bool]]:
    """Words, the spec that asks for one thing less, and whether the task keeps its ports."""
    policy = spec.placement
    for constraint in policy.constraints:
        others = tuple(each for each in policy.constraints if each is not constraint)
        yield f"take back the constraint {constraint}", _placed(spec, constraints=others), True
    if len(policy.constraints) > 1:
        yield "take back all constraints", _placed(spec, constraints=()), True
    if any(affinity.required for affinity in policy.affinities):
        wishes = tuple(each for each in policy.affinities if not each.required)
        yield "require no affinity to other services", _placed(spec, affinities=wishes), True
    if policy.max_replicas:
        yield f"allow more than {policy.max_replicas} replicas a node", _placed(spec, max_replicas=0), True
    if policy.platforms:
        yield "use an image for other platforms", _placed(spec, platforms=()), True
    if any(port.mode == "host" and port.published for port in task.ports):
        yield "publish no port in host mode", spec, False
    if spec.plugins:
        names = ", ".join(f"{kind} {name}" for kind, name in spec.plugins)
        yield f"use no plugin ({names})", msgspec.structs.replace(spec, plugins=()), True
    if spec.cluster_volumes:
        yield "mount no cluster volume", msgspec.structs.replace(spec, cluster_volumes=False), True


def _placed(spec: TaskSpec, **fields: Any) -> TaskSpec:
    policy: PlacementPolicy = msgspec.structs.replace(spec.placement, **fields)
    return msgspec.structs.replace(spec, placement=policy)


def _named(capacity: Capacity, rows: Rows) -> str:
    names = sorted(capacity.view(row).hostname for row in rows.tolist())
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
