"""The slots of one service as its tasks stand, and how one wanted slot is tended. Shared by replicated and global.

It decides for a single slot: which of its tasks is the one, whether a successor is due and when. It must not know how
many slots there should be. A slot's key is (number, "") or (0, node id).
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from covey.model.objects import PortConfig, Service, Task
from covey.model.spec import PlacementPolicy, ServiceSpec, UpdatePolicy
from covey.model.task_states import TaskState, is_terminal
from scheduler import restart
from scheduler.draft import Draft, Row
from scheduler.drain import Leaving
from scheduler.placement.constraints import allows, fits_platform
from scheduler.reconcile.moves import move
from scheduler.restart import Attempt
from scheduler.settings import Settings
from scheduler.snapshot import NodeView, Snapshot
from scheduler.steps import Effort, whole

SlotKey = tuple[int, str]

NOBODY_LEAVES = Leaving()


class Slot:
    """The tasks of one slot by attempt. ``active``: wanted and not over. ``dropped``: every task is to be removed."""

    __slots__ = ("active", "dropped", "history", "key")

    def __init__(self, key: SlotKey, history: list[Attempt]) -> None:
        self.key = key
        self.history = history
        self.active = [a for a in history if a.task.desired < TaskState.SHUTDOWN and not is_terminal(a.state)]
        self.dropped = all(a.task.desired >= TaskState.REMOVE for a in history)

    @property
    def running(self) -> bool:
        return any(a.state == TaskState.RUNNING for a in self.active)

    @property
    def node_id(self) -> str:
        """The node of the newest active task, "" for none."""
        return self.active[-1].task.node_id if self.active else ""

    def tasks(self) -> Iterable[Task]:
        return (a.task for a in self.history)


def template_of(service: Service) -> dict[str, Any]:
    """The TaskTemplate of ``service``, with its networks where new clients put them."""
    template: dict[str, Any] = service.spec.get("TaskTemplate") or {}
    if not template.get("Networks") and service.spec.get("Networks"):
        template = {**template, "Networks": service.spec["Networks"]}
    return template


class Likeness(enum.Enum):
    """How what a task was made from compares with what its service asks for."""

    SAME = enum.auto()
    PLACES = enum.auto()
    """Only constraints or platforms differ: as in SwarmKit the task is not outdated while its node meets them."""
    OTHER = enum.auto()


def likeness(task: Task, template: dict[str, Any], ports: tuple[PortConfig, ...]) -> Likeness:
    """Of ``task`` with a service's template and ports; the same for all tasks of one spec version."""
    if task.ports != ports:
        return Likeness.OTHER
    if task.spec == template:
        return Likeness.SAME
    return Likeness.PLACES if _anywhere(task.spec) == _anywhere(template) else Likeness.OTHER


def _anywhere(template: dict[str, Any]) -> dict[str, Any]:
    placement = {k: value for k, value in (template.get("Placement") or {}).items() if k not in ("Constraints", "Platforms")}
    return {**template, "Placement": placement}


def _outdated(like: Likeness, policy: PlacementPolicy, view: NodeView | None) -> bool:
    if like is Likeness.PLACES:
        return view is None or not (allows(policy.constraints, view) and fits_platform(policy.platforms, view))
    return like is Likeness.OTHER


def up_to_date(snapshot: Snapshot, task: Task) -> bool:
    """Whether ``task`` is as its service, which there must be, asks for."""
    service = snapshot.services.get(task.service_id)
    if service is None or task.spec_version == service.spec_version:
        return service is not None
    spec = snapshot.service_specs[service.id]
    like = likeness(task, template_of(service), spec.ports)
    return not _outdated(like, spec.task.placement, snapshot.nodes.get(task.node_id))


class Marks(NamedTuple):
    """What is noted on a new task: the generation whose rollout makes it (0: none does), and what its slot went through."""

    rollout: int = 0
    crashes: int = 0
    avoid: tuple[str, ...] = ()


UNMARKED = Marks()


class Work:
    """One service in one pass: what is known of it, and the draft that collects what it needs."""

    def __init__(
        self,
        snapshot: Snapshot,
        service: Service,
        now: float,
        settings: Settings,
        draft: Draft,
        iteration: int | None = None,
        leaving: Leaving = NOBODY_LEAVES,
        effort: Effort | None = None,
    ) -> None:
        """``iteration``: the execution of a job whose slots these are, the last unless given. ``effort``: see steps.py."""
        self.leaving = leaving
        self.effort = Effort() if effort is None else effort
        self.iteration = service.job_iteration if iteration is None else iteration
        #: How far a task of the service is to go.
        self.goal = TaskState.COMPLETE if self.iteration else TaskState.RUNNING
        self.snapshot = snapshot
        self.service = service
        self.spec: ServiceSpec = snapshot.service_specs[service.id]
        self.now = now
        self.settings = settings
        self.draft = draft
        self.template = template_of(service)
        self._likeness: dict[int, Likeness] = {service.spec_version: Likeness.SAME}

    @cached_property
    def slots(self) -> dict[SlotKey, Slot]:
        """The service's slots by key, in its order."""
        return whole(self._slots())

    def gather(self) -> Generator[None]:
        """Find ``slots``, stopping now and then."""
        self.slots = yield from self._slots()

    def _slots(self) -> Generator[None, None, dict[SlotKey, Slot]]:
        state, due = self.snapshot.state, self.effort.due
        found: dict[SlotKey, list[Attempt]] = {}
        for task in self.snapshot.tasks_of(self.service.id):
            if due():
                yield
            if task.job_iteration != self.iteration:
                continue
            key = (task.slot, "") if task.slot else (0, task.node_id)
            found.setdefault(key, []).append(Attempt(task, state(task)))
        slots: dict[SlotKey, Slot] = {}
        # By one part after the other: sorting very many pairs as pairs takes too long to go without a stop.
        keys = sorted(found, key=itemgetter(1))
        if due(len(keys)):
            yield
        keys.sort(key=itemgetter(0))
        if due(len(keys)):
            yield
        for key in keys:
            history = found[key]
            slots[key] = Slot(key, sorted(history, key=lambda a: a.task.attempt) if len(history) > 1 else history)
            if due():
                yield
        return slots

    @property
    def policy(self) -> UpdatePolicy:
        """How the last change of the spec reaches the tasks."""
        return self.spec.rollback if self.service.rolling_back else self.spec.update

    def outdated(self, task: Task) -> bool:
        """Whether ``task`` was made from a template or ports that are no longer the service's."""
        like = self._likeness.get(task.spec_version)
        if like is None:
            like = self._likeness[task.spec_version] = likeness(task, self.template, self.spec.ports)
        return _outdated(like, self.spec.task.placement, self.snapshot.nodes.get(task.node_id))

    def create(
        self,
        key: SlotKey,
        *,
        replaces: str,
        cause: str,
        desired: TaskState | None = None,
        not_before: float = 0.0,
        marks: Marks = UNMARKED,
        retires: Iterable[Task] = (),
    ) -> None:
        """The next task of the slot ``key``; ``desired`` is how far a task of the service is to go unless given.

        Tasks of one ``cause`` and ``desired`` have one set of marks. ``retires``: those told to stop beside ``replaces``.
        """
        row = Row(key[0], key[1], self._attempt(key), replaces, tuple(task.id for task in retires))
        desired = self.goal if desired is None else desired
        self.draft.create(self._prototype(marks), row, desired=desired, not_before=not_before, cause=cause)

    def _attempt(self, key: SlotKey) -> int:
        """One more than the slot's last. Where no history is left, one that no task of the slot can have had:

        tasks of a slot that was dropped are forgotten, and their ids must never come again. An attempt costs a store
        revision, so the revision of the service's last change is beyond all attempts made before it.
        """
        slot, service = self.slots.get(key), self.service
        following = slot.history[-1].task.attempt + 1 if slot is not None else 1
        untouched = service.generation == 1 and service.spec_version == 1 and service.previous_spec is None
        if (slot is None or slot.dropped) and not untouched and not self.iteration:
            return max(following, service.version)
        return following

    def _prototype(self, marks: Marks) -> Task:
        return Task(
            id="",
            service_id=self.service.id,
            spec=self.template,
            spec_version=self.service.spec_version,
            service_name=self.spec.name,
            service_labels=self.spec.labels,
            ports=self.spec.ports,
            created_at=self.now,
            updated_at=self.now,
            rollout=marks.rollout,
            crashes=marks.crashes,
            avoid=marks.avoid,
            job_iteration=self.iteration,
        )

    def inherited(self, task: Task) -> Marks:
        """Marks of what takes the place of a task that was not to blame: whom a rollout made and never ran, is still its."""
        status = self.snapshot.statuses.get(task.id)
        ran = status is not None and status.state >= TaskState.RUNNING
        return Marks(0 if ran else task.rollout, task.crashes, task.avoid)

    def promote(self, slot: Slot, task: Task) -> None:
        """A task that was held back may run: its delay is over, and so are the tasks of its slot that were told to stop."""
        if task.desired >= TaskState.RUNNING:
            return
        if self.now < task.not_before:
            self.draft.wake(task.not_before)
        elif self.vacated(slot):
            self.draft.move((task.id,), f"task {task.replaces or task.id} is over", desired=self.goal)

    def shut_down(self, tasks: Iterable[Task], cause: str, desired: TaskState = TaskState.SHUTDOWN) -> None:
        """Those of ``tasks`` that are wanted more than that."""
        self.draft.move((task.id for task in tasks if task.desired < desired), cause, desired=desired)

    def gone(self, task_id: str) -> bool:
        """Whether a predecessor no longer runs, as far as anybody can know."""
        task = self.snapshot.tasks.get(task_id)
        return task is None or task.state < TaskState.ASSIGNED or is_terminal(self.snapshot.state(task))

    def vacated(self, slot: Slot) -> bool:
        """Whether none of the slot's tasks that were told to stop still runs: not the last one's predecessors either."""
        return all(a.task.desired < TaskState.SHUTDOWN or self.gone(a.task.id) for a in slot.history)

    def ran(self, task: Task) -> float:
        """Seconds for which a task that is over ran, by its worker's clock."""
        return restart.lifetime(self.snapshot.statuses.get(task.id))

    def restart_delay(self) -> float:
        """Seconds, without back-off; where the spec says nothing, the settings do."""
        said = (self.template.get("RestartPolicy") or {}).get("Delay")
        return self.settings.restart_delay if said is None else self.spec.task.restart.delay

    def judge(self, history: Sequence[Attempt]) -> tuple[restart.Verdict, Marks]:
        """Whether and when the slot whose last attempts these are is filled again, and what its next task carries on."""
        policy, settings, last = self.spec.task.restart, self.settings, history[-1].task
        reset = settings.backoff_reset if policy.backoff_reset is None else policy.backoff_reset
        carried = restart.record(history, self.ran(last), reset, settings.avoid_after)
        delay = self.restart_delay()
        limit = policy.backoff_limit
        if limit is None:
            limit = 0.0 if policy.fixed_delay else settings.backoff_limit
        if history[-1].state in restart.ENDED_BY_ITSELF:
            delay = restart.backed_off(delay, carried.crashes, settings.backoff_after, limit, last.id)
        return restart.decide(history, policy, self.now, delay), Marks(0, *carried)


def tend(work: Work, slot: Slot) -> None:
    """Keep one wanted slot filled by one task; what is outdated but runs is left to the rollout."""
    if move(work, slot):
        return
    if slot.active:
        work.promote(slot, _choose(work, slot))
    else:
        refill(work, slot)


def _choose(work: Work, slot: Slot) -> Task:
    """The task that is to fill the slot; others are told to stop, save one an update is just about to replace."""
    newest = slot.active[-1]
    if len(slot.active) == 1:
        return newest.task
    if len(slot.active) == 2 and work.policy.order == "start-first":
        starting = newest.state < TaskState.RUNNING and not work.outdated(newest.task)
        if starting and work.outdated(slot.active[0].task):
            return newest.task
    best = max(slot.active, key=lambda a: (not work.outdated(a.task), a.state >= TaskState.RUNNING, a.task.attempt))
    surplus = [a.task for a in slot.active if a is not best]
    work.shut_down(surplus, f"slot is filled by task {best.task.id}")
    return best.task


def spent(work: Work, slot: Slot) -> bool:
    """Whether the slot is empty for good: its last task ended by itself, and its own restart policy asks for no other."""
    if slot.active or slot.history[-1].state not in restart.ENDED_BY_ITSELF:
        return False
    last = slot.history[-1].task
    own = [a for a in slot.history if a.task.spec_version == last.spec_version]
    return not restart.decide(own, work.snapshot.task_specs[last.id].restart, work.now, 0.0).again


def refill(work: Work, slot: Slot) -> None:
    """The slot's last task is over or told to stop: a successor, if the restart policy says so.

    An outdated one's own policy says whether; if it does not, an update may still replace it: that is the rollout's.
    """
    last = slot.history[-1]
    fresh = [a for a in slot.history if not work.outdated(a.task)]
    if last not in fresh:
        if spent(work, slot):
            return
        fresh = [last]
    verdict, marks = work.judge(fresh)
    if last.state not in restart.ENDED_BY_ITSELF:
        marks = work.inherited(last.task)
    if not verdict.again:
        work.shut_down([last.task], verdict.why)
        return
    held_back = verdict.not_before > work.now or not work.vacated(slot)
    desired = TaskState.READY if held_back else work.goal
    work.create(slot.key, replaces=last.task.id, cause=verdict.why, desired=desired, not_before=verdict.not_before, marks=marks)
