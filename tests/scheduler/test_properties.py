"""Random clusters, random histories: every decision rests once it has been obeyed, and its promises hold throughout."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey.model.resources import NANO
from covey.model.task_states import Actor, may_move
from covey.model.task_states import TaskState as S
from tests.scheduler.apply import LOOPS, World

STAGES = {"allocate": 4, "liveness": 2, "reap": 2}
ENDS = [S.COMPLETE, S.FAILED, S.REJECTED, S.SHUTDOWN]


@st.composite
def templates(draw: st.DrawFn) -> dict[str, Any]:
    template: dict[str, Any] = {
        "ContainerSpec": {"Image": draw(st.sampled_from("ab"))},
        "Resources": {"Reservations": {"NanoCPUs": draw(st.integers(0, 3)) * NANO // 2}},
        "RestartPolicy": {
            "Condition": draw(st.sampled_from(["any", "on-failure", "none"])),
            "MaxAttempts": draw(st.integers(0, 2)),
            "Delay": draw(st.sampled_from([0, NANO, 5 * NANO])),
        },
        "Placement": {
            "MaxReplicas": draw(st.integers(0, 2)),
            "Strategy": draw(st.sampled_from(["", "spread", "pack"])),
            "Constraints": draw(st.sampled_from([[], ["node.labels.zone == a"], ["node.hostname != n1"]])),
        },
    }
    if draw(st.booleans()):
        template["Networks"] = [{"Target": draw(st.sampled_from(["net0", "net1", "missing"]))}]
    return template


@st.composite
def services(draw: st.DrawFn, everywhere: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "template": draw(templates()),
        "UpdateConfig": {
            "Parallelism": draw(st.integers(0, 2)),
            "Order": draw(st.sampled_from(["stop-first", "start-first"])),
        },
    }
    if everywhere:
        spec["Mode"] = {"Global": {}}
    else:
        spec["Mode"] = {"Replicated": {"Replicas": draw(st.integers(0, 5))}}
    if draw(st.booleans()):
        port: dict[str, Any] = {"TargetPort": 80, "PublishedPort": draw(st.sampled_from([0, 8080]))}
        port["PublishMode"] = draw(st.sampled_from(["ingress", "host"]))
        spec["EndpointSpec"] = {"Ports": [port]}
    return spec


class Story:
    """A world in which things happen, drawn one by one."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.world = World()
        self.made = 0
        for number in range(data.draw(st.integers(1, 4), "nodes")):
            self.world.node(f"n{number}", cpus=2, labels={"zone": data.draw(st.sampled_from("ab"))})
        for number in range(2):
            self.world.network(f"net{number}")

    def pick(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def happen(self) -> None:
        event = self.pick("service", "service", "remove", "report", "report", "report", "silence", "session", "node", "time")
        getattr(self, event)()

    def service(self) -> None:
        """Create or update one; an id is never used again and a mode never changes, as the door sees to."""
        alive = list(self.world.snapshot.services)
        name = self.pick(*alive, "") if alive else ""
        if not name or len(alive) > 3:
            self.made += 1
            name = f"{self.pick('global', 'replicated')}{self.made}"
        self.world.service(name, **self.data.draw(services(name.startswith("global"))))

    def remove(self) -> None:
        if self.world.snapshot.services:
            self.world.drop("service", self.pick(*self.world.snapshot.services))

    def report(self) -> None:
        snapshot = self.world.snapshot
        moves = []
        for task in snapshot.tasks.values():
            status = snapshot.statuses.get(task.id)
            old = status.state if status else S.ASSIGNED
            if task.state >= S.ASSIGNED:
                wish = S.SHUTDOWN if task.desired >= S.SHUTDOWN else task.desired
                moves += [(task.id, new) for new in (wish, *ENDS) if may_move(Actor.WORKER, old, new)]
        for _ in range(3):
            if moves:
                task_id, new = self.pick(*moves)
                moves = [move for move in moves if move[0] != task_id]
                self.world.report(task_id, new)

    def silence(self) -> None:
        self.world.drop("session", self.pick(*self.world.snapshot.nodes))

    def session(self) -> None:
        self.world.session(self.pick(*self.world.snapshot.nodes))

    def node(self) -> None:
        node = self.world.snapshot.nodes[self.pick(*self.world.snapshot.nodes)].node
        self.world.put(msgspec.structs.replace(node, availability=self.pick("active", "pause", "drain")))

    def time(self) -> None:
        self.world.now += self.pick(0.1, 1.0, 6.0, 40.0)

    def check(self) -> None:
        """What always holds."""
        snapshot = self.world.snapshot
        columns = snapshot.columns
        assert (columns.used_cpus <= columns.total_cpus).all()
        taken: set[tuple[str, str]] = set()
        wanted: dict[tuple[str, int, str], int] = {}
        for task in snapshot.tasks.values():
            status = snapshot.statuses.get(task.id)
            if task.state != S.REMOVE and (status is None or status.state <= S.RUNNING):
                for given_ in task.networks:
                    for address in given_.addresses:
                        assert (given_.network_id, address) not in taken, f"{address} is given twice"
                        taken.add((given_.network_id, address))
            if task.desired < S.SHUTDOWN and snapshot.state(task) <= S.RUNNING:
                slot = (task.service_id, task.slot, "" if task.slot else task.node_id)
                wanted[slot] = wanted.get(slot, 0) + 1
        assert max(wanted.values(), default=0) <= 2
        ports = [
            (port.protocol, port.published)
            for given_service in snapshot.service_allocations.values()
            for port in given_service.ports
            if port.mode == "ingress"
        ]
        assert len(ports) == len(set(ports))


def settle_one(world: World, name: str) -> None:
    """One decision, fed its own result: it wants no more, once what it had put off until it had seen a write is done.

    (Tasks wait for the subnet of their network, and are orphaned once their node's verdict is written.)
    """
    for _ in range(STAGES.get(name, 1)):
        world.commit(world.decide(name))
    assert not world.decide(name).changes, f"{name} fed its own result wants more"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(st.data())
def test_every_decision_is_idempotent_and_keeps_its_promises(data: st.DataObject) -> None:
    story = Story(data)
    world = story.world
    for _ in range(data.draw(st.integers(1, 10), "events")):
        story.happen()
        for name in data.draw(st.permutations(list(LOOPS)), "order"):
            settle_one(world, name)
            story.check()
        if data.draw(st.booleans(), "settle"):
            world.settle()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(st.data())
def test_a_cluster_left_alone_gets_what_was_asked_for(data: st.DataObject) -> None:
    story = Story(data)
    world = story.world
    for _ in range(data.draw(st.integers(1, 8), "events")):
        story.happen()
        world.step()
    for view in list(world.snapshot.nodes.values()):
        world.put(msgspec.structs.replace(view.node, availability="active"))
        world.session(view.id)
    for service in world.snapshot.services:
        template = {"ContainerSpec": {"Image": "final"}, "RestartPolicy": {"Condition": "any", "Delay": 0}}
        mode = world.snapshot.services[service].spec["Mode"]
        world.service(service, template=template, Mode=mode)
    for _ in range(3):
        world.run()
        world.now += 100
    snapshot = world.snapshot
    for service, spec in snapshot.service_specs.items():
        expected = len(snapshot.nodes) if spec.mode == "global" else spec.replicas
        running = world.running(service)
        assert len(running) == expected
        assert {t.spec["ContainerSpec"]["Image"] for t in running} <= {"final"}
        assert len({(t.slot, t.node_id if not t.slot else "") for t in running}) == expected
    gone = set(snapshot.by_service) - set(snapshot.services)
    assert not gone
