"""The ``cluster`` command at Debian's dockerd in Swarm mode: the same verbs, the same shapes of output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

IMAGE = "covey/busybox:demo"
STACK_FILE = "compose-stacks/hello.yml"
SERVICE = ("--restart-delay", "0s", "--stop-grace-period", "0s", IMAGE, "sh", "-c", "echo up; exec sleep 1000")
AGE = re.compile(r"(less than a second|about a minute|about an hour|\d+ \w+) ago", re.IGNORECASE)


@pytest.fixture
def made(cluster: Any, cluster_on_docker: Any) -> Iterator[None]:
    """The same service on both."""
    for one in (cluster, cluster_on_docker):
        one("service", "create", "--name", "same", "--replicas", "2", "--publish", "8103:80", *SERVICE)
    yield
    for one in (cluster, cluster_on_docker):
        one.run("service", "rm", "same")


def shape(text: str) -> list[str]:
    """A table's text without what must differ: ids, names of nodes, ages, widths."""
    text = AGE.sub("AGE", re.sub(r"\b[a-z0-9]{12,25}\b", "ID", text))
    text = re.sub(r"\b(m1|w1|dockerd)\b", "NODE", text)
    return [re.sub(r" {2,}", "  ", line).strip() for line in text.splitlines()]


@pytest.mark.usefixtures("made")
def test_both_daemons_services_look_the_same(cluster: Any, cluster_on_docker: Any) -> None:
    for arguments in (("service", "ls"), ("service", "ps", "same"), ("service", "inspect", "--pretty", "same")):
        assert shape(cluster_on_docker(*arguments)) == shape(cluster(*arguments))
    for arguments in (("service", "ls"), ("service", "ps", "same")):
        theirs, ours = (one.rows(*arguments, "--format", "json") for one in (cluster_on_docker, cluster))
        assert [row.keys() for row in theirs] == [row.keys() for row in ours]
    names = [name.split("@")[0].split(".")[:2] for name in cluster_on_docker("service", "logs", "same").splitlines()]
    assert sorted(names) == [["same", "1"], ["same", "2"]]


def test_a_service_is_made_scaled_updated_and_removed(cluster_on_docker: Any, dockerd: Any) -> None:
    said = cluster_on_docker("service", "create", "--name", "web", "--replicas", "2", *SERVICE)
    assert re.search(r"^web converged: 2/2 running", said, re.MULTILINE), said
    (row,) = cluster_on_docker.rows("service", "ls", "--format", "json")
    assert (row["Name"], row["Replicas"], row["Image"]) == ("web", "2/2", IMAGE)
    said = cluster_on_docker("service", "scale", "web=3")
    assert "web converged: 3/3 running" in said
    cluster_on_docker("service", "update", "--env-add", "A=b", "--update-parallelism", "0", "--update-monitor", "100ms", "web")
    (service,) = json.loads(cluster_on_docker("service", "inspect", "web"))
    assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=b"]
    tasks = cluster_on_docker.rows("service", "ps", "web", "--format", "json")
    assert sum(task["CurrentState"].startswith("Running") for task in tasks) == 3
    assert dockerd.running("web") == 3
    assert len(cluster_on_docker("ps", "--quiet").split()) >= 3
    cluster_on_docker("service", "rm", "web")
    assert cluster_on_docker("service", "ls", "--quiet") == ""


def test_an_image_that_is_missing_ends_the_creation_with_the_reason(cluster: Any, cluster_on_docker: Any) -> None:
    for one in (cluster, cluster_on_docker):
        done = one.run("service", "create", "--name", "lacking", "--restart-delay", "0s", "covey/no-such:1")
        assert done.returncode == 1
        assert re.search(r"lacking\.1 was rejected \d+ times: No such image: covey/no-such:1", done.stderr), done.stderr
        one("service", "rm", "lacking")


def test_the_demos_stack_is_deployed_listed_and_removed(cluster: Any, cluster_on_docker: Any, covey: Any, dockerd: Any) -> None:
    """On the one node of this swarm, a manager, the counter finds no place, as its constraint says."""
    for one, daemon in ((cluster, covey), (cluster_on_docker, dockerd)):
        said = one("stack", "deploy", "--detach", "--compose-file", STACK_FILE, "hello")
        assert {"Creating network hello_front", "Creating service hello_web", "Creating service hello_counter"} <= set(
            said.splitlines()
        )
        daemon.wait("3 replicas of hello_web run", lambda daemon=daemon: daemon.running("hello_web") == 3, 30)
        assert one.rows("stack", "ls", "--format", "json") == [{"Name": "hello", "Services": 2}]
        services = {row["Name"]: row for row in one.rows("stack", "services", "hello", "--format", "json")}
        assert (services["hello_web"]["Replicas"], services["hello_web"]["Ports"]) == ("3/3", "*:8080->80/tcp")
        tasks = one.rows("stack", "ps", "hello", "--format", "json")
        running = {task["Name"] for task in tasks if task["CurrentState"].startswith("Running")}
        assert running >= {"hello_web.1", "hello_web.2", "hello_web.3"}
    (counter,) = [task for task in tasks if task["Name"] == "hello_counter.1"]
    assert counter["CurrentState"].startswith("Pending")
    assert "no suitable node" in counter["Error"]
    for one in (cluster_on_docker, cluster):
        said = one("stack", "rm", "hello")
        assert set(said.splitlines()) == {
            "Removing service hello_web",
            "Removing service hello_counter",
            "Removing network hello_front",
        }
        assert one("stack", "ls", "--format", "json") == ""
        assert "hello_front" not in one("network", "ls")


def test_nodes_are_listed_and_changed(cluster: Any, cluster_on_docker: Any) -> None:
    theirs, ours = (one.rows("node", "ls", "--format", "json") for one in (cluster_on_docker, cluster))
    assert theirs[0].keys() == ours[0].keys()
    assert (theirs[0]["Hostname"], theirs[0]["ManagerStatus"], theirs[0]["Status"]) == ("dockerd", "Leader", "Ready")
    cluster_on_docker("node", "update", "--label-add", "disk=ssd", "--availability", "pause", "dockerd")
    (node,) = json.loads(cluster_on_docker("node", "inspect", "self"))
    assert (node["Spec"]["Labels"], node["Spec"]["Availability"]) == ({"disk": "ssd"}, "pause")
    cluster_on_docker("node", "update", "--label-rm", "disk", "--availability", "active", "self")


def test_images_info_and_version(cluster: Any, cluster_on_docker: Any, image_file: Path) -> None:
    for one in (cluster, cluster_on_docker):
        assert one("image", "load", "--input", str(image_file)) == f"Loaded image: {IMAGE}\n"
        assert one.rows("image", "ls", "--format", "json")[0]["Repository"] == "covey/busybox"

    def heads(text: str) -> list[str]:
        return [line.partition(":")[0] for line in text.splitlines()]

    assert heads(cluster_on_docker("info")) == heads(cluster("info"))
    assert heads(cluster_on_docker("version")) == heads(cluster("version"))
    assert re.search(r"ApiVersion: +1\.41$", cluster_on_docker("version"), re.MULTILINE)


def test_a_container_runs_and_its_exit_code_comes_back(cluster_on_docker: Any) -> None:
    assert cluster_on_docker("run", "--rm", IMAGE, "echo", "hi") == "hi\n"
    cluster_on_docker("run", "--rm", IMAGE, "sh", "-c", "exit 5", code=5)
    cluster_on_docker("run", "--detach", "--name", "c1", IMAGE, "sh", "-c", "echo out; exec sleep 1000")
    try:
        assert cluster_on_docker("exec", "c1", "echo", "in") == "in\n"
        assert cluster_on_docker("logs", "c1") == "out\n"
        cluster_on_docker("stop", "--timeout", "0", "c1")
    finally:
        cluster_on_docker("rm", "--force", "c1")
