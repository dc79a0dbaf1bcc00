"""Has a job completed? Pure, as cli.converge, whose account of slots it shares: a slot of a job is done when it completes.

It decides when an execution is over and when it is given up: a slot that the restart policy leaves empty, or that fails
again and again, is one that will never complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.converge import CRASHES, Task, Verdict, Watch, error_of, state_of


def watch_of(service: Mapping[str, Any], *, rollback: bool = False) -> Watch:
    """What watches ``service`` on its way. ``rollback``: back to a former spec."""
    name = str(service["Spec"]["Name"])
    return JobWatch(name) if service.get("JobStatus") else Watch(name, rollback=rollback)


class JobWatch(Watch):
    """One execution of a job on its way. A verdict's ``running`` are completions here, ``noun`` says so."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._done: set[str] = set()

    def observe(self, service: Mapping[str, Any], tasks: Sequence[Task], nodes: Mapping[str, str], now: float) -> Verdict:
        """``tasks``: those of the service; of them, the last execution's count."""
        verdict = Verdict(noun="completed")
        mine = [task for task in tasks if _iteration(task) == _iteration(service.get("JobStatus") or {})]
        self._slots(mine, nodes, verdict)
        slots: dict[str, list[Task]] = {}
        for task in sorted(mine, key=lambda task: str(task.get("CreatedAt") or "")):
            slots.setdefault(self.slot_of(task, nodes), []).append(task)
        done = {key for key, held in slots.items() if any(state_of(task) == "complete" for task in held)}
        for key in sorted(done - self._done):
            verdict.lines.append(f"{self.name}.{key} complete")
        self._done |= done
        verdict.running = len(done)
        verdict.wanted = 0 if _by_schedule(service) else _wanted(service, len(slots))
        verdict.converged = verdict.running >= verdict.wanted
        if not verdict.converged:
            self._judge({key: held for key, held in slots.items() if key not in done}, verdict)
        return verdict

    def _judge(self, slots: Mapping[str, Sequence[Task]], verdict: Verdict) -> None:
        """Give up a job of which a slot will not be filled again, or fails in a loop."""
        for key, held in slots.items():
            last = held[-1]
            failed = [task for task in held if state_of(task) in ("failed", "rejected")]
            abandoned = last in failed and last.get("DesiredState") == "shutdown"
            if not abandoned and len(failed) < CRASHES:
                continue
            culprit = failed[-1]
            why = "failed and is not tried again" if abandoned else f"failed {len(failed)} times"
            told = error_of(culprit) or state_of(culprit)
            verdict.failure = f"job {self.name} does not complete: {self.name}.{key} {why}: {told}"
            verdict.culprit = culprit
            return


def _iteration(holder: Mapping[str, Any]) -> int:
    return int((holder.get("JobIteration") or {}).get("Index") or 0)


def _by_schedule(service: Mapping[str, Any]) -> bool:
    """Whether it runs when its time has come: nobody waits for that."""
    spec = service.get("Spec") or {}
    return "Cron" in (spec.get("Mode") or {}) or "covey.cron.schedule" in (spec.get("Labels") or {})


def _wanted(service: Mapping[str, Any], slots: int) -> int:
    """Completions that make the job complete; a global job has one a node, at least one."""
    mode = (service.get("Spec") or {}).get("Mode") or {}
    if "ReplicatedJob" in mode:
        return int(mode["ReplicatedJob"]["TotalCompletions"])
    return max(1, slots)
