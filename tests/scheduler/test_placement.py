"""Who goes where, and what a task that fits nowhere says."""

import dataclasses

import msgspec
import pytest

from covey.model.objects import Node, NodeDescription, NodeInfo
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import TaskState as S
from scheduler.placement.explain import explain
from scheduler.plan import AssignTasks
from scheduler.verify import verify
from tests.scheduler.apply import World


def asking(cpus: float = 0, memory: int = 0, **placement: object) -> dict[str, object]:
    return {
        "ContainerSpec": {"Image": "x"},
        "Resources": {"Reservations": {"NanoCPUs": int(cpus * NANO), "MemoryBytes": memory * MIB}},
        "Placement": placement,
    }


def cluster(nodes: int = 3, **fields: object) -> World:
    world = World()
    for number in range(1, nodes + 1):
        world.node(f"n{number}", **fields)  # type: ignore[arg-type]
    return world


def places(world: World, service: str) -> list[str]:
    return sorted(t.node_id for t in world.running(service))


def message(world: World, service: str) -> str:
    return next(t.message for t in world.tasks(service) if t.state == S.PENDING)


@pytest.mark.parametrize("strategy", ["binpack", "spread"])
def test_replicas_stand_on_distinct_nodes_while_there_are_any(strategy: str) -> None:
    world = cluster(4)
    world.service("filler", replicas=1)
    world.run()
    world.service("web", replicas=6, template=asking(Strategy=strategy))
    world.run()
    on = places(world, "web")
    assert sorted(on.count(node) for node in set(on)) == [1, 1, 2, 2]


def test_pack_fills_one_node_before_the_next() -> None:
    world = cluster(3, cpus=2)
    world.service("web", replicas=3, template=asking(cpus=1, Strategy="pack"))
    world.run()
    on = places(world, "web")
    assert sorted(on.count(node) for node in set(on)) == [1, 2]


def test_binpack_uses_the_fullest_node_and_spread_the_emptiest() -> None:
    world = cluster(3)
    world.service("a", replicas=1, template=asking(cpus=1))
    world.run()
    world.service("b", replicas=1, template=asking(cpus=1))
    world.run()
    assert places(world, "b") == places(world, "a")
    world.service("c", replicas=1, template=asking(cpus=1, Strategy="spread"))
    world.run()
    assert places(world, "c") != places(world, "a")


def test_a_label_chooses_the_strategy_where_the_client_has_no_field_for_it() -> None:
    world = cluster(3)
    world.service("web", replicas=3, Labels={"covey.placement.strategy": "pack"})
    world.run()
    assert len(set(places(world, "web"))) == 1


def test_capacity_is_never_overspent_within_one_pass_nor_over_several() -> None:
    world = cluster(2, cpus=3)
    world.service("web", replicas=10, template=asking(cpus=1))
    world.run()
    assert len(world.running("web")) == 6
    columns = world.snapshot.columns
    assert (columns.used_cpus <= columns.total_cpus).all()
    assert message(world, "web") == "no suitable node (insufficient resources on 2 nodes)"
    world.report(world.running("web")[0].id, S.FAILED)
    world.now += 10
    world.run()
    assert len(world.running("web")) == 6


def test_refusals_are_counted_by_the_first_filter_that_refuses() -> None:
    world = cluster(4)
    world.put(Node(id="n1", availability="drain"))
    world.put(Node(id="n2", labels={"disk": "fast"}))
    world.node("n2", cpus=1, labels={"disk": "fast"})
    world.service("web", template=asking(cpus=2, Constraints=["node.labels.disk == fast"]))
    world.run()
    assert message(world, "web") == (
        "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks;"
        " insufficient resources on 1 node)"
    )
    task = world.tasks("web")[0]
    told = explain(world.snapshot, task.id, world.now, world.settings)
    said = {verdict.node_id: verdict for verdict in told.verdicts}
    assert said["n2"].reason.startswith("insufficient resources on 1 node: 2 CPUs and 0 MiB asked for, 1 CPUs and")
    assert said["n2"].remedy == "free 1 CPUs there, or reserve less"
    assert {name: verdict.filter for name, verdict in said.items()} == {
        "n1": "ready",
        "n2": "resources",
        "n3": "constraints",
        "n4": "constraints",
    }
    assert (told.node_id, told.message) == ("", task.message)


def test_a_large_backlog_is_placed_in_several_passes() -> None:
    world = cluster(3)
    world.settings = type(world.settings)(pass_tasks=4)
    world.service("web", replicas=10)
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    placed = []
    while (plan := world.decide("placement")).changes:
        assert plan.wake_at in (None, world.now)
        world.commit(plan)
        placed.append(sum(1 for t in world.tasks("web") if t.state == S.ASSIGNED))
    assert placed == [4, 8, 10]


def test_an_empty_cluster_says_so() -> None:
    world = World()
    world.service("web")
    world.run()
    assert message(world, "web") == "no suitable node"


def test_the_message_is_written_once() -> None:
    world = cluster(1)
    world.service("web", replicas=3, template=asking(cpus=99))
    world.run()
    revision = world.index.revision
    world.now += 100
    world.run()
    assert world.index.revision == revision


def test_a_task_that_waited_goes_where_room_comes_up() -> None:
    world = cluster(1)
    world.service("web", template=asking(cpus=8))
    world.run()
    assert not world.running("web")
    world.node("big", cpus=16)
    world.run()
    assert places(world, "web") == ["big"]
    assert world.running("web")[0].message == "scheduler assigned task to node"


def test_max_replicas_per_node() -> None:
    world = cluster(2)
    world.service("web", replicas=5, template=asking(MaxReplicas=2))
    world.run()
    assert places(world, "web") == ["n1", "n1", "n2", "n2"]
    assert message(world, "web") == "no suitable node (max replicas per node limit exceed)"


def test_host_ports_are_a_node_s_own() -> None:
    world = cluster(2)
    ports = {"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}
    world.service("web", replicas=3, EndpointSpec=ports)
    world.service("other", EndpointSpec={"Ports": [{"TargetPort": 81, "PublishedPort": 8081, "PublishMode": "host"}]})
    world.run()
    assert places(world, "web") == ["n1", "n2"]
    assert len(world.running("other")) == 1
    assert message(world, "web") == "no suitable node (host-mode port already in use on 2 nodes)"


def test_platforms() -> None:
    world = cluster(2)
    info = NodeDescription(architecture="aarch64", resources=Resources(nano_cpus=NANO, memory_bytes=MIB * 512))
    world.put(NodeInfo(id="n2", description=info))
    for wish, expected in (("arm64", ["n2"]), ("amd64", ["n1"]), ("riscv64", [])):
        world.service(wish, template=asking(Platforms=[{"OS": "linux", "Architecture": wish}]))
        world.run()
        assert places(world, wish) == expected
    assert "unsupported platform on 2 nodes" in message(world, "riscv64")


def test_generic_resources_are_counted() -> None:
    world = cluster(2)
    held = world.snapshot.nodes["n1"].info
    assert held is not None
    gpus = Resources(nano_cpus=4 * NANO, memory_bytes=1024 * MIB, generic_named={"gpu": ("a", "b")})
    world.put(msgspec.structs.replace(held, description=msgspec.structs.replace(held.description, resources=gpus)))
    wish = asking()
    wish["Resources"] = {"Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]}}
    world.service("web", replicas=3, template=wish)
    world.run()
    assert places(world, "web") == ["n1", "n1"]
    assert sorted(t.generic_named["gpu"] for t in world.running("web")) == [("a",), ("b",)]
    over = world.running("web")[0]
    world.report(over.id, S.FAILED)
    world.now += 10
    world.run()
    assert sorted(t.generic_named["gpu"] for t in world.running("web")) == [("a",), ("b",)]


def test_names_of_generic_resources_are_given_once() -> None:
    world = cluster(1)
    held = world.snapshot.nodes["n1"].info
    assert held is not None
    gpus = Resources(nano_cpus=4 * NANO, memory_bytes=1024 * MIB, generic_named={"gpu": ("a", "b")})
    world.put(msgspec.structs.replace(held, description=msgspec.structs.replace(held.description, resources=gpus)))
    wish = asking()
    wish["Resources"] = {"Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]}}
    world.service("web", replicas=2, template=wish)
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    plan = world.decide("placement")
    (change,) = plan.changes
    assert isinstance(change, AssignTasks)
    twice = dataclasses.replace(change, generic_named=({"gpu": ("a",)}, {"gpu": ("a",)}))
    accepted, refusals = verify(dataclasses.replace(plan, changes=(twice,)), world.snapshot)
    assert [refusal.why for refusal in refusals] == ["gpu a of node n1 is given to another task"]
    (kept,) = accepted.changes
    assert isinstance(kept, AssignTasks)
    assert kept.ids == change.ids[:1]


def test_a_spread_preference_comes_before_the_strategy() -> None:
    world = World()
    for number in range(6):
        world.node(f"n{number}", labels={"zone": "a" if number < 5 else "b"})
    wish = asking(Preferences=[{"Spread": {"SpreadDescriptor": "node.labels.zone"}}])
    world.service("web", replicas=4, template=wish)
    world.run()
    assert places(world, "web").count("n5") == 2


def test_a_node_where_the_version_keeps_failing_is_ranked_down() -> None:
    world = World()
    world.node("full", cpus=2)
    world.service("filler")
    world.run()
    world.node("empty", cpus=64)
    world.service("web", template={**asking(cpus=1), "RestartPolicy": {"Delay": 0}})
    world.run()
    for _ in range(4):
        assert places(world, "web") == ["full"]
        world.report(world.running("web")[0].id, S.FAILED)
        world.now += 1
        world.run()
    world.report(world.running("web")[0].id, S.FAILED)
    world.run()
    assert places(world, "web") == ["empty"]
