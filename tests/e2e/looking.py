"""What really runs on a cluster of the lab, for tests of what dies on it."""

from __future__ import annotations

from typing import Any

from covey.testing.lab import Lab

from .conftest import container_of, containers, create, machine_of, service

Running = dict[str, tuple[str, int, int]]


def running(lab: Lab) -> Running:
    """Container id → machine, pid and start time (ticks since boot) of every process of a task that really runs."""
    found: Running = {}
    for task in lab.running():
        container, pid = container_of(task)
        node = machine_of(lab, task)
        found[container] = (node.name, pid, node.machine.process(pid)["start_time"])
    return found


def doubled(lab: Lab) -> list[str]:
    """Containers on living machines that belong to no running task of the cluster."""
    known = {container_of(task)[0] for task in lab.running()}
    return [
        f"{node.name} {container[:12]}"
        for node in lab
        if node.alive
        for container in containers(node, everything=False) - known
    ]


def works(lab: Lab, name: str) -> None:
    """The cluster still takes orders: a service is made, runs on every node and goes."""
    made = create(lab, service(name, replicas=len(lab.nodes)))[0]["ServiceID"]
    lab.manager.client.delete(f"/services/{made}")

    def gone() -> bool:
        return all(task["ServiceID"] != made for task in lab.tasks()) and not doubled(lab)

    lab.wait_until(gone, 10, f"{name} goes")


def slot_history(lab: Lab, name: str, slot: int = 1) -> list[dict[str, Any]]:
    """The tasks of one slot, oldest first."""
    return sorted((task for task in lab.tasks(name) if task["Slot"] == slot), key=lambda task: task["CreatedAt"])


def successor(lab: Lab, old: dict[str, Any]) -> dict[str, Any] | None:
    """The running task that took the slot of ``old``."""
    found = [task for task in lab.running() if task["ID"] != old["ID"]]
    return next((task for task in found if (task["ServiceID"], task["Slot"]) == (old["ServiceID"], old["Slot"])), None)
