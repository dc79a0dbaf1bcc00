"""Machines are lost on a real cluster with test timers: their tasks run elsewhere in time, and healing doubles nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import container_of, containers, create, machine_of, service
from .looking import Running, doubled, running

pytestmark = pytest.mark.e2e

NODES = 4
#: From the loss to the last replacement's running, a busy machine of two cores included.
MOVED = 2.0
HEALED = 10.0


@pytest.fixture
def spread(lab: Lab) -> tuple[Lab, list[dict[str, Any]]]:
    """Three tasks on the three workers: the manager is drained."""
    availability(lab, "m1", "drain")
    tasks = create(lab, service("web", replicas=3, delay=5))
    assert {machine_of(lab, task).name for task in tasks} == {"w1", "w2", "w3"}
    return lab, tasks


@pytest.fixture(autouse=True)
def _undrained(lab: Lab) -> Iterator[None]:
    yield
    availability(lab, "m1", "active")


def availability(lab: Lab, name: str, value: str) -> None:
    client = lab.manager.client
    found = next(node for node in client.get("/nodes") if node["Description"]["Hostname"] == name)
    if found["Spec"]["Availability"] != value:
        body = {**found["Spec"], "Availability": value}
        client.post(f"/nodes/{found['ID']}/update", {"version": found["Version"]["Index"]}, json=body)


def elsewhere(lab: Lab, lost: str) -> bool:
    return len([task for task in lab.running("web") if machine_of(lab, task).name != lost]) == 3


@pytest.mark.parametrize("fault", ["killed", "cut off"])
def test_the_tasks_of_a_lost_worker_run_elsewhere(spread: tuple[Lab, list[dict[str, Any]]], fault: str) -> None:
    lab, _ = spread
    lost = lab.node("w2")
    before = running(lab)
    stayed = {container: where for container, where in before.items() if where[0] != "w2"}
    began = time.monotonic()
    if fault == "killed":
        lost.kill()
    else:
        lab.partition("w2")
    lab.wait_until(lambda: elsewhere(lab, "w2"), 15, "three tasks run elsewhere", poll=0.02)
    took = time.monotonic() - began
    assert took <= MOVED, f"it took {took:.2f} s\n{lab.report()}"
    now = running_elsewhere(lab, "w2")
    assert stayed.items() <= now.items(), "the others were not touched"
    if fault == "killed":
        lost.restart()
    else:
        container, pid, started = next((key, *value[1:]) for key, value in before.items() if value[0] == "w2")
        assert lost.machine.process(pid)["start_time"] == started, "a node that is cut off keeps its containers"
        assert container in containers(lost)
        lab.heal()
    healed = time.monotonic()
    lab.wait_until(lambda: "w2" in lab.ready(), HEALED, "w2 is ready again")
    lab.wait_until(lambda: not containers(lost, everything=False), HEALED, "the surplus is gone")
    assert time.monotonic() - healed <= HEALED
    assert len(lab.running("web")) == 3
    assert running_elsewhere(lab, "w2") == now, "healing moved what ran"
    assert not doubled(lab)


def running_elsewhere(lab: Lab, lost: str) -> Running:
    found: Running = {}
    for task in lab.running():
        node = machine_of(lab, task)
        if node.name != lost:
            container, pid = container_of(task)
            found[container] = (node.name, pid, node.machine.process(pid)["start_time"])
    return found


def stalled_manager_declares_nobody_down(lab: Lab, seconds: float, watch: float) -> None:
    create(lab, service("calm", replicas=4))
    before = running(lab)
    since = time.time()
    lab.node("m1").stall("manager", seconds)
    end = time.monotonic() + watch
    while time.monotonic() < end:
        states = {node["Description"]["Hostname"]: node["Status"]["State"] for node in lab.manager.client.get("/nodes")}
        assert "down" not in states.values(), f"{states}\n{lab.report()}"
        time.sleep(0.02)
    assert lab.ready() == set(lab.nodes), lab.report()
    assert running(lab) == before
    assert len(lab.tasks("calm")) == 4, "tasks were replaced"
    with lab.manager.connect() as client:
        events = list(client.lines("GET", "/events", {"since": f"{since:.3f}", "until": f"{time.time():.3f}"}))
    downs = [event for event in events if event["Type"] == "node" and event["Actor"]["Attributes"].get("state.new") == "down"]
    assert not downs


def test_a_stalled_manager_declares_no_node_down(lab: Lab) -> None:
    """Five times as long as it takes for a silent node to be down."""
    stalled_manager_declares_nobody_down(lab, 3.0, 2.0)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_manager_stalled_for_ten_seconds_with_real_timers(archive: bytes) -> None:
    with Lab(nodes=4, profile="default") as lab:
        lab.load_image(archive)
        stalled_manager_declares_nobody_down(lab, 10.0, 20.0)


def test_a_stalled_worker_comes_back_to_one_of_each(spread: tuple[Lab, list[dict[str, Any]]]) -> None:
    lab, _ = spread
    stalled = lab.node("w3")
    stalled.pause(whole=True)
    try:
        lab.wait_until(lambda: elsewhere(lab, "w3"), 15, "three tasks run elsewhere")
    finally:
        stalled.resume()
    lab.wait_until(lambda: "w3" in lab.ready(), HEALED, "w3 is ready again")
    lab.wait_until(lambda: not containers(stalled, everything=False), HEALED, "the surplus is gone")
    assert len(lab.running("web")) == 3
    assert not doubled(lab)
