"""Has a service become what its spec says? Pure: looks at the service and its tasks, one poll after the other.

It decides what is worth a line, when a service has converged and when it is given up. Docker's client waits for ever on a
service that cannot start; here a task rejected again and again, or crashing in a loop, is a failure that is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Seconds for which all tasks must run, so that one that crashes at once is not called converged.
STABLE = 1.0
#: Failures of one slot after which it is a crash loop, and rejections after which nothing will come of it.
CRASHES = 3
REJECTIONS = 2

_OVER = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")
_RANK = {
    name: rank
    for rank, name in enumerate(
        ("new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", *_OVER)
    )
}

Task = Mapping[str, Any]


@dataclass(slots=True)
class SlotView:
    """What is shown of one slot: its newest task's state and what is wrong with it."""

    name: str
    state: str = ""
    node: str = ""
    error: str = ""
    task: str = ""
    failures: int = 0
    rejections: int = 0


@dataclass(slots=True)
class Verdict:
    """What one poll told. ``lines``: new transitions. ``failure``: why it is given up; ``culprit``: the task to look at."""

    lines: list[str] = field(default_factory=list)
    running: int = 0
    wanted: int = 0
    converged: bool = False
    failure: str = ""
    culprit: Task | None = None
    noun: str = "running"


class Watch:
    """One service on its way. Feed it with ``observe``; times are seconds of any clock that only rises."""

    def __init__(self, name: str, rollback: bool = False) -> None:
        """``rollback``: the change takes a former spec back; when it does not, a rollback is the failure of an update."""
        self.name = name
        self._rollback = rollback
        self._reason = ""
        self.slots: dict[str, SlotView] = {}
        self._before: set[str] = set()
        self._counted: set[str] = set()
        self._all_since: float | None = None
        self._ran = False
        self._update = ("", "")

    def prime(self, service: Mapping[str, Any], tasks: Sequence[Task], nodes: Mapping[str, str]) -> None:
        """What is the case before a change: history, not news."""
        self._before = {task["ID"] for task in tasks if state_of(task) in _OVER}
        self._counted |= self._before
        self._slots(tasks, nodes, Verdict())
        self._update = _update_of(service)

    def observe(self, service: Mapping[str, Any], tasks: Sequence[Task], nodes: Mapping[str, str], now: float) -> Verdict:
        """``tasks``: those of the service's present spec. ``nodes``: id → name of nodes that are not down."""
        verdict = Verdict()
        self._slots(tasks, nodes, verdict)
        live = [task for task in tasks if _wanted(task)]
        verdict.running = sum(state_of(task) == "running" and task.get("NodeID", "") in nodes for task in live)
        verdict.wanted = self._count(service, live)
        self._forget_surplus(live, verdict.wanted, verdict)
        self._ran = self._ran or verdict.running > 0
        self._update_status(service, verdict)
        whole = verdict.running >= verdict.wanted and len(live) <= verdict.wanted and not self._updating(service)
        if whole and self._leaving(tasks):
            whole = False
        self._all_since = (now if self._all_since is None else self._all_since) if whole else None
        verdict.converged = self._all_since is not None and (now - self._all_since >= STABLE or verdict.wanted == 0)
        if not verdict.converged and not verdict.failure and self._update[0] != "rollback_started":
            self._give_up(service, tasks, verdict)
        return verdict

    @staticmethod
    def _count(service: Mapping[str, Any], live: Sequence[Task]) -> int:
        spec = service.get("Spec") or {}
        mode = spec.get("Mode") or {}
        if (spec.get("Labels") or {}).get("covey.stopped") == "true":
            return 0
        if "Global" in mode:
            # One that fits no node stays without tasks; until the first appears it is not converged.
            return max(1, len(live))
        replicas = (mode.get("Replicated") or {}).get("Replicas")
        return 1 if replicas is None else int(replicas)

    @staticmethod
    def _updating(service: Mapping[str, Any]) -> bool:
        return str((service.get("UpdateStatus") or {}).get("State", "")) in ("updating", "rollback_started")

    @staticmethod
    def _leaving(tasks: Sequence[Task]) -> bool:
        """Whether a surplus task still runs."""
        return any(not _wanted(task) and state_of(task) in ("running", "starting") for task in tasks)

    def _slots(self, tasks: Sequence[Task], nodes: Mapping[str, str], verdict: Verdict) -> None:
        for task in sorted(tasks, key=lambda task: str(task.get("CreatedAt") or "")):
            key = self.slot_of(task, nodes)
            slot = self.slots.setdefault(key, SlotView(f"{self.name}.{key}"))
            state = state_of(task)
            if state in ("failed", "rejected") and task["ID"] not in self._counted:
                self._counted.add(task["ID"])
                slot.failures += 1
                slot.rejections += state == "rejected"
                verdict.lines.append(f"{slot.name} {state}{_on(task, nodes)}: {error_of(task) or state}")
            if _wanted(task):
                self._newest(slot, task, state, nodes, verdict)

    @staticmethod
    def slot_of(task: Task, nodes: Mapping[str, str]) -> str:
        """A slot as it is shown: its number, or the name of its node."""
        slot = task.get("Slot")
        return str(nodes.get(task.get("NodeID", ""), task.get("NodeID", "")) or task["ID"] if slot is None else slot)

    def _forget_surplus(self, live: Sequence[Task], wanted: int, verdict: Verdict) -> None:
        """Slots beyond the number wanted are gone; one that only waits for its next task is not."""
        alive = {task["ID"] for task in live}
        idle = [key for key, slot in self.slots.items() if slot.task not in alive and not slot.failures]
        for key in idle[: max(0, len(self.slots) - wanted)]:
            verdict.lines.append(f"{self.slots.pop(key).name} removed")

    @staticmethod
    def _newest(slot: SlotView, task: Task, state: str, nodes: Mapping[str, str], verdict: Verdict) -> None:
        error, node = error_of(task), nodes.get(task.get("NodeID", ""), "")
        if (slot.task, slot.state, slot.error) == (task["ID"], state, error) and slot.node == node:
            return
        told_before = (slot.task, slot.state) == (task["ID"], state)
        slot.task, slot.state, slot.node = task["ID"], state, node
        if state == "running" and not told_before:
            verdict.lines.append(f"{slot.name} running{_on(task, nodes)}")
        elif error and error != slot.error and state not in ("failed", "rejected"):
            verdict.lines.append(f"{slot.name} {state}: {error}")
        slot.error = error

    def _update_status(self, service: Mapping[str, Any], verdict: Verdict) -> None:
        known, self._update = self._update, _update_of(service)
        state = self._update[0]
        if state and self._update != known:
            message = str((service["UpdateStatus"] or {}).get("Message") or "")
            self._reason = message if state == "rollback_started" else self._reason
            verdict.lines.append(f"{self.name} {state.replace('_', ' ')}{': ' + message if message else ''}")
            if state == "rollback_completed" and not self._rollback:
                verdict.failure = f"service {self.name}: {self._reason or message}"
            elif state in ("paused", "rollback_paused"):
                verdict.failure = f"service {self.name}: {message or state.replace('_', ' ')}"

    def _give_up(self, service: Mapping[str, Any], tasks: Sequence[Task], verdict: Verdict) -> None:
        """A crash loop, tasks rejected, or a slot that will not be filled again."""
        failed = [task for task in tasks if task["ID"] not in self._before and state_of(task) in ("failed", "rejected")]
        if not failed:
            return
        worst = max(self.slots.values(), key=lambda slot: (slot.failures, slot.rejections))
        rejected = sum(slot.rejections for slot in self.slots.values())
        culprit = max(failed, key=lambda task: str(task.get("CreatedAt") or ""))
        why = ""
        if worst.failures >= CRASHES or (worst.rejections >= REJECTIONS):
            kind = "was rejected" if worst.rejections >= REJECTIONS else "failed"
            why = f"{worst.name} {kind} {max(worst.rejections, worst.failures)} times"
        elif rejected >= REJECTIONS and not self._ran:
            why = f"{rejected} tasks were rejected and none runs"
        elif (over := self._abandoned(service, tasks, culprit)) is not None:
            why, culprit = over
        if why:
            verdict.failure = f"service {self.name} does not converge: {why}: {error_of(culprit) or state_of(culprit)}"
            verdict.culprit = culprit

    def _abandoned(self, service: Mapping[str, Any], tasks: Sequence[Task], culprit: Task) -> tuple[str, Task] | None:
        """A failed task whose slot the restart policy leaves empty."""
        template = (service.get("Spec") or {}).get("TaskTemplate") or {}
        if (template.get("RestartPolicy") or {}).get("Condition") != "none":
            return None
        return (f"{self._key(culprit)} ended and its restart condition is none"), culprit

    def _key(self, task: Task) -> str:
        return f"{self.name}.{task.get('Slot') or task.get('NodeID') or task['ID']}"


def _update_of(service: Mapping[str, Any]) -> tuple[str, str]:
    """State and start of the update a service is in, or was in last."""
    update = service.get("UpdateStatus") or {}
    return str(update.get("State") or ""), str(update.get("StartedAt") or "")


def state_of(task: Task) -> str:
    """The state a task shows."""
    return str((task.get("Status") or {}).get("State", "new"))


def _wanted(task: Task) -> bool:
    """Whether the cluster wants this task to run, now or once it is ready."""
    return task.get("DesiredState") in ("ready", "running", "complete") and state_of(task) not in _OVER


def error_of(task: Task) -> str:
    """What is wrong with a task, "" for nothing."""
    return str((task.get("Status") or {}).get("Err") or "").strip()


def _on(task: Task, nodes: Mapping[str, str]) -> str:
    node = nodes.get(task.get("NodeID", ""), "")
    return f" on {node}" if node else ""
