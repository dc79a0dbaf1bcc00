"""What happens next if some services are as proposed: the leader's own decisions on a speculative snapshot, until it rests.

Workers are taken to do as they are told, at once and without failing; time goes on only to the end of a delay that something
waits for. It decides how far to look. It must not know any rule of updates, restarts or placement: it runs scheduler/passes.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from covey.model.objects import Network, Service, Task, TaskStatus
from covey.model.spec import read_service_spec
from covey.model.task_states import TaskState, is_terminal
from scheduler import reap
from scheduler.overlay import Layer, overlay
from scheduler.passes import TASKS, Pass, Stage
from scheduler.placement.explain import Explanation, explain
from scheduler.plan import CreateTasks, MoveTasks, Plan
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.writes import Group, Write

#: So many passes at the most, and so many objects looked at in all of them: of a larger change only the beginning is seen.
ROUNDS = 1000
LOOKED_AT = 4_000_000
#: Of more nodes than this no explanation is made: it takes the square of their number.
EXPLAINED = 1000
#: Layers on top of each other, each of which a look-up may have to ask.
_DEPTH = 16
#: So many tasks are asked about without a stop.
_PART = 4000

_UNDER_WAY = frozenset({"updating", "rollback_started"})


class Made(NamedTuple):
    """When a task is made: after how many rounds of the workers, and how many seconds of delays after now."""

    round: int
    after: float


class Course:
    """Exhaust ``steps``, then read the rest.

    ``services``: id → as proposed, None: removed. ``made``: new tasks. ``causes``: why tasks are made or told to stop.
    ``seen``: by service, the first of its new tasks as placement saw it. ``displaced``: tasks of other services that are told
    to stop. ``complete``: nothing more would happen.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        services: Mapping[str, Service | None],
        now: float,
        settings: Settings,
        networks: Iterable[Network] = (),
    ) -> None:
        """``snapshot`` must not change until ``steps`` is exhausted; ``networks`` are taken to exist."""
        self.base = proposed(snapshot, services, networks)
        self.world = self.base
        self.now = now
        self.made: dict[str, Made] = {}
        self.causes: dict[str, str] = {}
        self.seen: dict[str, Explanation] = {}
        self.displaced: dict[str, Task] = {}
        self.complete = False
        self._ids = tuple(services)
        self._tended = dict.fromkeys(services)
        self._start = now
        self._settings = settings
        self._stages = tuple(self._focused(stage) for stage in TASKS)
        self._last = (self._focused(Stage("reap", reap.parts)),)
        self._written: dict[tuple[str, str], Write] = {}
        self._layers = self._rounds = 0
        self._told: dict[str, None] = dict.fromkeys(self.base.tasks)

    def steps(self) -> Iterator[str]:
        """Look ahead piece by piece; the name of what was just done."""
        most = min(ROUNDS, LOOKED_AT // (len(self.base.tasks) + len(self.base.nodes) + 1) + 2)
        for _ in range(most):
            wake_at, wrote = yield from self._decide(self._stages)
            # What is forgotten may let others go on. Workers are slower than the leader: it rests before they have done.
            if wrote or (yield from self._decide(self._last))[1]:
                continue
            reports = yield from self._obey()
            self._lay(reports)
            self._rounds += 1
            yield "workers"
            if not reports and not self._wait(wake_at):
                self.complete = True
                return

    def _decide(self, stages: tuple[Stage, ...]) -> Generator[str, None, tuple[float | None, bool]]:
        """One pass, laid over the world: when it wants to be woken, and whether it wrote anything."""
        work = Pass(self.world, self.now, self._settings, stages)
        yield from work.steps()
        wrote = work.groups
        self._note(wrote)
        self._lay(wrote)
        yield "overlay"
        return work.wake_at, bool(wrote)

    def _focused(self, stage: Stage) -> Stage:
        """Only the services in question are tended: what the others need, they need without the proposal as well."""
        if stage.name in ("reconcile", "reap"):
            return Stage(stage.name, lambda *given: self._tend(stage, *given))
        if stage.name == "placement":
            return Stage(stage.name, lambda *given: self._place(stage, *given))
        return stage

    def _tend(self, stage: Stage, snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
        plan = yield from stage.parts(_only(snapshot, self._tended), now, settings)
        for change in plan.changes:
            if isinstance(change, MoveTasks) and (change.desired or TaskState.NEW) < TaskState.SHUTDOWN:
                continue
            if isinstance(change, (CreateTasks, MoveTasks)):
                self.causes.update(dict.fromkeys(change.ids, change.cause))
        return plan

    def _place(self, stage: Stage, snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
        if len(snapshot.nodes) <= EXPLAINED:
            for alike, (first, *_) in snapshot.waiting.grouped():
                if alike.service_id in self._ids and alike.service_id not in self.seen and first not in self.base.tasks:
                    self.seen[alike.service_id] = explain(snapshot, first, now, settings)
        return (yield from stage.parts(snapshot, now, settings))

    def _note(self, wrote: Iterable[Group]) -> None:
        for group in wrote:
            for kind, key, _, value in group.writes:
                if kind != "task":
                    continue
                self._told[key] = None
                if not isinstance(value, Task):
                    continue
                before = self.base.tasks.get(key)
                if before is None:
                    self.made.setdefault(key, Made(self._rounds, self.now - self._start))
                elif value.service_id in self._ids or key in self.causes:
                    continue
                elif before.desired < TaskState.SHUTDOWN <= value.desired:
                    # Not reconcile's: placement makes room. Its slot is filled again, and takes room in its turn.
                    self.displaced.setdefault(key, value)
                    self._tended[value.service_id] = None

    def _lay(self, groups: list[Group]) -> None:
        if not groups:
            return
        self._layers += 1
        for group in groups:
            for write in group.writes:
                self._written[write[:2]] = write
        if self._layers % _DEPTH == 0:
            everything = Group(tuple(self._written.values()), "so far")
            self.world = overlay(self.base, [everything], self._settings.nominal)
        else:
            self.world = overlay(self.world, groups, self._settings.nominal)

    def _obey(self) -> Generator[str, None, list[Group]]:
        told, self._told = self._told, {}
        reports: list[Group] = []
        for at, key in enumerate(told):
            if at % _PART == _PART - 1:
                yield "workers"
            task, status = self.world.tasks.get(key), self.world.statuses.get(key)
            if task is None or task.state != TaskState.ASSIGNED:
                continue
            view = self.world.nodes.get(task.node_id)
            state = status.state if status is not None else TaskState.ASSIGNED
            goal = _goal(task, state)
            if view is None or view.session is None or is_terminal(state) or goal <= state:
                continue
            if goal == TaskState.RUNNING and task.desired == TaskState.COMPLETE:
                self._told[key] = None
            said = TaskStatus(
                id=key,
                node_id=task.node_id,
                state=goal,
                at=self.now,
                exit_code=0 if is_terminal(goal) else None,
                health="" if is_terminal(goal) else "healthy",
            )
            reports.append(Group((Write("task_status", key, status.version if status else 0, said),), "as told"))
        return reports

    def _wait(self, wake_at: float | None) -> bool:
        """Let time go on to ``wake_at`` if something waits for it."""
        if wake_at is None or wake_at <= self.now or not self._under_way():
            return False
        self.now = wake_at
        return True

    def _under_way(self) -> bool:
        for key in self._ids:
            status = self.world.service_statuses.get(key)
            if status is not None and status.update is not None and status.update.state in _UNDER_WAY:
                return True
            if any(task.desired == TaskState.READY for task in self.world.tasks_of(key)):
                return True
        return False


def _goal(task: Task, state: TaskState) -> TaskState:
    if task.desired == TaskState.COMPLETE and state < TaskState.RUNNING:
        return TaskState.RUNNING
    return min(task.desired, TaskState.SHUTDOWN)


def proposed(snapshot: Snapshot, services: Mapping[str, Service | None], networks: Iterable[Network] = ()) -> Snapshot:
    """``snapshot`` with ``services`` and ``networks`` as they would be stored."""
    specs = {key: read_service_spec(one.spec) if one is not None else None for key, one in services.items()}
    more = {network.id: network for network in networks}
    return replace(
        snapshot,
        services=Layer(snapshot.services, services),
        service_specs=Layer(snapshot.service_specs, specs),
        networks=Layer(snapshot.networks, more) if more else snapshot.networks,
    )


def _only(snapshot: Snapshot, ids: Iterable[str]) -> Snapshot:
    return replace(
        snapshot,
        services={key: snapshot.services[key] for key in ids if key in snapshot.services},
        by_service={key: snapshot.by_service[key] for key in ids if key in snapshot.by_service},
    )
