"""Updates in the simulation: the policies users give, and what must hold while a service is updated or rolled back.

The oracle follows the store alone. A slot was *taken down* by an update when a task that runs on a node in use was told to
stop, though its service wants it, is made from another template now, and nothing else runs in its slot; it stays so until a
task of the slot runs, ends by itself or is told to stop.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from covey.model.objects import Node, Service, ServiceStatus, Stored, Task, TaskStatus
from covey.model.resources import NANO
from covey.model.task_states import TaskState, is_terminal
from manager.store.keys import Writer
from tests.sim.scarcity import PREEMPTED

if TYPE_CHECKING:
    from scheduler.index import Index
    from tests.sim.simulation import Simulation

S = TaskState
SlotKey = tuple[str, int, str]

#: A leader may still write what it decided so many seconds ago, from a spec or a status that has changed since.
OVERTAKEN = 10.0
#: How far the clocks of two managers are apart, at the most.
SKEW = 4.0


def policy(rng: random.Random, actions: tuple[str, ...]) -> dict[str, Any]:
    """An UpdateConfig or RollbackConfig."""
    return {
        "Parallelism": rng.randint(0, 2),
        "Delay": rng.choice((0, 1, 4)) * NANO,
        "Monitor": rng.choice((1, 5, 12)) * NANO,
        "FailureAction": rng.choice(actions),
        "MaxFailureRatio": rng.choice((0, 0, 0.3)),
        "Order": rng.choice(("stop-first", "start-first")),
    }


class UpdateOracle:
    """Judges every change of the store as far as it is about updates; ``broken`` is told what is wrong."""

    def __init__(self, sim: Simulation, truth: Index, broken: Callable[[str, str], None]) -> None:
        self._sim = sim
        self._truth = truth
        self._broken = broken
        self._taken: dict[SlotKey, None] = {}
        self._told: list[Task] = []
        self._running: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._drained: dict[str, float] = {}
        self._specs: dict[str, list[tuple[float, Service]]] = {}
        self.reverted: dict[str, Service] = {}

    def before(self, kind: str, key: str, old: Any, new: Any, writer: Writer) -> None:
        """One object is about to change; the truth is still without it."""
        if kind == "service":
            self._change_service(key, old, new, writer)
        elif kind == "node" and old is not None and old.availability == "drain":
            self._drained[key] = self._sim.loop.time()
        elif kind == "task" and old is not None and new is not None and old.desired < S.SHUTDOWN == new.desired:
            # What began to run since the decision, which compares no status, was made for one that does not.
            runs = self._running.get(old.id, math.inf) <= self._sim.loop.time() - OVERTAKEN
            runs = runs and self._truth.snapshot().state(old) == S.RUNNING and not new.cause.startswith(PREEMPTED)
            self._told += [new] if runs else []

    def after(self, changes: list[tuple[str, str, Stored | None]]) -> None:
        """The truth has taken ``changes`` in."""
        told, self._told = self._told, []
        self._taken = {held: None for held in self._taken if self._down(held)}
        for task in told:
            self._judge_stop(task)
        for kind, key, value in changes:
            if kind == "task_status" and isinstance(value, TaskStatus) and value.state == S.RUNNING:
                self._running.setdefault(key, self._sim.loop.time())
            elif kind == "task_status" and isinstance(value, TaskStatus) and is_terminal(value.state):
                self._ended.setdefault(key, self._sim.loop.time())
            if kind == "service_status" and isinstance(value, ServiceStatus):
                self._judge_status(value)

    def going_on(self, service_id: str) -> str:
        """What is not at rest about a service's update, or ""."""
        service = self._truth.snapshot().services[service_id]
        update = self._update(service)
        if update is not None and update.state in ("updating", "rollback_started"):
            return f"the update of service {service_id} is {update.state}: {update.message}"
        return f"the rollback of service {service_id} has not begun" if service.rolling_back and update is None else ""

    # -- parts -----------------------------------------------------------------------------------------------------

    def _change_service(self, key: str, old: Service | None, new: Service | None, writer: Writer) -> None:
        if old is not None:
            self._specs.setdefault(key, []).append((self._sim.loop.time(), old))
        self.reverted.pop(key, None)
        if writer is not Writer.LEADER:
            self._sim.cover("client: service rolled back" if new is not None and new.rolling_back else "client: spec written")
            return
        held = self._truth.snapshot().service_statuses.get(key)
        failing = held is not None and held.update is not None and old is not None and held.update.generation == old.generation
        right = (
            failing
            and old is not None
            and new is not None
            and not old.rolling_back
            and old.spec["UpdateConfig"]["FailureAction"] == "rollback"
            and (new.spec, new.previous_spec) == (old.previous_spec, None)
            and new.generation == old.generation + 1
        )
        if not right or new is None:
            self._broken("the leader wrote a spec that is no rollback", f"{key}: {old} to {new}, {held}")
            return
        self._sim.cover("leader: rolled back")
        self.reverted[key] = new

    def _judge_stop(self, task: Task) -> None:
        snapshot = self._truth.snapshot()
        service, view = snapshot.services.get(task.service_id), snapshot.nodes.get(task.node_id)
        if service is None or view is None or self._is_drained(view.node) or self._stopped(service):
            return
        key = (task.service_id, task.slot, "" if task.slot else task.node_id)
        if task.spec == service.spec["TaskTemplate"] or not self._down(key) or self._ran_just_now(key):
            return
        self._taken[key] = None
        self._sim.cover("update: slots taken down")
        count = sum(1 for held in self._taken if held[0] == task.service_id)
        if count > self._allowed(service):
            slots = [held for held in self._taken if held[0] == task.service_id]
            self._broken("an update took down more than it may", f"{slots}, at most {self._allowed(service)}")
        update = self._update(service)
        if update is not None and update.state in ("paused", "rollback_paused"):
            self._broken("an update went on though it is paused", f"{key} of {service.id}: {update}")

    def _ran_just_now(self, key: SlotKey) -> bool:
        """Whether a task of the slot that ran has ended since a decision that is still under way."""
        since = self._sim.loop.time() - OVERTAKEN
        return any(t.id in self._running and self._ended.get(t.id, -math.inf) >= since for t in self._tasks(key))

    def _tasks(self, key: SlotKey) -> list[Task]:
        service_id, slot, node_id = key
        tasks = self._truth.snapshot().tasks_of(service_id)
        return [t for t in tasks if (t.slot, "" if t.slot else t.node_id) == (slot, node_id)]

    def _is_drained(self, node: Node) -> bool:
        """Whether the node is, or just now was, to lose its tasks, which is no update's doing."""
        recently = self._drained.get(node.id, -math.inf) >= self._sim.loop.time() - OVERTAKEN
        return node.availability == "drain" or recently

    def _down(self, key: SlotKey) -> bool:
        """Whether the slot still is as the update left it: nothing runs, and the newest task is on its way."""
        snapshot = self._truth.snapshot()
        tasks = self._tasks(key)
        if not tasks or key[0] not in snapshot.services:
            return False
        newest = max(tasks, key=lambda task: task.attempt)
        if newest.desired >= S.SHUTDOWN or is_terminal(snapshot.state(newest)):
            return False
        return not any(t.desired < S.SHUTDOWN and snapshot.state(t) == S.RUNNING for t in tasks)

    def _allowed(self, service: Service) -> float:
        """The most slots that may be down, by the policy now and by those that were just now."""
        return max(_parallelism(one) for one in [service, *self._recent(service)])

    def _recent(self, service: Service) -> list[Service]:
        since = self._sim.loop.time() - OVERTAKEN
        return [one for at, one in self._specs.get(service.id, ()) if at >= since]

    def _stopped(self, service: Service) -> bool:
        return any("covey.stopped" in (one.spec.get("Labels") or {}) for one in [service, *self._recent(service)])

    def _update(self, service: Service) -> Any:
        held = self._truth.snapshot().service_statuses.get(service.id)
        update = held.update if held is not None else None
        return update if update is not None and update.generation == service.generation else None

    def _judge_status(self, status: ServiceStatus) -> None:
        update, snapshot = status.update, self._truth.snapshot()
        service = snapshot.services.get(status.id)
        if update is None or service is None or update.generation != service.generation:
            return
        self._sim.cover(f"update: {update.state}")
        if update.state not in ("completed", "rollback_completed"):
            return
        monitor = _policy(service)["Monitor"] / NANO
        for task in snapshot.tasks_of(status.id):
            held, view = snapshot.statuses.get(task.id), snapshot.nodes.get(task.node_id)
            if task.rollout != update.generation or held is None or held.state != S.RUNNING:
                continue
            if task.desired >= S.SHUTDOWN or view is None or view.node.availability != "active":
                continue  # It is not wanted there any more: nobody need watch it.
            if update.completed_at < held.stored_at + monitor - SKEW:
                self._broken("an update is complete before its monitor is over", f"{update}, {held}, monitor {monitor:g} s")


def _policy(service: Service) -> dict[str, Any]:
    held: dict[str, Any] = service.spec["RollbackConfig" if service.rolling_back else "UpdateConfig"]
    return held


def _parallelism(service: Service) -> float:
    if _policy(service)["Order"] == "start-first":
        return 0
    return _policy(service)["Parallelism"] or float("inf")
