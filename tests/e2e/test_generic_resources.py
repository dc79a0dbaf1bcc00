"""Generic resources from a node's command line to a container's environment, by the docker command and ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import COMMAND, IMAGE, command, container_of, machine_of

pytestmark = pytest.mark.e2e

NODES = 2
KINDS = ("gpu=UUID-a", "gpu=UUID-b", "ssd=3")
OPTIONS = tuple(f"--node-generic-resource={kind}" for kind in KINDS)
BRISK = ("--init", "--stop-grace-period", "1s", "--update-monitor", "100ms")
SHOWN = [
    {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}},
    {"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID-a"}},
    {"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID-b"}},
]


def running(lab: Lab, name: str, count: int) -> list[dict[str, Any]]:
    return lab.wait_until(lambda: tasks if len(tasks := lab.running(name)) == count else None, 20, f"{count} of {name} run")


def told(lab: Lab, task: dict[str, Any]) -> dict[str, str]:
    """Name → value of what the task's process has in its environment of this kind."""
    environ = machine_of(lab, task).run("cat", f"/proc/{container_of(task)[1]}/environ").stdout
    pairs = (entry.partition("=") for entry in environ.split("\0"))
    return {name: value for name, _, value in pairs if name.startswith("DOCKER_RESOURCE_")}


def test_nodes_show_what_they_were_told(lab: Lab) -> None:
    for name in lab.nodes:
        for program in ("docker", "cluster"):
            said = command(lab.manager, program, "node", "inspect", name, "--format", "{{json .Description.Resources}}").stdout
            assert json.loads(said)["GenericResources"] == SHOWN, program
    assert lab.manager.client.get("/info")["GenericResources"] == SHOWN


def test_every_task_has_a_name_of_its_own_and_sees_it(lab: Lab) -> None:
    options = ("--detach", *BRISK, "--replicas", "4", "--generic-resource", "gpu=1")
    command(lab.manager, "docker", "service", "create", "--name", "train", *options, IMAGE, "sleep", "1000")
    tasks = running(lab, "train", 4)
    seen = {(machine_of(lab, task).name, told(lab, task)["DOCKER_RESOURCE_GPU"]) for task in tasks}
    assert seen == {(name, value) for name in lab.nodes for value in ("UUID-a", "UUID-b")}
    for task in tasks:
        (given,) = task["AssignedGenericResources"]
        assert given["NamedResourceSpec"] == {"Kind": "gpu", "Value": told(lab, task)["DOCKER_RESOURCE_GPU"]}
    command(lab.manager, "docker", "service", "scale", "--detach", "train=5")
    ps = ("docker", "service", "ps", "--no-trunc", "--format", "{{.Error}}", "train")
    lab.wait_until(
        lambda: "insufficient resources on 2 nodes" in command(lab.manager, *ps).stdout, 15, "the fifth waits: none is left"
    )
    assert len(lab.running("train")) == 4


def test_what_is_counted_is_told_by_its_number_and_comes_back(lab: Lab) -> None:
    options = (*BRISK, "--replicas", "2", "--generic-resource", "ssd=2", "--generic-resource", "gpu=2")
    command(lab.manager, "cluster", "service", "create", "--name", "db", *options, IMAGE, "sleep", "1000")
    for task in running(lab, "db", 2):
        assert told(lab, task) == {"DOCKER_RESOURCE_SSD": "2", "DOCKER_RESOURCE_GPU": "UUID-a,UUID-b"}
    command(
        lab.manager, "cluster", "service", "update", "--generic-resource-rm", "gpu", "--generic-resource-add", "ssd=3", "db"
    )
    lab.wait_until(
        lambda: len(now := lab.running("db")) == 2 and all(told(lab, task) == {"DOCKER_RESOURCE_SSD": "3"} for task in now),
        20,
        "both have all of the other kind",
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["GPU"], "--node-generic-resource 'GPU' is not of the form KIND=NAME or KIND=NUMBER"),
        (["gpu=a", "gpu=2"], "--node-generic-resource 'gpu=2': of a kind a node has one number, or names"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, wrong: list[str], words: str) -> None:
    flags = [f"--node-generic-resource={term}" for term in wrong]
    roots = ["--data-root", str(tmp_path / "data"), "--exec-root", str(tmp_path / "run"), "-H", f"unix://{tmp_path}/api.sock"]
    done = subprocess.run([COMMAND, "daemon", *roots, *flags], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cluster daemon: {words}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing was started"
