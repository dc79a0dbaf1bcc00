"""Drains in the simulation: how a user empties a node, and that no more leaves it at once than was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from covey.model.objects import DrainPolicy, Task
from covey.model.task_states import TaskState

if TYPE_CHECKING:
    from tests.sim.client import Client
    from tests.sim.controller import Controller
    from tests.sim.oracles import Oracles

#: Clocks differ by so many seconds: near a deadline nobody can be blamed.
SKEW = 5.0


async def act(client: Client) -> None:
    """A user empties the fullest node step by step, or takes one back that was."""
    sim, rng = client.sim, client.sim.rng
    views = [sim.oracles.truth.snapshot().nodes.get(name) for name in sim.machines]
    drained = [view.id for view in views if view is not None and view.node.availability == "drain"]
    if drained:
        return await client.set_node(rng.choice(drained), availability="active", drain=None)
    snapshot = sim.oracles.truth.snapshot()
    fullest = max(sim.machines, key=lambda name: (len(list(snapshot.tasks_on(name))), name))
    how = DrainPolicy(
        parallelism=rng.choice((1, 1, 2)),
        order=rng.choice(("", "stop-first")),
        deadline=rng.choice((0.0, 0.0, 15.0)),
        since=client.clock.now(),
    )
    return await client.set_node(fullest, availability="drain", drain=how)


def made_for(task: Task) -> str:
    """Why it was made: what was decided of it in the same pass comes behind that."""
    return task.cause.partition("; ")[0]


def judge(oracles: Oracles, task: Task, writer: Controller | None) -> None:
    """A task was created: of those that left the same node, no more may be on their way than its policy says."""
    why = made_for(task)
    if writer is None or writer.mirror is None or not why.endswith(" is drained"):
        return
    view = writer.mirror.snapshot()
    node_id = why.split()[1]
    node = view.nodes.get(node_id)
    asked = node.node.drain if node is not None else None
    if asked is None or (asked.deadline and oracles.sim.now() > asked.since + asked.deadline - SKEW):
        return
    oracles.sim.cover("moves of a drain step by step")
    truth = oracles.truth.snapshot()
    on_their_way = [
        other.id
        for other in truth.tasks.values()
        if made_for(other) == why and other.desired < TaskState.SHUTDOWN and truth.state(other) < TaskState.RUNNING
    ]
    if len(on_their_way) > asked.parallelism:
        oracles.broken("more leaves a node at once than its drain allows", f"{node_id}: {on_their_way}, {asked}")
