"""Clusters of the lab for end-to-end tests, one a module; every test begins and ends with an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images
from covey.testing.lab import Lab
from covey.testing.lab_node import LabNode

IMAGE = "covey/busybox:demo"
REPOSITORY = Path(__file__).resolve().parents[2]
STACK_FILE = REPOSITORY / "compose-stacks" / "hello.yml"
COMMAND = str(Path(sys.executable).with_name("cluster"))
SLEEP = ["sleep", "1000"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("e2e"):
                item.add_marker(pytest.mark.skip(reason="the lab needs root: run scripts/test with sudo"))


@pytest.fixture(scope="session")
def archive() -> bytes:
    """A docker-archive of IMAGE."""
    return images.docker_archive(IMAGE, [images.busybox_rootfs_tar()], {"Cmd": ["sh"]})


def command(node: LabNode, program: str, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the ``cluster`` or a docker command against a node; fails unless it ends with ``code`` (None: any)."""
    path = COMMAND if program == "cluster" else program
    done = subprocess.run(
        [path, "-H", node.docker_host, *arguments], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
    )
    if code is not None and done.returncode != code:
        words = " ".join((program, *arguments))
        pytest.fail(f"{words} ended with {done.returncode}, not {code}: {done.stdout}{done.stderr}")
    return done


def service(
    name: str,
    args: Sequence[str] = SLEEP,
    *,
    replicas: int = 1,
    delay: float = 0.0,
    container: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A ServiceSpec; ``container`` and ``task`` are merged into ContainerSpec and TaskTemplate."""
    template: dict[str, Any] = {
        "ContainerSpec": {"Image": IMAGE, "Command": list(args), "StopGracePeriod": 10**9, "Init": True, **(container or {})},
        "RestartPolicy": {"Condition": "any", "Delay": int(delay * 1e9)},
        **(task or {}),
    }
    return {"Name": name, "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": replicas}}, **spec}


def create(lab: Lab, spec: dict[str, Any], seconds: float = 20.0) -> list[dict[str, Any]]:
    """Create a service and wait until its replicas run; its tasks."""
    name, wanted = spec["Name"], spec["Mode"]["Replicated"]["Replicas"]
    lab.manager.client.post("/services/create", json=spec)
    return lab.wait_until(
        lambda: tasks if len(tasks := lab.running(name)) == wanted else None, seconds, f"{wanted} of {name} run"
    )


def container_of(task: dict[str, Any]) -> tuple[str, int]:
    """Container id and pid (in its machine) of a running task."""
    status = task["Status"]["ContainerStatus"]
    return status["ContainerID"], status["PID"]


def machine_of(lab: Lab, task: dict[str, Any]) -> LabNode:
    """Where a task is."""
    return lab.node(lab.hostnames()[task["NodeID"]])


def containers(node: LabNode, everything: bool = True) -> set[str]:
    """Ids of the node's containers, as the node itself knows them."""
    with node.connect() as client:
        return {found["Id"] for found in client.get("/containers/json", {"all": everything})}


def empty(lab: Lab) -> None:
    """Remove all services and networks of the cluster; wait until nothing is left of them anywhere."""
    lab.heal()
    client = lab.manager.client
    for found in client.get("/services"):
        client.delete(f"/services/{found['ID']}")
    lab.wait_until(lambda: not lab.tasks(), 20, "no task is left")
    for node in lab:
        if node.alive:
            lab.wait_until(lambda node=node: not containers(node), 20, f"no container is left on {node.name}")
    for found in client.get("/networks"):
        if found["Scope"] == "swarm" and not found.get("Ingress"):
            client.delete(f"/networks/{found['Id']}")


@pytest.fixture(scope="module")
def lab_of_module(request: pytest.FixtureRequest, archive: bytes) -> Iterator[Lab]:
    """A cluster of the module's NODES, 3 unless given, with the timers of its PROFILE, "test" unless given, and its OPTIONS."""
    said = {name: getattr(request.module, name, given) for name, given in (("NODES", 3), ("PROFILE", "test"), ("OPTIONS", ()))}
    with Lab(nodes=said["NODES"], profile=said["PROFILE"], options=said["OPTIONS"]) as lab:
        lab.load_image(archive)
        yield lab


@pytest.fixture
def lab(lab_of_module: Lab) -> Iterator[Lab]:
    """The module's cluster, whole and empty before and after."""
    lab = lab_of_module
    yield lab
    for node in lab:
        if not node.alive:
            node.restart()
        elif not node.runs("daemon"):
            node.start_daemon()
            node.wait_ready()
        else:
            node.resume()
    lab.heal()
    everyone = set(lab.nodes)
    lab.wait_until(lambda: lab.ready() == everyone, 20, "every node is ready again")
    empty(lab)
