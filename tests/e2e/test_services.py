"""Services from both commands on a real cluster: they converge, and every way of looking agrees."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from covey.errors import CoveyError
from covey.testing.lab import Lab
from covey.testing.lab_machine import LabError
from covey.testing.lab_node import LabNode

from .conftest import (
    IMAGE,
    REPOSITORY,
    SLEEP,
    STACK_FILE,
    command,
    container_of,
    containers,
    create,
    machine_of,
    service,
)

pytestmark = pytest.mark.e2e

#: The docker commands at hand, and the distribution's when it is installed.
DOCKERS = [path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if os.access(path, os.X_OK)]
PROGRAMS = ["cluster", *DOCKERS]


def listed(lab: Lab, program: str) -> dict[str, str]:
    """Service name → replicas, as ``service ls`` shows them."""
    lines = command(lab.manager, program, "service", "ls", "--format", "{{.Name}} {{.Replicas}}").stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


def task_ids(lab: Lab, program: str, name: str) -> set[str]:
    return set(command(lab.manager, program, "service", "ps", "-q", "--no-trunc", name).stdout.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_three_replicas_converge_on_three_nodes_and_everyone_agrees(lab: Lab, program: str) -> None:
    options = ("--name", "web", "--replicas", "3", "--label", "made=by hand", "--stop-grace-period", "500ms")
    done = command(lab.manager, program, "service", "create", *options, IMAGE, *SLEEP)
    tasks = lab.running("web")
    assert len(tasks) == 3, f"{program} said it had converged: {done.stdout}\n{lab.report()}"
    assert {machine_of(lab, task).name for task in tasks} == set(lab.nodes)
    for other in PROGRAMS:
        assert listed(lab, other) == {"web": "3/3"}
        assert task_ids(lab, other, "web") == {task["ID"] for task in tasks}
        command(lab.manager, other, "service", "inspect", "web")
    command(lab.manager, program, "service", "scale", "web=1")
    lab.wait_until(lambda: len(lab.running("web")) == 1, 10, "one replica is left")
    for other in PROGRAMS:
        assert listed(lab, other) == {"web": "1/1"}
    command(lab.manager, program, "service", "rm", "web")
    lab.wait_until(lambda: not lab.tasks("web") if "web" in listed(lab, "cluster") else True, 10, "web is gone")
    for node in lab:
        lab.wait_until(lambda node=node: not containers(node), 10, f"{node.name} is empty")


@pytest.mark.parametrize("program", PROGRAMS)
def test_nodes_and_info(lab: Lab, program: str) -> None:
    names = command(lab.manager, program, "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}}").stdout
    assert sorted(names.splitlines()) == [f"{name} Ready Active" for name in sorted(lab.nodes)]
    inspected = json.loads(command(lab.manager, program, "node", "inspect", "w1").stdout)[0]
    assert inspected["Description"]["Hostname"] == "w1"
    assert inspected["Status"]["Addr"] == lab.node("w1").address
    info = command(lab.manager, program, "info").stdout
    assert re.search(r"(?m)^ *(Swarm|Cluster): *active$", info), info
    assert re.search(r"(?m)^ *Is Manager: *true$", info), info
    worker = command(lab.node("w1"), program, "info").stdout
    assert re.search(r"(?m)^ *Is Manager: *false$", worker), worker
    refused = command(lab.node("w1"), program, "node", "ls", code=1)
    assert "This node is not a swarm manager" in refused.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_stack_of_the_demo(lab: Lab, program: str) -> None:
    words = ("stack", "deploy", "-c", str(STACK_FILE), "hello")
    command(lab.manager, program, *words)
    lab.wait_until(lambda: len(lab.running("hello_web")) == 3, 20, "three web replicas run")
    lab.wait_until(lambda: len(lab.running("hello_counter")) == 1, 20, "the counter runs")
    for other in PROGRAMS:
        assert listed(lab, other) == {"hello_web": "3/3", "hello_counter": "1/1"}
        assert command(lab.manager, other, "stack", "ls", "--format", "{{.Name}} {{.Services}}").stdout.split() == [
            "hello",
            "2",
        ]
        rows = command(lab.manager, other, "stack", "ps", "-q", "--no-trunc", "hello").stdout.split()
        assert set(rows) == {task["ID"] for task in lab.tasks()}
        shown = command(lab.manager, other, "stack", "services", "--format", "{{.Name}}", "hello").stdout.split()
        assert sorted(shown) == ["hello_counter", "hello_web"]
    for task in lab.running("hello_web"):
        node = machine_of(lab, task)
        page = lab.fetch(f"http://{node.address}:8080/")
        assert page.text.strip() == f"hello from {container_of(task)[0][:12]}"
    again = command(lab.manager, program, *words)
    assert "error" not in again.stderr.lower()
    assert len(lab.tasks("hello_web")) == 3, "deploying the same stack again replaced tasks"
    command(lab.manager, program, "stack", "rm", "hello")
    lab.wait_until(lambda: not lab.tasks(), 15, "no task is left")
    assert lab.manager.client.get("/services") == []
    for node in lab:
        lab.wait_until(lambda node=node: not networks(node, "hello"), 10, f"its network is gone from {node.name}")
        lab.wait_until(lambda node=node: not containers(node), 15, f"no container is left on {node.name}")


def networks(node: LabNode, prefix: str) -> list[str]:
    with node.connect() as client:
        return [found["Name"] for found in client.get("/networks") if found["Name"].startswith(prefix)]


TESTCONTAINERS = """
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs
command = ["sh", "-c", "mkdir -p /w; echo page > /w/index.html; echo ready; exec httpd -f -p 80 -h /w"]
with DockerContainer("%s").with_command(command).with_exposed_ports(80) as container:
    wait_for_logs(container, "ready", timeout=10)
    port = container.get_exposed_port(80)
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read() == b"page\\n"
    assert container.exec(["echo", "inside"]).output == b"inside\\n"
    assert b"ready" in container.get_logs()[0]
print("done")
"""


def test_testcontainers_on_a_node_of_the_cluster(lab: Lab) -> None:
    node = lab.node("w1")
    environment = {
        **os.environ,
        "DOCKER_HOST": node.docker_host,
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
    }
    argv = node.machine.in_network(sys.executable, "-P", "-c", TESTCONTAINERS % IMAGE)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
    assert not containers(node), "testcontainers removes its container"


def test_a_published_port_answers_where_a_replica_runs(lab: Lab) -> None:
    page = ["sh", "-c", "mkdir -p /w; hostname > /w/index.html; exec httpd -f -p 80 -h /w"]
    spec = service("web", page, replicas=2, EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8085}]})
    tasks = create(lab, spec)
    for task in tasks:
        node, name = machine_of(lab, task), container_of(task)[0][:12]
        urls = [f"http://{node.address}:8085/", "http://127.0.0.1:8085/", "http://[::1]:8085/"]
        for url in urls:
            answer = lab.wait_until(lambda node=node, url=url: node.fetch(url), 5, f"{url} answers on {node.name}")
            assert (answer.status, answer.text.strip()) == (200, name), url
        assert lab.fetch(urls[0]).text.strip() == name
    without = next(node for node in lab if node.name not in {machine_of(lab, task).name for task in tasks})
    with pytest.raises(LabError, match=r"refused|timed out"):
        lab.fetch(f"http://{without.address}:8085/")


def test_a_volume_survives_the_replacement_of_its_task(lab: Lab) -> None:
    script = ["sh", "-c", "echo $(hostname) >> /data/lives; exec sleep 1000"]
    mount = {"Type": "volume", "Source": "kept", "Target": "/data"}
    placement = {"Placement": {"Constraints": ["node.hostname == w1"]}}
    (first,) = create(lab, service("keeper", script, container={"Mounts": [mount]}, task=placement))
    node = lab.node("w1")
    node.machine.signal(container_of(first)[1], signal.SIGKILL)
    second = lab.wait_until(
        lambda: next((task for task in lab.running("keeper") if task["ID"] != first["ID"]), None), 10, "a successor runs"
    )
    lives = command(node, "cluster", "exec", container_of(second)[0], "cat", "/data/lives").stdout.split()
    assert lives == [container_of(first)[0][:12], container_of(second)[0][:12]]
    lab.manager.client.delete("/services/keeper")
    lab.wait_until(lambda: not containers(node), 10, "its containers are gone")
    volumes = {found["Name"] for found in node.client.get("/volumes")["Volumes"]}
    assert "kept" in volumes
    node.client.delete("/volumes/kept")


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``spec`` with the value at a dotted path replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    *folders, last = path.split(".")
    place = copy
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return copy


PORTS = {"Ports": [{"TargetPort": 80, "PublishedPort": 8090}]}
IMPOSSIBLE: list[tuple[str, Any, int, str]] = [
    ("Name", "not a name", 400, "name"),
    ("Name", "taken", 409, "taken"),
    ("TaskTemplate.ContainerSpec.Image", "", 400, "image"),
    ("TaskTemplate.ContainerSpec.Image", "UPPER CASE", 400, "UPPER CASE"),
    ("TaskTemplate.Resources", {"Reservations": {"NanoCPUs": -1}}, 400, "CPU"),
    ("TaskTemplate.Resources", {"Limits": {"MemoryBytes": 1024}}, 400, "memory"),
    ("TaskTemplate.Placement", {"Constraints": ["node.colour == red"]}, 400, "colour"),
    ("TaskTemplate.RestartPolicy", {"Condition": "sometimes"}, 400, "sometimes"),
    ("Mode", {"Replicated": {"Replicas": -1}}, 400, "eplicas"),
    ("EndpointSpec", PORTS, 400, "8090"),
    ("TaskTemplate.Networks", [{"Target": "nowhere"}], 404, "nowhere"),
]


@pytest.fixture
def taken(lab: Lab) -> Lab:
    lab.manager.client.post("/services/create", json=service("taken", replicas=0, EndpointSpec=PORTS))
    return lab


def test_a_spec_that_cannot_be_is_refused_with_its_field(taken: Lab) -> None:
    for path, value, status, word in IMPOSSIBLE:
        spec = changed(service("fresh"), path, value)
        with pytest.raises(CoveyError) as refused:
            taken.manager.client.post("/services/create", json=spec)
        shown = f"{path} = {value!r}: {refused.value.status} {refused.value.message}"
        assert refused.value.status == status, shown
        assert word in refused.value.message, shown
    assert [found["Spec"]["Name"] for found in taken.manager.client.get("/services")] == ["taken"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_commands_show_the_refusal(lab: Lab, program: str) -> None:
    refused = command(lab.manager, program, "service", "create", "--constraint", "node.colour==red", IMAGE, code=1)
    assert "colour" in refused.stderr
    assert lab.manager.client.get("/services") == []


def test_a_missing_image_rejects_the_task_with_that_reason(lab: Lab) -> None:
    spec = service("lost", container={"Image": "covey/nowhere:1"}, delay=5)
    lab.manager.client.post("/services/create", json=spec)
    rejected = lab.wait_until(
        lambda: next((task for task in lab.tasks("lost") if task["Status"]["State"] == "rejected"), None), 10, "it is rejected"
    )
    assert "No such image: covey/nowhere:1" in rejected["Status"]["Err"]
    shown = command(lab.manager, "cluster", "service", "ps", "--no-trunc", "lost").stdout
    assert "No such image: covey/nowhere:1" in shown


def test_a_constraint_nobody_meets_leaves_the_task_pending_and_says_why(lab: Lab) -> None:
    lab.manager.client.post(
        "/services/create", json=service("nowhere", task={"Placement": {"Constraints": ["node.hostname == w9"]}})
    )
    pending = lab.wait_until(
        lambda: next((task for task in lab.tasks("nowhere") if task["Status"].get("Err")), None), 10, "it says why"
    )
    assert pending["Status"]["State"] == "pending"
    assert "constraints" in pending["Status"]["Err"]
    assert str(len(lab.nodes)) in pending["Status"]["Err"]


def test_exec_and_logs_of_a_task_elsewhere_from_the_manager(lab: Lab) -> None:
    placement = {"Placement": {"Constraints": ["node.hostname == w2"]}}
    (task,) = create(lab, service("far", ["sh", "-c", "echo i am here; exec sleep 1000"], task=placement))
    container = container_of(task)[0]
    for program in PROGRAMS:
        assert command(lab.manager, program, "exec", container, "hostname").stdout.strip() == container[:12]
        lines = lab.wait_until(
            lambda program=program: command(lab.manager, program, "service", "logs", "--raw", "far").stdout.split("\n"),
            5,
            "the log comes",
        )
        assert lines[0] == "i am here"


def test_the_commands_that_are_tried_are_there() -> None:
    assert Path(REPOSITORY, "compose-stacks").is_dir()
    assert DOCKERS or shutil.which("docker") is None
