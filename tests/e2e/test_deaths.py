"""Processes die on a real cluster with real timers: what runs goes on running, what died is replaced, nothing is doubled."""

from __future__ import annotations

import signal
import time

import pytest

from covey.testing.lab import Lab
from covey.testing.lab_node import LabNode

from .conftest import container_of, create, machine_of, service
from .looking import Running, doubled, running, slot_history, successor, works

pytestmark = pytest.mark.e2e

NODES = 4
PROFILE = "default"


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_a_killed_process_is_replaced_after_the_restart_delay(lab: Lab, delay: float) -> None:
    (first,) = create(lab, service("one", delay=delay))
    began = time.monotonic()
    machine_of(lab, first).machine.signal(container_of(first)[1], signal.SIGKILL)
    second = lab.wait_until(lambda: successor(lab, first), delay + 5, "a successor runs", poll=0.02)
    took = time.monotonic() - began
    assert delay <= took <= delay + 1, f"it took {took:.2f} s"
    history = slot_history(lab, "one")
    assert [task["ID"] for task in history] == [first["ID"], second["ID"]]
    assert history[0]["Status"]["State"] == "failed"
    assert history[0]["Status"]["ContainerStatus"]["ExitCode"] == 137
    assert "137" in history[0]["Status"]["Err"]


def test_the_history_has_the_right_exit_codes(lab: Lab) -> None:
    script = ["sh", "-c", "exit 3"]
    lab.manager.client.post("/services/create", json=service("three", script, delay=0.2))
    ended = lab.wait_until(
        lambda: (
            found if len(found := [task for task in lab.tasks("three") if task["Status"]["State"] == "failed"]) > 1 else None
        ),
        10,
        "two tasks have failed",
    )
    assert {task["Status"]["ContainerStatus"]["ExitCode"] for task in ended} == {3}


@pytest.mark.parametrize(
    ("name", "process"),
    [("m1", "manager"), ("m1", "etcd"), ("m1", "daemon"), ("m1", "zygote"), ("w1", "daemon"), ("w1", "zygote")],
)
def test_every_container_survives_a_killed_process_of_the_node(lab: Lab, name: str, process: str) -> None:
    create(lab, service("stays", replicas=4))
    before = running(lab)
    assert {machine for machine, _, _ in before.values()} == set(lab.nodes)
    node = lab.node(name)
    killed = node.kill_process(process)
    assert_all_run(lab, before)
    if process == "daemon":
        node.start_daemon()
        node.wait_ready()
    lab.wait_until(lambda: node.runs(process) and node.pid(process) != killed, 15, f"{process} of {name} is back")
    lab.wait_until(lambda: running(lab) == before, 15, "every container is found again, with its pid and start time")
    works(lab, "after")
    assert node.runs(process)
    assert node.pid(process) != killed
    assert running(lab) == before
    assert not doubled(lab)
    assert len(lab.tasks("stays")) == 4, "a task was replaced though its container ran on"


def assert_all_run(lab: Lab, before: Running) -> None:
    """The processes themselves are there, whatever the cluster says."""
    for container, (name, pid, started) in before.items():
        assert lab.node(name).machine.process(pid)["start_time"] == started, f"{container} on {name} has ended"


@pytest.mark.parametrize(("victim", "process"), [("w1", "daemon"), ("m1", "manager"), ("m1", "etcd")])
def test_an_exit_while_it_was_dead_is_reported_once(lab: Lab, victim: str, process: str) -> None:
    placement = {"Placement": {"Constraints": ["node.hostname == w1"]}}
    (first,) = create(lab, service("exits", delay=0.5, task=placement))
    dead, node = lab.node(victim), lab.node("w1")
    dead.pause(processes=["daemon"]) if process != "daemon" else None
    try:
        dead.kill_process(process)
        node.machine.signal(container_of(first)[1], signal.SIGKILL)
        lab.wait_until(lambda: gone(node, container_of(first)[1]), 5, "the container's process is gone")
    finally:
        dead.resume()
    if process == "daemon":
        dead.start_daemon()
        dead.wait_ready()
    second = lab.wait_until(lambda: successor(lab, first), 20, "a successor runs")
    time.sleep(1.0)  # a second report would make a second successor after the delay of half a second
    history = slot_history(lab, "exits")
    assert [task["ID"] for task in history] == [first["ID"], second["ID"]]
    assert history[0]["Status"]["ContainerStatus"]["ExitCode"] == 137
    assert history[1]["Status"]["State"] == "running"
    assert not doubled(lab)


def gone(node: LabNode, pid: int) -> bool:
    return all(found["pid"] != pid or found["state"] in "ZX" for found in node.machine.processes())
