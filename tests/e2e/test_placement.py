"""Where tasks go beyond room: priorities that make some, services that keep apart, groups that wait for all of it."""

from __future__ import annotations

from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import IMAGE, command, create, machine_of, service

pytestmark = pytest.mark.e2e

NANO = 1_000_000_000


def asking(name: str, cpus: float, *, replicas: int = 1, on: str = "", **placement: Any) -> dict[str, Any]:
    """A service that reserves so many CPUs a task, on one node if told."""
    where = {"Constraints": [f"node.hostname=={on}"]} if on else {}
    task = {"Resources": {"Reservations": {"NanoCPUs": int(cpus * NANO)}}, "Placement": {**where, **placement}}
    return service(name, replicas=replicas, task=task)


def begin(lab: Lab, spec: dict[str, Any]) -> None:
    """Create a service that is to wait."""
    lab.manager.client.post("/services/create", json=spec)


def remove(lab: Lab, name: str) -> None:
    command(lab.manager, "docker", "service", "rm", name)


def where(lab: Lab, name: str) -> list[str]:
    return sorted(machine_of(lab, task).name for task in lab.running(name))


def words(lab: Lab, name: str) -> str:
    """What its tasks that wait say."""
    return command(lab.manager, "docker", "service", "ps", "--no-trunc", "--format", "{{.Error}}", name).stdout


def cpus_of(lab: Lab, name: str) -> float:
    found = command(lab.manager, "docker", "node", "inspect", name, "--format", "{{.Description.Resources.NanoCPUs}}").stdout
    return int(found) / NANO


def test_a_higher_priority_makes_room_and_gives_it_back(lab: Lab) -> None:
    most = cpus_of(lab, "w1") * 0.75
    create(lab, asking("low", most, on="w1"))
    begin(lab, asking("equal", most, on="w1"))
    lab.wait_until(lambda: "insufficient resources" in words(lab, "equal"), 15, "equal waits: nobody makes room for it")
    assert where(lab, "low") == ["w1"]
    create(lab, asking("high", most, on="w1", Priority=10))
    assert where(lab, "high") == ["w1"]
    lab.wait_until(lambda: where(lab, "low") == [], 15, "low has made room")
    told = lab.wait_until(lambda: (said := words(lab, "low")) and "insufficient resources" in said and said, 15, "low waits")
    assert "no suitable node" in told
    remove(lab, "equal")
    remove(lab, "high")
    lab.wait_until(lambda: where(lab, "low") == ["w1"], 20, "low is back")


def test_the_command_says_priority_and_group(lab: Lab) -> None:
    most = str(cpus_of(lab, "w1") * 0.75)
    options = ("--reserve-cpu", most, "--constraint", "node.hostname==w1", "--detach")
    command(lab.manager, "cluster", "service", "create", "--name", "low", *options, IMAGE, "sleep", "1000")
    lab.wait_until(lambda: where(lab, "low") == ["w1"], 20, "low runs")
    command(lab.manager, "cluster", "service", "create", "--name", "high", "--priority", "5", *options, IMAGE, "sleep", "1000")
    lab.wait_until(lambda: where(lab, "high") == ["w1"], 20, "high runs")
    refused = command(lab.manager, "cluster", "service", "update", "--priority", "1001", "low", code=1)
    assert "not a number from 0 to 1000" in refused.stderr


def test_services_keep_apart(lab: Lab) -> None:
    create(lab, asking("db", 0, on="w1"))
    create(lab, asking("web", 0, replicas=2, Affinities=[{"Service": "db", "Weight": -100, "Required": True}]))
    assert "w1" not in where(lab, "web")


def test_a_group_is_placed_when_all_of_it_has_room(lab: Lab) -> None:
    most = cpus_of(lab, "w1") * 0.75
    create(lab, asking("filler", most, on="w1"))
    # A group is the services there are: one that could run alone would, were it the first.
    begin(lab, asking("second", most, on="w1", Group="pair"))
    begin(lab, asking("first", 0, on="w2", Group="pair"))
    lab.wait_until(lambda: "group pair" in words(lab, "first"), 15, "first waits for the whole group")
    assert where(lab, "first") == []
    remove(lab, "filler")
    lab.wait_until(lambda: (where(lab, "first"), where(lab, "second")) == (["w2"], ["w1"]), 20, "both run")
