"""Why a task is where it is, or why it waits: ``GET /covey/tasks/{id}/explain``, and how explanations are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.model.task_states import TaskState
from manager.routes.door import Door
from manager.routes.tasks import find_task, task_label
from scheduler.placement.explain import Explanation, Verdict, explain
from scheduler.preview.advice import advise
from scheduler.preview.frozen import frozen
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot


class Explain:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {"covey_task_explain": self.explain}

    async def explain(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        task = find_task(snapshot, call.params["id"])
        state = snapshot.state(task)
        unplaced = task.state < TaskState.ASSIGNED
        held = frozen(snapshot)
        # Of many nodes this takes longer than the event loop may be held.
        explanation, advice = await asyncio.to_thread(_explained, held, task.id, self._door.clock.now(), self._door.settings)
        return {
            "Revision": held.revision,
            "ID": task.id,
            "Name": task_label(task),
            "State": state.label,
            "DesiredState": task.desired.label,
            # What has a message though a node has room is held up by something else, which the message names.
            "Waits": unplaced and (not explanation.node_id or bool(task.message)),
            "TaskMessage": task.message,
            **show_explanation(held, explanation, advice),
        }


def _explained(snapshot: Snapshot, task_id: str, now: float, settings: Settings) -> tuple[Explanation, tuple[str, ...]]:
    explanation = explain(snapshot, task_id, now, settings)
    return explanation, () if explanation.node_id else advise(snapshot, task_id, now, settings)


def show_explanation(snapshot: Snapshot, explanation: Explanation, advice: Iterable[str]) -> dict[str, Any]:
    """The nodes in the order of placement, those that are refused last."""
    verdicts = sorted(explanation.verdicts, key=lambda verdict: (not verdict.rank, verdict.rank, verdict.hostname))
    view = snapshot.nodes.get(explanation.node_id)
    return {
        "Strategy": explanation.strategy,
        "NodeID": explanation.node_id,
        "Node": view.hostname if view is not None else explanation.node_id,
        "Message": explanation.message,
        "Advice": list(advice),
        "Nodes": [_show_verdict(verdict) for verdict in verdicts],
    }


def _show_verdict(verdict: Verdict) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "ID": verdict.node_id,
        "Hostname": verdict.hostname,
        "Fits": bool(verdict.rank),
        "Score": round(verdict.score, 6),
        "Replicas": verdict.replicas,
    }
    if verdict.rank:
        return {**shown, "Rank": verdict.rank}
    return {**shown, "Filter": verdict.filter, "Reason": verdict.reason, "Remedy": verdict.remedy}
