"""Who goes where, and what a task that fits nowhere says."""

import dataclasses

import msgspec
import pytest

from covey.model.objects import Cluster, Node, NodeDescription, NodeInfo
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


def test_the_cluster_s_strategy_holds_where_a_service_names_none() -> None:
    world = cluster(3)
    world.put(Cluster(id="cluster1", spec={"Labels": {"covey.placement.strategy": "pack"}}), key="cluster")
    world.service("web", replicas=3)
    world.service("other", replicas=3, template=asking(Strategy="spread"))
    world.run()
    assert len(set(places(world, "web"))) == 1
    assert len(set(places(world, "other"))) == 3


def test_a_wish_chooses_among_nodes_but_does_not_crowd_them() -> None:
    world = World()
    for number in range(4):
        world.node(f"n{number}", labels={"disk": "ssd" if number == 2 else "hdd"})
    wish = asking(Affinities=[{"Constraint": "node.labels.disk==ssd", "Weight": 50}])
    world.service("one", template=wish)
    world.service("two", replicas=2, template=wish)
    world.run()
    assert places(world, "one") == ["n2"]
    assert places(world, "two").count("n2") == 1


def test_services_near_to_and_far_from_each_other() -> None:
    world = World()
    for number in range(4):
        world.node(f"n{number}", labels={"zone": "ab"[number % 2]})
    world.service("db", template=asking(Constraints=["node.labels.zone==b"]))
    world.run()
    near = {"Service": "db", "Topology": "node.labels.zone", "Required": True}
    world.service("cache", replicas=2, template=asking(Affinities=[near]))
    world.service("spare", replicas=2, template=asking(Affinities=[{**near, "Weight": -100}]))
    world.run()
    assert set(places(world, "cache")) == {"n1", "n3"}
    assert set(places(world, "spare")) == {"n0", "n2"}
    world.service("db2", template=asking(Affinities=[{"Service": "cache", "Weight": -100, "Required": True}]))
    world.service("cache", replicas=4, template=asking())
    world.run()
    assert not set(places(world, "db2")) & set(places(world, "cache")), "a distance that is required holds both ways"


def test_a_task_that_is_to_be_near_what_is_not_there_says_so() -> None:
    world = cluster(2)
    world.service("web", template=asking(Affinities=[{"Service": "db", "Required": True}]))
    world.run()
    assert message(world, "web") == "no suitable node (service affinity not satisfied on 2 nodes)"
    told = explain(world.snapshot, world.tasks("web")[0].id, world.now, world.settings)
    assert {verdict.reason for verdict in told.verdicts} == {"service affinity not satisfied on 1 node: near db by node.id"}
    world.service("db")
    world.run()
    assert places(world, "web") == places(world, "db")


def test_a_higher_priority_is_placed_first() -> None:
    world = cluster(1, cpus=2)
    world.service("low", template=asking(cpus=2))
    world.now += 1
    world.service("high", template=asking(cpus=2, Priority=5))
    world.run()
    assert places(world, "high") == ["n1"]
    assert places(world, "low") == []


def test_a_lower_priority_makes_room_once_and_no_more_than_is_needed() -> None:
    world = cluster(2, cpus=4)
    world.service("low", replicas=6, template=asking(cpus=1))
    world.service("middle", replicas=2, template=asking(cpus=1, Priority=1))
    world.run()
    assert len(world.running("low")) == 6
    world.service("high", template=asking(cpus=2, Priority=2))
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    plan = world.decide("placement")
    world.commit(plan)
    assert not world.decide("placement").changes, "what is leaving is room enough"
    world.run()
    assert len(places(world, "high")) == 1
    assert len(places(world, "middle")) == 2
    assert len(places(world, "low")) == 4
    gone = [task for task in world.tasks("low") if task.desired == S.SHUTDOWN]
    assert len(gone) == 2
    assert {task.cause.rsplit(" ", 5)[0].split(" task ")[0] for task in gone} == {"preempted by"}


def test_nobody_leaves_where_it_would_not_help() -> None:
    world = cluster(1, cpus=2)
    world.service("low", replicas=2, template=asking(cpus=1))
    world.run()
    world.service("huge", template=asking(cpus=8, Priority=9))
    world.service("equal", template=asking(cpus=1))
    world.service("elsewhere", template=asking(cpus=1, Priority=9, Constraints=["node.hostname==n7"]))
    world.run()
    assert len(world.running("low")) == 2
    assert not any(task.desired == S.SHUTDOWN for task in world.tasks("low"))


def test_a_host_port_is_taken_from_a_lower_priority() -> None:
    world = cluster(1)
    ports = {"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}
    world.service("low", EndpointSpec=ports)
    world.service("other")
    world.run()
    world.service("high", template=asking(Priority=1), EndpointSpec=ports)
    world.run()
    assert places(world, "high") == ["n1"]
    assert places(world, "low") == []
    assert places(world, "other") == ["n1"]


def test_a_group_is_placed_together_or_not_at_all() -> None:
    world = cluster(2, cpus=4)
    world.service("filler", replicas=1, template=asking(cpus=1))
    world.run()
    world.service("workers", replicas=6, template=asking(cpus=1, Group="job"))
    world.service("driver", replicas=2, template=asking(cpus=1, Group="job"))
    world.service("alone", template=asking(cpus=1))
    world.run()
    assert places(world, "workers") == places(world, "driver") == []
    assert len(places(world, "alone")) == 1, "what a group could not have is given to others"
    assert message(world, "driver") == (
        "group job has no place for all of its tasks together: no suitable node (insufficient resources on 2 nodes)"
    )
    world.node("n3", cpus=4)
    world.run()
    assert len(places(world, "workers")) == 6
    assert len(places(world, "driver")) == 2
    columns = world.snapshot.columns
    assert (columns.used_cpus <= columns.total_cpus).all()


def test_a_group_waits_for_those_that_have_no_addresses_yet() -> None:
    world = cluster(2)
    template = asking(Group="job")
    world.service("a", replicas=2, template=template)
    world.service("b", replicas=1, template={**template, "Networks": [{"Target": "missing"}]})
    world.run()
    assert places(world, "a") == []
    assert message(world, "a") == "group job waits for all of its tasks: 2 of 3 are there"
    world.network("missing")
    world.run()
    assert len(places(world, "a")) == 2
    assert len(places(world, "b")) == 1


def test_what_fails_of_a_group_that_has_begun_is_replaced_alone() -> None:
    world = cluster(2, cpus=2)
    world.service("a", replicas=4, template=asking(cpus=1, Group="job"))
    world.run()
    for task in [task for task in world.running("a") if task.node_id == "n1"]:
        world.report(task.id, S.FAILED)
    other = next(task for task in world.running("a"))
    world.report(other.id, S.FAILED)
    world.put(Node(id="n1", availability="pause"))
    world.run()
    world.now += 10
    world.run()
    assert places(world, "a") == ["n2", "n2"], "one of three has room again"


def test_what_a_group_tried_is_undone_to_the_last() -> None:
    """Host ports, names and counts of generic resources, replicas and room are as before for those that come after it."""
    world = cluster(1, cpus=4)
    held = world.snapshot.nodes["n1"].info
    assert held is not None
    gpus = Resources(nano_cpus=4 * NANO, memory_bytes=1024 * MIB, generic_named={"gpu": ("a",)})
    world.put(msgspec.structs.replace(held, description=msgspec.structs.replace(held.description, resources=gpus)))
    wish = asking(cpus=1, Group="job")
    reserved = {"NanoCPUs": NANO, "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]}
    wish["Resources"] = {"Reservations": reserved}
    ports = {"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}
    world.service("a", template=wish, EndpointSpec=ports)
    world.service("b", template=asking(cpus=9, Group="job"))
    world.now += 1
    world.service("c", template={**wish, "Placement": {"MaxReplicas": 1}}, EndpointSpec=ports)
    world.run()
    assert places(world, "a") == places(world, "b") == []
    assert [task.generic_named for task in world.running("c")] == [{"gpu": ("a",)}]
