"""A speculative Snapshot: the world as it will be once some writes are in it. Pure; nothing that they do not touch is copied.

It decides how a write shows in each part of a Snapshot, as the index does for what is stored (scheduler/index.py); it must not
know why anything is written. Objects keep the version they have in the store (0: not there yet), so that what is decided on
top expects what the store holds.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import msgspec

from covey.model.objects import Service, Stored, Task
from covey.model.resources import Resources
from covey.model.spec import TaskSpec, read_service_spec, read_task_spec
from scheduler.index import holds_place
from scheduler.snapshot import NodeColumns, Snapshot
from scheduler.steps import whole
from scheduler.tally import Branch
from scheduler.writes import Group

V = TypeVar("V")

#: Kind → the field of Snapshot that holds it, for the kinds that are looked up by id and nothing else.
_PLAIN = {
    "task": "tasks",
    "task_status": "statuses",
    "service_status": "service_statuses",
    "network_allocation": "network_allocations",
    "service_allocation": "service_allocations",
    "service": "services",
    "name": "names",
}
#: Kinds that passes write and no decision reads.
_UNSEEN = frozenset({"past_spec"})


#: So many tasks are laid over without a stop.
PART = 1000


class Layer(Mapping[str, V]):
    """A mapping over another: ``over`` gives what is new or changed, None what is gone. What is new comes last."""

    __slots__ = ("_base", "_over", "_size")

    def __init__(self, base: Mapping[str, V], over: Mapping[str, V | None]) -> None:
        if isinstance(base, Layer):
            # Two layers are one, or what is laid over again and again would get slower and slower.
            below: Layer[V] = base
            base, over = below._base, {**below._over, **over}
        self._base: Mapping[str, V] = base
        self._over: Mapping[str, V | None] = over
        fresh = sum(value is not None and key not in base for key, value in over.items())
        gone = sum(value is None and key in base for key, value in over.items())
        self._size = len(base) + fresh - gone

    def __getitem__(self, key: str) -> V:
        if key in self._over:
            value = self._over[key]
            if value is None:
                raise KeyError(key)
            return value
        return self._base[key]

    def __contains__(self, key: object) -> bool:
        if key in self._over:
            return self._over[cast("str", key)] is not None
        return key in self._base

    def get(self, key: str, default: Any = None) -> Any:
        """As of any mapping; asked so often that the general way is too slow."""
        if key in self._over:
            value = self._over[key]
            return default if value is None else value
        return self._base.get(key, default)

    def __iter__(self) -> Iterator[str]:
        over, base = self._over, self._base
        for key in base:
            if key not in over or over[key] is not None:
                yield key
        for key, value in over.items():
            if value is not None and key not in base:
                yield key

    def __len__(self) -> int:
        return self._size


def shows(groups: Iterable[Group]) -> bool:
    """Whether an overlay can show everything that ``groups`` write."""
    return all(write.kind in _PLAIN for group in groups for write in group.writes)


def overlay(snapshot: Snapshot, groups: Iterable[Group], nominal: Resources) -> Snapshot:
    """``snapshot`` with the writes of ``groups`` in it. KeyError for a kind that it cannot show.

    ``nominal`` stands in for empty reservations, as in the index.
    """
    return whole(parts(snapshot, groups, nominal))


def parts(snapshot: Snapshot, groups: Iterable[Group], nominal: Resources) -> Generator[None, None, Snapshot]:
    """As ``overlay``, stopping now and then; ``snapshot`` must not change meanwhile."""
    written: dict[str, dict[str, Stored | None]] = {}
    for group in groups:
        for kind, key, expected, value in group.writes:
            if value is not None and expected:
                value = msgspec.structs.replace(value, version=expected)
            written.setdefault(kind, {})[key] = value
    if not written:
        return snapshot
    fields: dict[str, Any] = {}
    for kind, over in written.items():
        if kind not in _UNSEEN:
            name = _PLAIN[kind]
            fields[name] = Layer(getattr(snapshot, name), over)
    if services := cast("dict[str, Service | None]", written.get("service", {})):
        views = {key: read_service_spec(one.spec) if one is not None else None for key, one in services.items()}
        fields["service_specs"] = Layer(snapshot.service_specs, views)
    ahead = replace(snapshot, **fields)
    moved = [*written.get("task", {}), *(key for key in written.get("task_status", {}) if key not in written.get("task", {}))]
    if moved:
        ahead = replace(ahead, **(yield from _derived(snapshot, ahead, moved, nominal)))
    return ahead


def _derived(
    before: Snapshot, after: Snapshot, moved: Iterable[str], nominal: Resources
) -> Generator[None, None, dict[str, Any]]:
    """What the index keeps beside the objects, brought up to date with the tasks ``moved``."""
    specs: dict[str, TaskSpec | None] = {}
    views: dict[tuple[str, int], TaskSpec] = {}
    by_service, by_node = _Groups(before.by_service), _Groups(before.by_node)
    columns = _Columns(before)
    tally = Branch(before.waiting, before.replicas, before.failures)
    bonded, parted = dict(before.bonded), set[tuple[str, int]]()
    for at, key in enumerate(moved):
        if at % PART == 1:
            # After the first as well: it has what all of them change copied.
            yield
        old: Task | None = before.tasks.get(key)
        new: Task | None = after.tasks.get(key)
        by_service.move(old.service_id if old else "", new.service_id if new else "", key)
        by_node.move(old.node_id if old else "", new.node_id if new else "", key)
        if new is None:
            specs[key] = None
            if old is not None and (old.service_id, old.spec_version) in bonded:
                parted.add((old.service_id, old.spec_version))
        elif old is None or old.spec_version != new.spec_version:
            name = (new.service_id, new.spec_version)
            if name not in views:
                views[name] = read_task_spec(new.spec, new.service_labels)
                if views[name].placement.affinities:
                    bonded.setdefault(name, views[name])
            specs[key] = views[name]
        old_status, new_status = before.statuses.get(key), after.statuses.get(key)
        tally.change(key, old, old_status, new, new_status)
        if old is not None and holds_place(old, old_status):
            columns.count(old.node_id, before.task_specs[key], nominal, -1)
        if new is not None and holds_place(new, new_status):
            columns.count(new.node_id, specs.get(key) or before.task_specs[key], nominal, 1)
    services = Layer(before.by_service, by_service.changed)
    for service_id, version in parted:
        if all(after.tasks[key].spec_version != version for key in services.get(service_id, ())):
            del bonded[service_id, version]
    return {
        "task_specs": Layer(before.task_specs, specs) if specs else before.task_specs,
        "by_service": services,
        "by_node": Layer(before.by_node, by_node.changed),
        "columns": columns.now,
        "waiting": tally.waiting,
        "bonded": bonded,
        "replicas": tally.replicas,
        "failures": tally.failures,
    }


class _Groups:
    """Ids by something; a group is copied when it is first changed."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        self._base = base
        self.changed: dict[str, dict[str, None] | None] = {}

    def move(self, old: str, new: str, key: str) -> None:
        if old == new:
            return
        if old:
            group = self._group(old)
            del group[key]
            if not group:
                self.changed[old] = None
        if new:
            self._group(new)[key] = None

    def _group(self, name: str) -> dict[str, None]:
        group = self.changed.get(name)
        if group is None:
            held = () if name in self.changed else self._base.get(name, ())
            group = self.changed[name] = dict.fromkeys(held)
        return group


class _Columns:
    """The nodes' columns; those that count tasks are copied when one is first counted."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._nodes = snapshot.nodes
        self.now: NodeColumns = snapshot.columns
        self._own = False

    def count(self, node_id: str, spec: TaskSpec, nominal: Resources, sign: int) -> None:
        view = self._nodes.get(node_id)
        if view is None:
            return
        if not self._own:
            names = ("used_cpus", "used_memory", "nominal_cpus", "nominal_memory", "tasks")
            self.now = replace(self.now, **{name: getattr(self.now, name).copy() for name in names})
            self._own = True
        asked, row = spec.reservations, view.row
        counted = asked if asked else nominal
        self.now.used_cpus[row] += sign * asked.nano_cpus
        self.now.used_memory[row] += sign * asked.memory_bytes
        self.now.nominal_cpus[row] += sign * counted.nano_cpus
        self.now.nominal_memory[row] += sign * counted.memory_bytes
        self.now.tasks[row] += sign
