"""Nodes that are emptied, by hand and step by step, and replicas that spread again when a node is back."""

from __future__ import annotations

import pytest

from covey.testing.lab import Lab

from .conftest import IMAGE, command, create, machine_of, service

pytestmark = pytest.mark.e2e


def where(lab: Lab, name: str) -> list[str]:
    return sorted(machine_of(lab, task).name for task in lab.running(name))


def active(lab: Lab, *nodes: str) -> None:
    for node in nodes:
        command(lab.manager, "cluster", "node", "update", "--availability", "active", node)


def watch_least(lab: Lab, name: str, until: str) -> int:
    """The fewest tasks of a service seen running until a node is empty."""
    least = [99]

    def empty() -> bool:
        least[0] = min(least[0], len(lab.running(name)))
        return until not in where(lab, name)

    lab.wait_until(empty, 30, f"{until} is empty", poll=0.02)
    return least[0]


def test_a_drain_moves_tasks_one_by_one_and_start_first_never_misses_one(lab: Lab) -> None:
    create(lab, service("web", replicas=6, container={"StopGracePeriod": 300_000_000}))
    assert where(lab, "web").count("w1") == 2
    command(lab.manager, "cluster", "node", "drain", "--order", "start-first", "--detach", "w1")
    assert watch_least(lab, "web", "w1") >= 6
    again = command(lab.manager, "cluster", "node", "drain", "w1", "--order", "start-first", "--timeout", "20s")
    assert "node w1 is drained" in again.stdout
    assert command(lab.manager, "docker", "node", "ls").stdout.count("Drain") == 1
    active(lab, "w1")


def test_what_has_no_room_elsewhere_stays_until_the_deadline(lab: Lab) -> None:
    spec = service("pinned", task={"Placement": {"Constraints": ["node.hostname==w1"]}})
    create(lab, spec)
    done = command(
        lab.manager, "cluster", "node", "drain", "--order", "start-first", "--deadline", "3s", "--timeout", "1s", "w1", code=1
    )
    assert "1 tasks are left after 1 s" in done.stderr
    assert where(lab, "pinned") == ["w1"]
    lab.wait_until(lambda: where(lab, "pinned") == [], 15, "the deadline is over")
    active(lab, "w1")
    lab.wait_until(lambda: where(lab, "pinned") == ["w1"], 15, "it is back with its node")


def test_a_job_is_let_complete(lab: Lab) -> None:
    options = ("--name", "slow", "--mode", "replicated-job", "--detach", "--constraint", "node.hostname!=m1")
    command(lab.manager, "cluster", "service", "create", *options, IMAGE, "sh", "-c", "sleep 2")
    (task,) = lab.wait_until(
        lambda: [task for task in lab.tasks("slow") if task["Status"]["State"] == "running"], 10, "the job runs"
    )
    node = lab.hostnames()[task["NodeID"]]
    command(lab.manager, "cluster", "node", "drain", "--deadline", "60s", "--timeout", "30s", node)
    assert [task["Status"]["State"] for task in lab.tasks("slow")] == ["complete"]
    active(lab, node)


def test_a_node_that_is_back_gets_its_share_by_a_rebalance(lab: Lab) -> None:
    command(lab.manager, "cluster", "node", "update", "--availability", "drain", "w1")
    create(lab, service("web", replicas=6))
    assert "w1" not in where(lab, "web")
    active(lab, "w1")
    told = command(lab.manager, "cluster", "rebalance", "--dry-run").stdout
    assert len(told.splitlines()) == 3, told
    assert "w1" not in where(lab, "web"), "a dry run moves nothing"
    command(lab.manager, "cluster", "rebalance", "--timeout", "30s")
    lab.wait_until(lambda: where(lab, "web") == ["m1", "m1", "w1", "w1", "w2", "w2"], 15, "replicas stand evenly")
    assert "Nothing would stand better" in command(lab.manager, "cluster", "rebalance").stdout


def test_a_paused_node_keeps_what_it_has_and_gets_nothing(lab: Lab) -> None:
    create(lab, service("web", replicas=3))
    command(lab.manager, "cluster", "node", "update", "--availability", "pause", "w1")
    command(lab.manager, "cluster", "service", "scale", "web=6")
    assert where(lab, "web").count("w1") == 1
    active(lab, "w1")
