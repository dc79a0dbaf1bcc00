"""What is forgotten, and what must not be."""

from covey.model.objects import Cluster, TaskStatus
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import World

QUICK = {"ContainerSpec": {"Image": "x"}, "RestartPolicy": {"Delay": 0}}


def looping(rounds: int) -> World:
    world = World()
    world.node("n1")
    world.service("web", template=QUICK)
    world.run()
    for _ in range(rounds):
        world.report(world.running("web")[0].id, S.FAILED)
        world.now += 1
        world.run()
    return world


def test_five_tasks_of_a_slot_are_kept_that_are_over() -> None:
    world = looping(9)
    assert [t.attempt for t in world.tasks("web")] == [5, 6, 7, 8, 9, 10]
    assert set(world.snapshot.statuses) == {t.id for t in world.tasks("web")}


def test_the_cluster_s_own_limit_counts() -> None:
    world = looping(6)
    world.put(Cluster(id="c", spec={"Orchestration": {"TaskHistoryRetentionLimit": 1}}), key="cluster")
    world.run()
    assert [t.attempt for t in world.tasks("web")] == [6, 7]


def test_tasks_that_never_had_a_node_leave_no_history() -> None:
    world = World()
    world.service("web", template=QUICK)
    world.run()
    for image in ("b", "c", "d"):
        world.service("web", template={"ContainerSpec": {"Image": image}})
        world.run()
    assert [t.attempt for t in world.tasks("web")] == [4]
    world.drop("service", "web")
    world.run()
    assert not world.snapshot.tasks


def test_a_status_whose_task_is_gone_goes_too() -> None:
    world = World()
    world.put(TaskStatus(id="ghost", node_id="n1", state=S.RUNNING))
    world.run()
    assert not world.snapshot.statuses


def test_a_removed_service_s_task_stays_until_its_worker_is_done_or_its_node_is_gone() -> None:
    world = World()
    world.node("n1")
    world.node("n2")
    world.service("web", replicas=2)
    world.run()
    world.drop("service", "web")
    world.settle()
    first, second = world.tasks("web")
    world.report(first.id, S.SHUTDOWN)
    world.settle()
    assert [t.id for t in world.tasks("web")] == [second.id]
    world.drop("node", second.node_id)
    world.run()
    assert not world.snapshot.tasks
