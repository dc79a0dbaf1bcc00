"""What a node is given: a pure function of the world, told complete or as increments that add up to it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from covey.model.objects import Config, Network, Node, PortConfig, Secret, ServiceAllocation, Task, TaskNetwork, TaskStatus
from covey.model.task_states import TaskState
from covey.wire.messages import Assignments
from manager.dispatcher.assignments import NOTHING, Holding, chosen_ports, complete, diff, holding
from scheduler.index import Index

NODES = ("n1", "n2")
STATES = (TaskState.NEW, TaskState.PENDING, TaskState.ASSIGNED, TaskState.ORPHANED)


def world(tasks: list[Task], statuses: dict[str, TaskState], names: dict[str, str]) -> Index:
    """Nodes, three networks, secrets and configs, and these tasks."""
    index = Index()
    changes: list[Any] = [("node", node, Node(id=node)) for node in NODES]
    for number in range(3):
        label = names.get(str(number), "")
        changes.append(
            ("network", f"net{number}", Network(id=f"net{number}", spec={"Name": f"net{number}", "Labels": {"l": label}}))
        )
        changes.append(("secret", f"sec{number}", Secret(id=f"sec{number}", spec={"Name": label}, data=label.encode())))
        changes.append(("config", f"con{number}", Config(id=f"con{number}", spec={"Name": f"con{number}"})))
    changes += [("task", task.id, task) for task in tasks]
    changes += [
        ("task_status", task.id, TaskStatus(id=task.id, node_id=task.node_id, state=statuses[task.id]))
        for task in tasks
        if task.id in statuses
    ]
    index.apply(changes, len(changes))
    return index


@st.composite
def tasks_of_a_world(draw: st.DrawFn) -> list[Task]:
    made = []
    for number in draw(st.sets(st.integers(0, 5), max_size=6)):
        secrets = [{"SecretID": f"sec{n}"} for n in draw(st.sets(st.integers(0, 2)))]
        configs = [{"ConfigID": f"con{n}"} for n in draw(st.sets(st.integers(0, 3)))]
        networks = tuple(TaskNetwork(network_id=f"net{n}") for n in sorted(draw(st.sets(st.integers(0, 3)))))
        made.append(
            Task(
                id=f"t{number}",
                service_id="s1",
                # The shared view of a spec is by service and spec version.
                spec_version=number + 1,
                slot=number + 1,
                node_id=draw(st.sampled_from(NODES)),
                state=draw(st.sampled_from(STATES)),
                desired=draw(st.sampled_from((TaskState.RUNNING, TaskState.SHUTDOWN))),
                networks=networks,
                spec={"ContainerSpec": {"Image": "x", "Secrets": secrets, "Configs": configs}},
            )
        )
    return made


worlds = st.builds(
    world,
    tasks_of_a_world(),
    st.dictionaries(st.sampled_from([f"t{n}" for n in range(6)]), st.sampled_from((TaskState.RUNNING, TaskState.FAILED))),
    st.dictionaries(st.sampled_from("012"), st.text("ab", max_size=2)),
)


def held_by(index: Index, former: Holding = NOTHING) -> Holding:
    secrets: Any = index.objects("secret")
    configs: Any = index.objects("config")
    return holding(index.snapshot(), secrets, configs, "n1", former)


def applied(held: dict[str, dict[str, Any]], message: Assignments) -> dict[str, dict[str, Any]]:
    """What a worker has after ``message``, written here anew and not taken from the code under test."""
    parts = {
        "task": {entry.task.id: entry for entry in message.tasks},
        "network": {entry.id: entry for entry in message.networks},
        "secret": {entry.id: entry for entry in message.secrets},
        "config": {entry.id: entry for entry in message.configs},
    }
    if message.complete:
        return parts
    merged = {kind: {**held[kind], **parts[kind]} for kind in parts}
    for kind, key in message.removed:
        del merged[kind][key]
    return merged


def as_parts(holding_: Holding) -> dict[str, dict[str, Any]]:
    return {
        "task": dict(holding_.tasks),
        "network": dict(holding_.networks),
        "secret": dict(holding_.secrets),
        "config": dict(holding_.configs),
    }


@settings(max_examples=80, deadline=None)
@given(st.lists(worlds, min_size=2, max_size=4))
def test_a_complete_message_and_its_increments_add_up_to_what_the_node_should_hold(views: list[Index]) -> None:
    first = held_by(views[0])
    state = applied({}, complete(first, "s.0", "c"))
    assert state == as_parts(first)
    old, sequence = first, "s.0"
    for number, view in enumerate(views[1:], 1):
        new = held_by(view, old)
        message = diff(old, new, sequence, f"s.{number}", "c")
        if message is None:
            assert as_parts(old) == as_parts(new)
            continue
        assert (message.applies_to, message.results_in) == (sequence, f"s.{number}")
        state = applied(state, message)
        assert state == as_parts(new)
        old, sequence = new, message.results_in


@settings(max_examples=80, deadline=None)
@given(worlds)
def test_a_node_holds_its_own_assigned_tasks_and_only_what_they_use(index: Index) -> None:
    held, snapshot = held_by(index), index.snapshot()
    mine = {key for key, task in snapshot.tasks.items() if task.node_id == "n1" and task.state >= TaskState.ASSIGNED}
    assert set(held.tasks) == mine
    networks = {given.network_id for key in mine for given in snapshot.tasks[key].networks}
    assert set(held.networks) == networks & {"net0", "net1", "net2"}
    live = [snapshot.tasks[key] for key in mine if snapshot.state(snapshot.tasks[key]) <= TaskState.RUNNING]
    secrets = {entry["SecretID"] for task in live for entry in task.spec["ContainerSpec"]["Secrets"]}
    assert set(held.secrets) == secrets
    configs = {entry["ConfigID"] for task in live for entry in task.spec["ContainerSpec"]["Configs"]}
    assert set(held.configs) == configs - {"con3"}
    assert diff(held, held_by(index), "a", "b", "c") is None


def test_a_removed_network_stays_until_its_last_task_is_gone() -> None:
    networks = (TaskNetwork(network_id="net0"),)
    task = Task(id="t", service_id="s", node_id="n1", state=TaskState.ASSIGNED, desired=TaskState.REMOVE, networks=networks)
    index = world([task], {}, {})
    before = held_by(index)
    index.apply([("network", "net0", None)], 100)
    during = held_by(index, before)
    assert during.networks == before.networks
    assert held_by(index).networks == {}
    index.apply([("task", "t", None)], 101)
    message = diff(during, held_by(index, during), "a", "b", "c")
    assert message is not None
    assert set(message.removed) == {("task", "t"), ("network", "net0")}


def test_ports_that_the_leader_chose_are_filled_in() -> None:
    asked = (PortConfig(target=80), PortConfig(target=81, mode="host"), PortConfig(target=82, published=9000))
    task = Task(id="t", service_id="s", ports=asked)
    given_ = ServiceAllocation(id="s", ports=(PortConfig(target=80, published=30000), PortConfig(target=81, published=30001)))
    assert [port.published for port in chosen_ports(task.ports, given_)] == [30000, 0, 9000]
    assert chosen_ports(task.ports, None) == asked
