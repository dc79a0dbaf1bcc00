"""The unmodified docker commands, the one at hand and Debian's, at Covey; and that ``cluster`` says the same of the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

IMAGE = "covey/busybox:demo"
STACK_FILE = "compose-stacks/hello.yml"
SLEEP = ("sleep", "1000")
JSON = ("--format", "{{json .}}")


def same(theirs: Iterable[Mapping[str, Any]], ours: Iterable[Mapping[str, Any]], *keys: str) -> None:
    """Both listings hold the same rows, by these columns. Ages move on, and docker wrote IPv6 addresses without brackets."""

    def plain(key: str, value: Any) -> str:
        return str(value).split()[0] if key == "CurrentState" else str(value).replace(":::", "[::]:")

    def table(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
        return sorted([plain(key, row[key]) for key in keys] for row in rows)

    assert table(theirs) == table(ours)


def said(thing: Any) -> Any:
    """An object without its empty parts: docker's command leaves some out."""
    if isinstance(thing, dict):
        return {key: said(value) for key, value in thing.items() if value not in (None, "", [], {})}
    return [said(one) for one in thing] if isinstance(thing, list) else thing


TASK_COLUMNS = ("ID", "Name", "Image", "Node", "DesiredState", "CurrentState", "Error", "Ports")
SERVICE_COLUMNS = ("ID", "Name", "Mode", "Replicas", "Image", "Ports")


def test_a_service_is_made_scaled_updated_and_removed(docker: Any, cluster: Any, covey: Any, lab: Any) -> None:
    serve = "mkdir -p /www; hostname > /www/index.html; echo serving; exec httpd -f -p 80 -h /www"
    grace = ("--stop-grace-period", "0s")
    options = ("--name", "web", "--replicas", "2", "--publish", "8101:80", "--restart-delay", "0s", *grace)
    printed = docker("service", "create", "--detach=false", *options, IMAGE, "sh", "-c", serve)
    assert "converged" in printed
    assert lab.manager.fetch("http://127.0.0.1:8101/").status == 200

    def agree() -> None:
        same(docker.rows("service", "ls", *JSON), cluster.rows("service", "ls", "--format", "json"), *SERVICE_COLUMNS)
        theirs, ours = (one.rows("service", "ps", "web", *how) for one, how in ((docker, JSON), (cluster, JSON)))
        same(theirs, ours, *TASK_COLUMNS)

    agree()
    (row,) = docker.rows("service", "ls", *JSON)
    assert (row["Name"], row["Replicas"], row["Ports"]) == ("web", "2/2", "*:8101->80/tcp")
    assert {task["Node"] for task in docker.rows("service", "ps", "web", *JSON)} == {"m1", "w1"}
    assert said(json.loads(docker("service", "inspect", "web"))) == said(json.loads(cluster("service", "inspect", "web")))
    assert "Replicas:\t2" in docker("service", "inspect", "--pretty", "web")

    logs = docker("service", "logs", "--raw", "web")
    assert logs.split() == ["serving", "serving"]
    assert {line.split("|")[1].strip() for line in docker("service", "logs", "web").splitlines()} == {"serving"}

    assert "converged" in docker("service", "scale", "--detach=false", "web=3")
    agree()

    docker("service", "update", "--detach=false", "--env-add", "A=b", "web")
    agree()
    history = docker.rows("service", "ps", "web", *JSON)
    assert sum(task["CurrentState"].startswith("Running") for task in history) == 3
    assert any(task["CurrentState"].startswith("Shutdown") for task in history)
    assert json.loads(docker("service", "inspect", "web"))[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=b"]

    assert docker("service", "rm", "web").split() == ["web"]
    assert docker("service", "ls", "--quiet") == ""
    covey.wait(
        "the tasks of web are gone", lambda: not docker("ps", "-aq", "--filter", "label=com.docker.swarm.service.name=web")
    )


def test_a_port_is_free_as_soon_as_its_service_is_removed(docker: Any, covey: Any, lab: Any) -> None:
    """The removed service's containers still have their grace; the next service's do not fail for it."""
    lingers = "echo $NAME > /www/index.html; trap '' TERM; httpd -p 80 -h /www; sleep 2 & wait; sleep 1000"

    def create(name: str) -> None:
        options = ("--detach", "--replicas", "2", "--publish", "8104:80", "--stop-grace-period", "3s", "--env", f"NAME={name}")
        docker("service", "create", "--name", name, *options, IMAGE, "sh", "-c", lingers)
        covey.wait(f"{name} runs", lambda: covey.running(name) == 2)

    create("before")
    docker("service", "rm", "before")
    create("after")
    try:
        covey.wait("the port is the new service's", lambda: lab.manager.fetch("http://127.0.0.1:8104/").text == "after\n")
        assert len(docker.rows("service", "ps", "after", *JSON)) == 2
    finally:
        docker("service", "rm", "after")
    covey.wait("no container is left", lambda: not docker("ps", "-aq"))


def test_the_demos_stack_is_deployed_listed_and_removed(docker: Any, cluster: Any, covey: Any, lab: Any) -> None:
    docker("stack", "deploy", "-c", STACK_FILE, "hello")
    covey.wait("3 replicas of hello_web run", lambda: covey.running("hello_web") == 3)
    covey.wait("hello_counter runs", lambda: covey.running("hello_counter") == 1)
    assert lab.manager.fetch("http://127.0.0.1:8080/").text.startswith("hello from")

    same(docker.rows("stack", "ls", *JSON), cluster.rows("stack", "ls", "--format", "json"), "Name", "Services")
    for verb, columns in (("services", SERVICE_COLUMNS), ("ps", TASK_COLUMNS)):
        theirs, ours = docker.rows("stack", verb, "hello", *JSON), cluster.rows("stack", verb, "hello", "--format", "json")
        assert len(ours) == {"services": 2, "ps": 4}[verb]
        same(theirs, ours, *columns)
    assert "hello_front" in docker("network", "ls", "--format", "{{.Name}}").split()

    docker("stack", "rm", "hello")
    covey.wait("nothing of the stack is left", lambda: "hello" not in docker("network", "ls") + docker("service", "ls"))
    covey.wait("its containers are gone", lambda: not docker("ps", "-aq", "--filter", "name=hello_"))
    docker("volume", "rm", "--force", "hello_counted")


def test_nodes_info_and_version(docker: Any, cluster: Any) -> None:
    theirs, ours = docker.rows("node", "ls", *JSON), cluster.rows("node", "ls", "--format", "json")
    same(theirs, ours, "ID", "Self", "Hostname", "Status", "Availability", "ManagerStatus", "EngineVersion")
    assert {node["Hostname"] for node in theirs} == {"m1", "w1"}
    assert said(json.loads(docker("node", "inspect", "w1"))) == said(json.loads(cluster("node", "inspect", "w1")))
    assert re.search(r"Hostname:\s+w1", docker("node", "inspect", "--pretty", "w1"))

    docker("node", "update", "--label-add", "disk=ssd", "--availability", "drain", "w1")
    (worker,) = json.loads(cluster("node", "inspect", "w1"))
    assert (worker["Spec"]["Labels"], worker["Spec"]["Availability"]) == ({"disk": "ssd"}, "drain")
    cluster("node", "update", "--label-rm", "disk", "--availability", "active", "w1")
    (worker,) = json.loads(docker("node", "inspect", "w1"))
    assert (worker["Spec"]["Labels"], worker["Spec"]["Availability"]) == ({}, "active")

    info = json.loads(docker("info", *JSON))
    assert (info["Swarm"]["LocalNodeState"], info["Swarm"]["Nodes"], info["Name"]) == ("active", 2, "m1")
    server = json.loads(docker("version", *JSON))["Server"]
    assert (server["ApiVersion"], server["MinAPIVersion"]) == ("1.52", "1.24")


def test_the_life_of_a_container(docker: Any, cluster: Any, tmp_path: Path) -> None:
    assert docker("run", "--rm", IMAGE, "echo", "hi") == "hi\n"
    assert docker("run", "--rm", "-i", IMAGE, "cat", stdin="in and out\n") == "in and out\n"
    docker("run", "--rm", IMAGE, "sh", "-c", "exit 5", code=5)
    docker("run", "--rm", IMAGE, "no-such-program", code=127)
    docker("run", "--rm", IMAGE, "/etc", code=126)
    refused = docker.run("run", "--rm", "no-such-image:1", "true")
    assert refused.returncode == 125
    assert "no-such-image:1" in refused.stderr

    waits = 'trap "exit 3" TERM; echo out; echo err >&2; while :; do sleep 0.1; done'
    try:
        container = docker("run", "-d", "--name", "c1", "-p", "8102:80", "-e", "X=1", IMAGE, "sh", "-c", waits).strip()
        assert docker("exec", "c1", "sh", "-c", "echo $X") == "1\n"
        docker("exec", container[:12], "sh", "-c", "exit 7", code=7)
        assert docker("exec", "-i", "c1", "cat", stdin="to the exec\n") == "to the exec\n"
        same(docker.rows("ps", *JSON), cluster.rows("ps", "--format", "json"), "ID", "Image", "Names", "Ports")
        assert docker("logs", "c1") == cluster("logs", "c1") == "out\n"
        assert docker.run("logs", "c1").stderr == "err\n"
        assert json.loads(docker("inspect", "c1"))[0]["Id"] == container
        assert "0.0.0.0:8102" in docker("port", "c1", "80/tcp").split()

        (tmp_path / "file").write_text("data\n")
        docker("cp", str(tmp_path / "file"), "c1:/tmp/file")
        assert docker("exec", "c1", "cat", "/tmp/file") == "data\n"
        docker("cp", "c1:/tmp/file", str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "data\n"

        docker("pause", "c1")
        docker("unpause", "c1")
        docker("rename", "c1", "c2")
        refused = docker.run("rm", "c2")
        assert refused.returncode == 1
        assert "container is running" in refused.stderr
        docker("stop", "-t", "5", "c2")
        assert docker("wait", "c2") == "3\n"
        docker("start", "c2")
        docker("kill", "c2")
        assert docker("inspect", "-f", "{{.State.ExitCode}}", "c2") == "137\n"
    finally:
        docker.run("rm", "-f", "c1", "c2")
    assert docker("ps", "-aq") == ""


def test_networks_and_volumes(docker: Any, cluster: Any) -> None:
    docker("network", "create", "--subnet", "10.77.0.0/24", "n1")
    docker("volume", "create", "--label", "a=b", "v1")
    try:
        same(
            docker.rows("network", "ls", *JSON),
            cluster.rows("network", "ls", "--format", "json"),
            "ID",
            "Name",
            "Driver",
            "Scope",
        )
        address = docker(
            "run", "--rm", "--network", "n1", "-v", "v1:/data", IMAGE, "sh", "-c", "echo kept > /data/f; hostname -i"
        )
        assert address.startswith("10.77.0.")
        assert docker("run", "--rm", "-v", "v1:/data:ro", IMAGE, "cat", "/data/f") == "kept\n"
        assert json.loads(docker("volume", "inspect", "v1")) == json.loads(cluster("volume", "inspect", "v1"))
        same(docker.rows("volume", "ls", *JSON), cluster.rows("volume", "ls", "--format", "json"), "Driver", "Name")
    finally:
        docker("volume", "rm", "v1")
        docker("network", "rm", "n1")


@pytest.mark.parametrize("kind", ["secret", "config"])
def test_secrets_and_configs(docker: Any, covey: Any, kind: str) -> None:
    docker(kind, "create", "k1", "-", stdin="the content")
    try:
        assert [row["Name"] for row in docker.rows(kind, "ls", *JSON)] == ["k1"]
        (shown,) = json.loads(docker(kind, "inspect", "k1"))
        assert ("Data" in shown["Spec"]) == (kind == "config")
        read = "cat /run/secrets/k1" if kind == "secret" else "cat /k1"
        docker(
            *("service", "create", "--detach", "--name", "reader", f"--{kind}", "k1", "--stop-grace-period", "0s", IMAGE),
            *("sh", "-c", f"{read}; echo; exec sleep 1000"),
        )
        covey.wait("the reader runs", lambda: covey.running("reader") == 1)
        covey.wait("it has read", lambda: docker("service", "logs", "--raw", "reader").strip() == "the content")
        refused = docker.run(kind, "rm", "k1")
        assert refused.returncode == 1
        assert "in use" in refused.stderr
    finally:
        docker.run("service", "rm", "reader")
        covey.wait(f"the {kind} can go", lambda: docker.run(kind, "rm", "k1").returncode == 0)


def test_events(docker: Any) -> None:
    container = docker("run", "-d", IMAGE, "true").strip()
    docker("wait", container)
    docker("rm", container)
    # The command turns durations into whole seconds: one from now is past what has just happened.
    window = ("--since", "30s", "--until=-1s", "--filter", f"container={container}")
    seen = docker("events", *window, "--format", "{{.Status}}").split()
    assert [word for word in seen if word != "attach"] == ["create", "start", "die", "destroy"]


REFUSALS = [
    (("service", "create", "--name", "a b", IMAGE, *SLEEP), "name must be valid"),
    (("service", "create", "--constraint", "node.colour==red", IMAGE, *SLEEP), "node.colour"),
    (("service", "create", "--network", "no-such-network", IMAGE, *SLEEP), "no-such-network"),
    (("service", "create", "--limit-cpu", "-1", IMAGE, *SLEEP), "NanoCPUs"),
    (("service", "inspect", "no-such-service"), "no-such-service"),
    (("service", "rm", "no-such-service"), "no-such-service"),
    (("service", "scale", "no-such-service=3"), "no-such-service"),
    (("service", "ps", "no-such-service"), "no-such-service"),
    (("node", "inspect", "no-such-node"), "no-such-node"),
    (("network", "rm", "bridge"), "pre-defined network"),
    (("exec", "no-such-container", "true"), "no-such-container"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[" ".join(row[0][:4]) for row in REFUSALS])
def test_a_refusal_is_exit_code_1_and_names_what_is_wrong(docker: Any, arguments: tuple[str, ...], words: str) -> None:
    done = docker.run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert docker("service", "ls", "--quiet") == ""


def test_an_image_the_nodes_lack_rejects_the_tasks_and_service_ps_says_so(docker: Any, cluster: Any, covey: Any) -> None:
    docker("service", "create", "--detach", "--name", "lacking", "--restart-condition", "none", "covey/no-such:1")
    try:
        covey.wait("the task is rejected", lambda: "Rejected" in docker("service", "ps", "lacking"))
        (theirs,) = docker.rows("service", "ps", "--no-trunc", "lacking", *JSON)
        assert theirs["CurrentState"].startswith("Rejected")
        assert "No such image: covey/no-such:1" in theirs["Error"]
        (ours,) = cluster.rows("service", "ps", "--no-trunc", "lacking", "--format", "json")
        same([theirs], [ours], *TASK_COLUMNS)
    finally:
        docker("service", "rm", "lacking")
