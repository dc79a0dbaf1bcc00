"""Scarce worlds in the simulation: too little room for what is asked for, and what must hold of who gets it.

One seed in five draws small machines, and services that differ in priority and stand in groups. The oracle follows the store
alone: who waits since when, who is told to leave and for whom. It uses nothing of what places tasks. It judges a leader only
by what that one must have known: nothing of the last moment, and nobody whose view is disturbed on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from covey.model.objects import Service, Stored, Task
from covey.model.resources import NANO
from covey.model.task_states import TaskState, is_terminal

if TYPE_CHECKING:
    from scheduler.index import Index
    from tests.sim.controller import Controller
    from tests.sim.loop import Process
    from tests.sim.simulation import Simulation

S = TaskState

SHARE = 0.2
"""Of all seeds."""
KNOWN = 0.5
"""What is in the store for so many seconds, a leader whose view is not disturbed has decided with."""
PASS = 0.1
"""So long a pass is being written, at the most."""
STALLED = 2.0
"""So long after it was stopped a leader may still write what it decided before."""
PREEMPTED = "preempted by task "
LATE = "late"
GROUPS = ("red", "blue")


class World(NamedTuple):
    """How large machines and requests are, in halves of a CPU; ``eager``: how much more than others users create.

    Of the ``networks`` that services ask for, all but the first are made late.
    """

    machines: tuple[int, ...] = (6,)
    requests: tuple[int, ...] = (0, 1)
    priorities: tuple[int, ...] = (0, 0, 1, 5)
    services: int = 4
    eager: int = 0
    networks: tuple[str, ...] = ("net",)
    grouped: float = 0.0

    @property
    def scarce(self) -> bool:
        return self != PLENTY

    def machine(self, rng: random.Random) -> int:
        """CPUs of a new machine, in halves."""
        return self.machines[0] if len(self.machines) == 1 else rng.choice(self.machines)

    def placement(self, rng: random.Random, mode: Mapping[str, Any]) -> dict[str, Any]:
        """What a user says of where a service's tasks shall be."""
        said = {"Strategy": rng.choice(("", "spread", "pack")), "Priority": rng.choice(self.priorities)}
        if self.grouped and "Replicated" in mode and rng.random() < self.grouped:
            said["Group"] = rng.choice(GROUPS)
        return said

    def network(self, rng: random.Random) -> str:
        return self.networks[0] if len(self.networks) == 1 else rng.choice(self.networks)

    def request(self, rng: random.Random, mode: Mapping[str, Any]) -> int:
        """Nano-CPUs that a task reserves. Global services reserve nothing: they must fit on a node that others have filled."""
        return 0 if "Global" in mode or "GlobalJob" in mode else rng.choice(self.requests) * NANO // 2


PLENTY = World()
SCARCE = World(
    machines=(2, 3, 3),
    requests=(0, 1, 1, 2, 2),
    priorities=(0, 0, 1, 3, 5, 5),
    services=6,
    eager=6,
    networks=("net", LATE),
    grouped=0.4,
)


def drawn(seed: int) -> World:
    """The world of a seed; that of others is as it would be without."""
    return SCARCE if random.Random(f"scarce {seed}").random() < SHARE else PLENTY


class Preempted(NamedTuple):
    """One victim: told ``at`` by ``process``, for the task ``by``; ``rooms``: what each node in use would have had without."""

    at: float
    task: Task
    by: str
    process: Process | None
    rooms: tuple[int, ...]


class ScarcityOracle:
    """Judges every change of the store as far as it is about priorities and groups; ``broken`` is told what is wrong."""

    def __init__(self, sim: Simulation, truth: Index, broken: Callable[[str, str], None]) -> None:
        self._sim = sim
        self._truth = truth
        self._broken = broken
        self._priorities: dict[str, int] = {}
        self._waits: dict[str, float] = {}
        self._freed: dict[str, float] = {}
        self._usable: dict[str, float] = {}
        self._born: dict[str, float] = {}
        self._placed: dict[str, float] = {}
        self._assigned: dict[str, Task] = {}
        self._told: list[Task] = []
        self._open: list[Preempted] = []
        self._groups = GROUPS if sim.world.grouped else ()
        self._begun: dict[str, float] = {}
        self._held: set[str] = set()
        self._specs: dict[str, list[tuple[float, Service | None]]] = {}

    # -- what is heard of the store ----------------------------------------------------------------------------------

    def before(self, kind: str, key: str, old: Any, new: Any) -> None:
        """One object is about to change; the truth is still without it."""
        if kind == "service":
            self._specs.setdefault(key, []).append((self._sim.loop.time(), old))
        if kind != "task" or new is None:
            return
        self._priorities[key] = _placement(new.spec).get("Priority", 0)
        self._born.setdefault(key, self._sim.loop.time())
        if new.state == S.ASSIGNED and (old is None or old.state < S.ASSIGNED):
            self._assigned[key] = new
            self._placed[key] = self._sim.loop.time()
        preempted = old is not None and old.desired < S.SHUTDOWN == new.desired and new.cause.startswith(PREEMPTED)
        self._told += [new] if preempted else []

    def after(self, changes: Iterable[tuple[str, str, Stored | None]], writer: Controller | None) -> None:
        """The truth has taken ``changes`` in."""
        now, snapshot = self._sim.loop.time(), self._truth.snapshot()
        told, self._told = self._told, []
        assigned, self._assigned = self._assigned, {}
        for kind, key, _ in changes:
            if kind in ("task", "task_status"):
                self._note_task(key, now)
            elif kind in ("node", "node_status", "session"):
                view = snapshot.nodes.get(key)
                if view is None or not view.ready:
                    self._usable.pop(key, None)
                else:
                    self._usable.setdefault(key, now)
        # What ran until this revision was there until just now.
        self._begun |= dict.fromkeys(self._held, now)
        if told:
            # Of those it told itself, in another pass, a leader knows at once: it waits until it sees what it wrote.
            itself = {each.task.id for each in self._open if each.process is writer.process} if writer is not None else set()
            known = itself - {each.task.id for each in self._open if each.at > now - PASS}
            usable = [node_id for node_id, since in self._usable.items() if since <= now - KNOWN]
            rooms = tuple(self._surely_free(node_id, told, known) for node_id in usable)
            for task in told:
                self._sim.cover("preempted")
                by = task.cause.removeprefix(PREEMPTED).split()[0]
                process = writer.process if writer is not None else None
                self._open.append(Preempted(now, task, by, process, rooms if self._sure(writer) else ()))
                if self._sure(writer):
                    self._judge_choice(task)
        if assigned and self._sure(writer):
            self._judge_order(assigned)
            self._judge_groups(assigned, {key for kind, key, _ in changes if kind == "task"})
        self._held = {group for group in self._groups if self._running(group)}

    def check(self) -> None:
        """Time has passed: what was not to be judged at once."""
        due = [each for each in self._open if each.at <= self._sim.loop.time() - KNOWN]
        self._open = self._open[len(due) :]
        for each in due:
            self._judge_victim(each)

    def _note_task(self, key: str, now: float) -> None:
        snapshot = self._truth.snapshot()
        task = snapshot.tasks.get(key)
        if task is None:
            self._waits.pop(key, None)
            self._freed.pop(key, None)
            return
        if task.state == S.PENDING and task.desired <= S.COMPLETE:
            self._waits.setdefault(key, now)
        else:
            self._waits.pop(key, None)
        if task.state >= S.ASSIGNED and (task.desired >= S.SHUTDOWN or is_terminal(snapshot.state(task))):
            self._freed.setdefault(key, now)

    def _sure(self, writer: Controller | None) -> bool:
        """Whether who writes has seen everything but the last moment."""
        now = self._sim.loop.time()
        if writer is None or now < writer.excused_until or writer.writes_late():
            return False
        return not writer.resumed_at or writer.resumed_at < now - STALLED

    # -- room ----------------------------------------------------------------------------------------------------------

    def _total(self, node_id: str) -> int:
        view = self._truth.snapshot().nodes.get(node_id)
        info = view.info if view is not None else None
        return info.description.resources.nano_cpus if info is not None else 0

    def _room(self, node_id: str, stays: Callable[[Task], bool]) -> int:
        """What a node has left, if of those with a place there ``stays`` says who keeps it."""
        tasks = self._truth.snapshot().tasks_on(node_id)
        return self._total(node_id) - sum(_asked(task) for task in tasks if task.state >= S.ASSIGNED and stays(task))

    def _surely_free(self, node_id: str, told: Iterable[Task] = (), known: Collection[str] = ()) -> int:
        """What has been free, or about to be, for a while, if ``told`` stay; who is ``known`` to leave does."""
        since, ids = self._sim.loop.time() - KNOWN, {task.id for task in told}

        def stays(task: Task) -> bool:
            return task.id in ids or (task.id not in known and self._freed.get(task.id, since + 1) > since)

        return self._room(node_id, stays)

    def _maybe_free(self, node_id: str) -> int:
        """What is free, or will be once everybody is gone who is told to."""
        return self._room(node_id, lambda task: task.id not in self._freed)

    # -- priorities ------------------------------------------------------------------------------------------------------

    def _judge_victim(self, each: Preempted) -> None:
        mine, its = self._priorities[each.task.id], self._priorities.get(each.by)
        if its is None:
            return
        if its <= mine:
            self._broken("preempted for no higher priority", f"{each.task.id} of {mine} by {each.by} of {its}")
        snapshot = self._truth.snapshot()
        since = each.at - KNOWN
        rivals = [
            task
            for task in snapshot.tasks.values()
            if task.state in (S.NEW, S.PENDING) or self._born[task.id] >= since or self._placed.get(task.id, 0.0) >= since
            if self._rank(task) >= its
        ]
        size = max((_asked(task) for task in rivals), default=0)
        if size and sum(max(room, 0) // size for room in each.rooms) >= len(rivals):
            self._broken("preempted though there was room", f"{each.task} for {len(rivals)} tasks of {size}: {each.rooms}")

    def _judge_choice(self, task: Task) -> None:
        """Nobody leaves who is more important than another on the same node that would have freed as much."""
        now, snapshot = self._sim.loop.time(), self._truth.snapshot()
        for other in snapshot.tasks_on(task.node_id):
            stays = other.id not in self._freed and self._placed.get(other.id, now) <= now - KNOWN
            enough = _asked(other) >= _asked(task)
            if stays and enough and self._priorities[other.id] < self._priorities[task.id]:
                self._broken("a more important one had to leave", f"{task.id} of {task.node_id}, not {other.id}")

    def _judge_order(self, assigned: Mapping[str, Task]) -> None:
        """Nobody takes the room that another of higher priority waits for and will have nowhere else."""
        now, snapshot = self._sim.loop.time(), self._truth.snapshot()
        for key, since in self._waits.items():
            task = snapshot.tasks[key]
            size, group = _asked(task), self._group(task)
            if since > now - KNOWN or not size or (group and not self._running(group)):
                continue
            if any(self._maybe_free(node_id) >= size for node_id in self._usable):
                continue
            lower = [other for other in assigned.values() if self._rank(other) < self._priorities[key]]
            for node_id in sorted({other.node_id for other in lower}):
                taken = sum(_asked(other) for other in lower if other.node_id == node_id)
                if taken and self._surely_free(node_id) + taken >= size:
                    names = [other.id for other in lower if other.node_id == node_id]
                    self._broken("a lower priority took the room", f"{names} on {node_id}, which {task.id} waits for")

    def _rank(self, task: Task) -> int:
        """A task's priority; a group is placed when the first of its services is due."""
        group = self._group(task)
        alike = [other for other in self._truth.snapshot().tasks.values() if self._group(other) == group] if group else [task]
        return max(self._priorities[other.id] for other in alike)

    # -- groups ----------------------------------------------------------------------------------------------------------

    def _group(self, task: Task) -> str:
        """What it is placed together with: its service's group."""
        service = self._truth.snapshot().services.get(task.service_id)
        return _group_of(service) if service is not None else ""

    def _running(self, group: str) -> list[Task]:
        """Those tasks of a group's services that have their nodes."""
        snapshot = self._truth.snapshot()
        return [
            task
            for service in snapshot.services.values()
            if _group_of(service) == group
            for task in snapshot.tasks_of(service.id)
            if task.state >= S.ASSIGNED and task.desired < S.SHUTDOWN and not is_terminal(snapshot.state(task))
        ]

    def _judge_groups(self, assigned: Mapping[str, Task], changed: Collection[str]) -> None:
        """Of a group of which nothing had its node, everything has it at this very revision."""
        now, snapshot = self._sim.loop.time(), self._truth.snapshot()
        for group in self._groups:
            members = [snapshot.services.get(task.service_id) for task in assigned.values() if self._group(task) == group]
            known = any(service is not None and self._long_in(service, group) for service in members)
            if not known or self._begun.get(group, -KNOWN) > now - KNOWN:
                continue
            self._sim.cover("groups placed")
            services = [service for service in snapshot.services.values() if self._long_in(service, group)]
            left = [
                task.id
                for service in services
                for task in snapshot.tasks_of(service.id)
                if self._group(task) == group and task.state < S.ASSIGNED and task.desired <= S.COMPLETE
                if task.id in changed or self._born[task.id] <= now - KNOWN
            ]
            if left:
                self._broken("a part of a group was placed", f"{sorted(assigned)} of {group}, but not {left}")
            for service in services:
                slots = {task.slot for task in self._running(group) if task.service_id == service.id}
                if len(slots) < (wanted := self._wanted(service)):
                    self._broken("a part of a group was placed", f"{len(slots)} of {wanted} of {service.id} of {group}")

    def _of_late(self, service: Service) -> list[Service | None]:
        """What was asked for, and what was until just now; None: nothing."""
        since = self._sim.loop.time() - KNOWN
        return [service, *(old for at, old in self._specs.get(service.id, ()) if at > since)]

    def _long_in(self, service: Service, group: str) -> bool:
        return all(one is None or _group_of(one) == group for one in self._of_late(service))

    def _wanted(self, service: Service) -> int:
        """How many replicas of it its group has, at the least, of all that was asked for of late."""
        return min(_replicas(one) if one is not None else 0 for one in self._of_late(service))

    # -- the end ---------------------------------------------------------------------------------------------------------

    def rightly_waiting(self, service_id: str) -> list[Task]:
        """Those tasks of a service that wait, at rest, as there is no room for them."""
        return [
            task for task in self._truth.snapshot().tasks_of(service_id) if task.id in self._waits and self._must_wait(task)
        ]

    def _must_wait(self, task: Task) -> bool:
        """Whether no node has room for it, not even with everything of a lower priority gone; nor for its whole group."""
        size, mine, group = _asked(task), self._priorities[task.id], self._group(task)
        if group and not self._running(group):
            services = [service for service in self._truth.snapshot().services.values() if _group_of(service) == group]
            size = max(
                _asked(other)
                for other in map(self._truth.snapshot().tasks.__getitem__, self._waits)
                if self._group(other) == group
            )
            places = sum(max(self._maybe_free(node_id), 0) // size for node_id in self._usable) if size else 0
            return bool(size) and places < sum(_replicas(service) for service in services)
        rooms = (self._room(node_id, lambda other: self._stays(other, mine)) for node_id in self._usable)
        return bool(size) and all(room < size for room in rooms)

    def _stays(self, task: Task, priority: int) -> bool:
        return task.id not in self._freed and (not priority or self._priorities[task.id] >= priority)


def _placement(template: Mapping[str, Any]) -> Mapping[str, Any]:
    held: Mapping[str, Any] = template.get("Placement") or {}
    return held


def _asked_by(template: Mapping[str, Any]) -> int:
    asked: int = template["Resources"]["Reservations"]["NanoCPUs"]
    return asked


def _asked(task: Task) -> int:
    return _asked_by(task.spec)


def _group_of(service: Service) -> str:
    return str(_placement(service.spec["TaskTemplate"]).get("Group", ""))


def _replicas(service: Service) -> int:
    stopped = "covey.stopped" in (service.spec.get("Labels") or {})
    wanted: int = service.spec["Mode"].get("Replicated", {}).get("Replicas", 0)
    return 0 if stopped else wanted
