"""The slots of one service as its tasks stand, and how one wanted slot is tended. Shared by replicated and global.

It decides for a single slot: which of its tasks is the one, whether a successor is due and when. It must not know how
many slots there should be. A slot's key is (number, "") or (0, node id).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from covey.model.objects import Service, Task
from covey.model.spec import ServiceSpec
from covey.model.task_states import TaskState, is_terminal
from scheduler import restart
from scheduler.draft import Draft, Row
from scheduler.drain import Leaving
from scheduler.reconcile.moves import move
from scheduler.restart import Attempt
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

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
    ) -> None:
        """``iteration``: the execution of a job whose slots these are, the last one unless given."""
        self.leaving = leaving
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
        self._outdated: dict[int, bool] = {service.spec_version: False}
        self.slots = self._slots()

    def _slots(self) -> dict[SlotKey, Slot]:
        state = self.snapshot.state
        found: dict[SlotKey, list[Attempt]] = {}
        for task in self.snapshot.tasks_of(self.service.id):
            if task.job_iteration != self.iteration:
                continue
            key = (task.slot, "") if task.slot else (0, task.node_id)
            found.setdefault(key, []).append(Attempt(task, state(task)))
        return {key: Slot(key, sorted(found[key], key=lambda a: a.task.attempt)) for key in sorted(found)}

    def outdated(self, task: Task) -> bool:
        """Whether ``task`` was made from a template or ports that are no longer the service's."""
        known = self._outdated.get(task.spec_version)
        if known is None:
            known = task.spec != self.template or task.ports != self.spec.ports
            self._outdated[task.spec_version] = known
        return known

    def create(
        self, key: SlotKey, *, replaces: str, cause: str, desired: TaskState | None = None, not_before: float = 0.0
    ) -> None:
        """The next task of the slot ``key``; ``desired`` is how far a task of the service is to go unless given."""
        row = Row(key[0], key[1], self._attempt(key), replaces)
        desired = self.goal if desired is None else desired
        self.draft.create(self._prototype(), row, desired=desired, not_before=not_before, cause=cause)

    def _attempt(self, key: SlotKey) -> int:
        """One more than the slot's last. Where no history is left, one that no task of the slot can have had:

        tasks of a slot that was dropped are forgotten, and their ids must never come again. An attempt costs a store
        revision, so the revision of the service's last change is beyond all attempts made before it.
        """
        slot = self.slots.get(key)
        following = slot.history[-1].task.attempt + 1 if slot is not None else 1
        untouched = self.service.spec_version == 1 and self.service.previous_spec is None
        if (slot is None or slot.dropped) and not untouched and not self.iteration:
            return max(following, self.service.version)
        return following

    def _prototype(self) -> Task:
        return Task(
            id="",
            service_id=self.service.id,
            spec=self.template,
            spec_version=self.service.spec_version,
            job_iteration=self.iteration,
            service_name=self.spec.name,
            service_labels=self.spec.labels,
            ports=self.spec.ports,
            created_at=self.now,
            updated_at=self.now,
        )

    def promote(self, task: Task) -> None:
        """A task that was held back may run: its delay is over, and so is the task it replaces."""
        if task.desired >= TaskState.RUNNING:
            return
        if self.now < task.not_before:
            self.draft.wake(task.not_before)
        elif self.gone(task.replaces):
            self.draft.move((task.id,), f"task {task.replaces or task.id} is over", desired=self.goal)

    def shut_down(self, tasks: Iterable[Task], cause: str, desired: TaskState = TaskState.SHUTDOWN) -> None:
        """Those of ``tasks`` that are wanted more than that."""
        self.draft.move((task.id for task in tasks if task.desired < desired), cause, desired=desired)

    def gone(self, task_id: str) -> bool:
        """Whether a predecessor no longer runs, as far as anybody can know."""
        task = self.snapshot.tasks.get(task_id)
        return task is None or task.state < TaskState.ASSIGNED or is_terminal(self.snapshot.state(task))

    def restart_delay(self) -> float:
        """Seconds; where the spec says nothing, the settings do."""
        said = (self.template.get("RestartPolicy") or {}).get("Delay")
        return self.settings.restart_delay if said is None else self.spec.task.restart.delay


def tend(work: Work, slot: Slot) -> None:
    """Keep one wanted slot filled by one task; what is outdated but runs is left to the rollout."""
    if move(work, slot):
        return
    if slot.active:
        work.promote(_choose(work, slot))
    else:
        refill(work, slot)


def _choose(work: Work, slot: Slot) -> Task:
    """The task that is to fill the slot; others are told to stop, save one an update is just about to replace."""
    newest = slot.active[-1]
    if len(slot.active) == 1:
        return newest.task
    if len(slot.active) == 2 and work.spec.update.order == "start-first":
        starting = newest.state < TaskState.RUNNING and not work.outdated(newest.task)
        if starting and work.outdated(slot.active[0].task):
            return newest.task
    best = max(slot.active, key=lambda a: (not work.outdated(a.task), a.state >= TaskState.RUNNING, a.task.attempt))
    surplus = [a.task for a in slot.active if a is not best]
    work.shut_down(surplus, f"slot is filled by task {best.task.id}")
    return best.task


def refill(work: Work, slot: Slot) -> None:
    """The slot's last task is over or told to stop: a successor, if the restart policy says so."""
    last = slot.history[-1]
    if work.outdated(last.task):
        cause = f"service {work.service.id} was updated to version {work.service.spec_version}"
        work.create(slot.key, replaces=last.task.id, cause=cause)
        return
    history = [a for a in slot.history if not work.outdated(a.task)]
    verdict = restart.decide(history, work.spec.task.restart, work.now, work.restart_delay())
    if not verdict.again:
        work.shut_down([last.task], verdict.why)
        return
    held_back = verdict.not_before > work.now
    desired = TaskState.READY if held_back else work.goal
    work.create(slot.key, replaces=last.task.id, cause=verdict.why, desired=desired, not_before=verdict.not_before)
