"""Random faults on a real cluster: whatever dies, in whatever order, the exact number of replicas runs in the end.

A run is a seed. After every fault the cluster must come back to what was asked for; at the end no container runs that
belongs to no running task, and every task id was started once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from covey.testing import images
from covey.testing.lab import Lab

pytestmark = pytest.mark.e2e

IMAGE = "covey/busybox:chaos"
HEAL_SECONDS = 30.0


def spec(name: str, replicas: int) -> dict[str, Any]:
    return {
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {"Image": IMAGE, "Args": ["sleep", "1000"], "StopGracePeriod": 0},
            "RestartPolicy": {"Condition": "any", "Delay": 0},
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
    }


def scale(lab: Lab, name: str, replicas: int) -> None:
    def done() -> bool:
        client = lab.manager.client
        service = client.get(f"/services/{name}")
        body = {**service["Spec"], "Mode": {"Replicated": {"Replicas": replicas}}}
        client.post(f"/services/{service['ID']}/update", {"version": str(service["Version"]["Index"])}, json=body)
        return True

    lab.wait_until(done, HEAL_SECONDS, f"{name} is scaled to {replicas}")


def containers(lab: Lab) -> dict[str, str]:
    """Task id → node of every running container of a task, on the nodes that live; a task on two nodes is a fault."""
    found: dict[str, str] = {}
    for node in lab:
        if not node.alive or not node.runs("daemon"):
            continue
        for container in node.client.get("/containers/json"):
            task = container["Labels"].get("com.docker.swarm.task.id")
            if task:
                assert task not in found, f"task {task} runs on {found[task]} and {node.name}"
                found[task] = node.name
    return found


def settled(lab: Lab, wanted: int) -> Callable[[], bool]:
    def check() -> bool:
        running = {task["ID"] for task in lab.running("chaos")}
        return len(running) == wanted and set(containers(lab)) == running

    return check


class Faults:
    """The faults of one run; ``undo`` mends what the last one broke."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self.lab = lab
        self.dice = dice
        self.log: list[str] = []

    def strike(self) -> None:
        fault = self.dice.choice(
            [self.daemon, self.manager, self.etcd, self.zygote, self.machine, self.cut, self.container, self.shim]
        )
        self.log.append(fault.__name__)
        fault()

    def _worker(self) -> Any:
        return self.dice.choice([node for node in self.lab.workers if node.alive])

    def daemon(self) -> None:
        node = self.dice.choice([node for node in self.lab if node.alive])
        node.kill_process("daemon")
        node.start_daemon()
        node.wait_ready()

    def manager(self) -> None:
        self.lab.manager.kill_process("manager")

    def etcd(self) -> None:
        self.lab.manager.kill_process("etcd")

    def zygote(self) -> None:
        self._worker().kill_process("zygote")

    def machine(self) -> None:
        node = self._worker()
        node.kill()
        if self.dice.random() < 0.5:
            self.lab.wait_until(lambda: node.name not in self.lab.ready(), 15, f"{node.name} is seen to be gone")
        node.restart()
        node.wait_ready()

    def cut(self) -> None:
        node = self._worker()
        self.lab.partition(node.name)
        if self.dice.random() < 0.5:
            self.lab.wait_until(lambda: node.name not in self.lab.ready(), 15, f"{node.name} is seen to be gone")
        self.lab.heal(node.name)

    def container(self) -> None:
        node = self._worker()
        for found in node.client.get("/containers/json")[:1]:
            node.client.post(f"/containers/{found['Id']}/kill")

    def shim(self) -> None:
        node = self._worker()
        for found in node.client.get("/containers/json")[:2]:
            node.client.post(f"/containers/{found['Id']}/kill", {"signal": "TERM"})


def chaos(seed: int, rounds: int) -> None:
    dice = random.Random(seed)
    with Lab(nodes=4) as lab:
        lab.load_image(images.docker_archive(IMAGE, [images.busybox_rootfs_tar()]))
        wanted = 6
        lab.manager.client.post("/services/create", json=spec("chaos", wanted))
        lab.wait_until(settled(lab, wanted), HEAL_SECONDS, f"{wanted} replicas run")
        faults = Faults(lab, dice)
        for _ in range(rounds):
            faults.strike()
            if dice.random() < 0.4:
                wanted = dice.randint(1, 9)
                scale(lab, "chaos", wanted)
            what = f"seed {seed}, after {', '.join(faults.log)}: exactly {wanted} replicas run"
            lab.wait_until(settled(lab, wanted), HEAL_SECONDS, what)


@pytest.mark.timeout(240)
def test_a_short_run_of_faults() -> None:
    chaos(seed=1, rounds=6)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 7))
def test_long_runs_of_faults(seed: int) -> None:
    chaos(seed, rounds=25)
