"""Explanations: per node the filter that refuses, with numbers and a remedy; among the others the winner and its score."""

from __future__ import annotations

import msgspec

from covey.model.objects import Node
from covey.model.resources import MIB, NANO, Resources
from scheduler.placement.explain import explain
from tests.scheduler.apply import World
from tests.scheduler.test_placement import asking, places


def describe(world: World, node_id: str, **fields: object) -> None:
    held = world.snapshot.nodes[node_id].info
    assert held is not None
    world.put(msgspec.structs.replace(held, description=msgspec.structs.replace(held.description, **fields)))


def test_each_filter_says_why_and_what_would_help() -> None:
    world = World()
    for name in ("drained", "small", "bare", "west", "arm", "taken", "full", "far"):
        world.node(name, labels={"zone": "west" if name == "west" else "east"})
        plugins = () if name == "bare" else (("Volume", "nfs"),)
        describe(
            world, name, plugins=plugins, resources=Resources(nano_cpus=4 * NANO, memory_bytes=4096 * MIB, generic={"gpu": 2})
        )
    ports = {"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}
    world.service("other", template=asking(Constraints=["node.hostname==taken"]), EndpointSpec=ports)
    world.service("shy", template=asking(Constraints=["node.hostname==far"]))
    template = {
        **asking(
            cpus=3,
            memory=100,
            Constraints=["node.labels.zone==east", "node.hostname != unheard-of"],
            Platforms=[{"OS": "linux", "Architecture": "amd64"}],
            MaxReplicas=1,
            Affinities=[{"Service": "shy", "Weight": -1, "Required": True}],
        ),
        "ContainerSpec": {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}}]},
    }
    template["Resources"]["Reservations"]["GenericResources"] = [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]  # type: ignore[index]
    world.service("web", template=template, EndpointSpec=ports)
    world.put(Node(id="drained", availability="drain"))
    describe(world, "small", resources=Resources(nano_cpus=2 * NANO, memory_bytes=50 * MIB))
    describe(world, "arm", architecture="aarch64")
    world.run()
    (task,) = world.running("web")
    assert task.node_id == "full"
    told = explain(world.snapshot, task.id, world.now, world.settings)
    assert told.node_id == "full"
    said = {verdict.node_id: (verdict.filter, verdict.reason.partition(": ")[2], verdict.remedy) for verdict in told.verdicts}
    assert said == {
        "drained": ("ready", "its availability is drain", "set its availability to active: node update drained"),
        "small": (
            "resources",
            "3 CPUs and 100 MiB, 1 gpu asked for, 2 CPUs and 50 MiB, 0 gpu free",
            "free 1 CPUs, 50 MiB, 1 gpu there, or reserve less",
        ),
        "bare": ("plugins", "the task needs Volume nfs", "install the plugin there, or use another driver"),
        "west": (
            "constraints",
            "node.labels.zone == east (it is 'west')",
            "label the node accordingly, or take the constraint back",
        ),
        "arm": ("platform", "it is linux/aarch64, the image is for linux/amd64", "use an image for this platform"),
        "taken": ("ports", "8080/tcp", "publish another port, or in ingress mode"),
        "full": ("resources", *said["full"][1:]),
        "far": ("affinity", "far from shy by node.id", "move the other service, or do not require it"),
    }


def test_the_winner_is_the_first_and_the_others_follow_by_score() -> None:
    world = World()
    for name, cpus in (("a", 4), ("b", 8), ("c", 16)):
        world.node(name, cpus=cpus)
    world.service("base", replicas=3, template=asking(cpus=1))
    world.run()
    world.service("web", template=asking(cpus=99))
    world.run()
    waiting = world.tasks("web")[0]
    told = explain(world.snapshot, waiting.id, world.now, world.settings)
    assert (told.node_id, told.message) == ("", waiting.message)
    world.service("next", template=asking(cpus=1, Strategy="spread"))
    for name in ("liveness", "reconcile", "allocate"):
        world.commit(world.decide(name))
    (task,) = world.tasks("next")
    told = explain(world.snapshot, task.id, world.now, world.settings)
    ranked = sorted(told.verdicts, key=lambda verdict: verdict.rank)
    assert [verdict.node_id for verdict in ranked] == ["c", "b", "a"]
    assert [verdict.score for verdict in ranked] == sorted(verdict.score for verdict in ranked)
    world.run()
    assert places(world, "next") == [told.node_id] == ["c"]
