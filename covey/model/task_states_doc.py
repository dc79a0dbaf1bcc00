"""Prints docs/task-model.md from the table of task states: ``python -P -m covey.model.task_states_doc > docs/task-model.md``.

It decides wording and order; every state, rank and edge is the table's. A test holds the file to it.
"""

from __future__ import annotations

import sys

from covey.model.task_states import DESIRED, Actor, TaskState, edges, is_terminal

MEANINGS: dict[TaskState, str] = {
    TaskState.NEW: "made by reconcile; has no addresses yet",
    TaskState.ALLOCATED: "has its addresses (passed within one write)",
    TaskState.PENDING: "waits for a node; its message says which filter refused how many",
    TaskState.ASSIGNED: "has its node; from here on the worker reports",
    TaskState.ACCEPTED: "in the worker's journal",
    TaskState.PREPARING: "its container is being made: image, root file system, volumes, bundle",
    TaskState.READY: "its container is made and waits for the word to start",
    TaskState.STARTING: "its process is being started, or its health check has not passed yet",
    TaskState.RUNNING: "its process runs",
    TaskState.COMPLETE: "its process ended with exit code 0",
    TaskState.SHUTDOWN: "it was told to stop, and has",
    TaskState.FAILED: "its process ended otherwise, or could not be started, or is unhealthy",
    TaskState.REJECTED: "the node can never run it as it stands",
    TaskState.REMOVE: "given up before it had a node",
    TaskState.ORPHANED: "its node is lost: what became of it is not known",
}

DESIRES: dict[TaskState, str] = {
    TaskState.READY: "prepare it and wait: for its restart delay, or for the task it replaces to be over",
    TaskState.RUNNING: "run it",
    TaskState.COMPLETE: "run it to its end (jobs)",
    TaskState.SHUTDOWN: "stop it and keep it as history",
    TaskState.REMOVE: "stop it and forget it: its slot or service is gone",
}

_ARROWS = {Actor.LEADER: "leader", Actor.WORKER: "worker"}

_INTRODUCTION = """\
# The task model

<!-- Printed by covey/model/task_states_doc.py from covey/model/task_states.py: change those, not this file. -->

A task is one attempt to fill a slot of a service. It is never restarted, only replaced: `attempt` counts, and the new
task names the one it `replaces`. Two write about a task, each under its own key: the leader what it decided (`/task`), and
the dispatcher that holds the node's session what the worker observed (`/task_status`). The state a person sees is the
higher-ranked of the two. Ranks only rise, several states may be passed in one write, and nobody moves a task where the
table does not say so: the leader, the dispatcher and the worker check against the same table.
"""

_TRIP = """\
## Who moves it when

The first three decide in one pass, each on what the ones before want; a task is stored as the last of them left it, so most
enter the store `assigned`.

| room | sees | does |
|---|---|---|
| `scheduler.reconcile` | a slot without a wanted task | creates one (`new`), retires the one before in the same transaction |
| `scheduler.allocate` | `new`, and the service's networks and ports are given | gives addresses (`pending`) |
| `scheduler.placement` | `pending`, and a feasible node | gives the node (`assigned`), or says why there is none |
| `manager.dispatcher` | a change of what a node should hold | sends it the difference |
| `worker.agent.machine` | an assignment, or the end of a step | prepares, starts, stops, removes; reports each step |
| `scheduler.rollout` | a task of a former template, and room to replace it | a successor that bears its `rollout` |
| `scheduler.restart` | a task that is over | a successor, its `not_before` a restart delay away, or none |
| `scheduler.liveness` | a node that is down or gone | `orphaned`: the slot counts as empty |
| `scheduler.reap` | tasks that are over, beyond the history kept | deletes them |
"""


def document() -> str:
    """The whole file."""
    parts = [_INTRODUCTION, "## States\n", _states(), "## Moves\n", _picture(), "## Desired states\n", _desired(), _TRIP]
    return "\n".join(parts)


def _states() -> str:
    lines = ["| state | rank | over | means |", "|---|---|---|---|"]
    lines += [f"| {s.label} | {int(s)} | {'yes' if is_terminal(s) else ''} | {MEANINGS[s]} |" for s in TaskState]
    return "\n".join(lines) + "\n"


def _picture() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> new"]
    lines += [f"    {old.label} --> {new.label}: {_ARROWS[actor]}" for actor, old, new in edges()]
    lines += [f"    {state.label} --> [*]" for state in TaskState if is_terminal(state)]
    return "\n".join([*lines, "```"]) + "\n"


def _desired() -> str:
    lines = ["The leader says how far a task is to go. A desired state may only be followed by one further down.", ""]
    lines += ["| desired | means |", "|---|---|", *(f"| {state.label} | {DESIRES[state]} |" for state in DESIRED)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
