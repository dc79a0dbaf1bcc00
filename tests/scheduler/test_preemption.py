"""Who leaves for whom, beyond one node or two (those are in test_placement)."""

from __future__ import annotations

import msgspec

from covey.model.task_states import TaskState as S
from tests.scheduler.test_placement import asking, cluster, places


def test_in_a_large_cluster_what_leaves_anyway_is_waited_for_before_anybody_is_told_to() -> None:
    world = cluster(100, cpus=2)
    world.service("low", replicas=100, template=asking(cpus=2))
    world.run()
    columns = world.snapshot.columns
    last = max((task for task in world.running("low")), key=lambda task: columns.tie[columns.ids.index(task.node_id)])
    world.put(msgspec.structs.replace(last, desired=S.SHUTDOWN))
    world.service("high", template=asking(cpus=2, Priority=5))
    for name in ("liveness", "reconcile", "allocate", "placement"):
        world.commit(world.decide(name))
    assert [task.id for task in world.tasks("low") if task.desired == S.SHUTDOWN] == [last.id]
    world.run()
    assert places(world, "high") == [last.node_id]
