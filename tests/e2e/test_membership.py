"""A cluster made, joined and left by hand, with both commands; what a machine lacks is one clear line."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator

import pytest

from covey.errors import CoveyError
from covey.testing.lab import Lab
from covey.testing.lab_node import LabNode

from .conftest import command, containers, create, service

pytestmark = pytest.mark.e2e

DOCKER = next((path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if os.access(path, os.X_OK)), "")


@pytest.fixture(scope="module")
def machines(archive: bytes) -> Iterator[Lab]:
    """Two machines with daemons that are in no cluster."""
    with Lab(nodes=2, cluster=False) as lab:
        lab.load_image(archive)
        yield lab


@pytest.fixture
def pair(machines: Lab) -> Iterator[Lab]:
    """The same, in no cluster before and after."""
    yield machines
    for node in machines:
        if node.client.get("/info")["Swarm"]["LocalNodeState"] != "inactive":
            node.client.post("/swarm/leave", {"force": True})


def state(node: LabNode) -> str:
    return str(node.client.get("/info")["Swarm"]["LocalNodeState"])


def test_a_node_in_no_cluster_says_so(pair: Lab) -> None:
    node = pair.node("m1")
    assert state(node) == "inactive"
    for program in filter(None, ("cluster", DOCKER)):
        refused = command(node, program, "service", "ls", code=1)
        assert "This node is not a swarm manager" in refused.stderr
    assert "not part of a swarm" in command(node, "cluster", "leave", code=1).stderr


@pytest.mark.parametrize("program", ["cluster", "docker"])
def test_init_join_leave(pair: Lab, program: str) -> None:
    manager, worker = pair.node("m1"), pair.node("w1")
    if program == "docker" and not DOCKER:
        pytest.skip("no docker command on this machine")
    noun = [] if program == "cluster" else ["swarm"]
    path = "cluster" if program == "cluster" else DOCKER
    made = command(manager, path, *noun, "init", "--advertise-addr", manager.address).stdout
    join = next(line for line in made.splitlines() if " join --token SWMTKN-1-" in line)
    assert state(manager) == "active"
    again = command(manager, path, *noun, "init", code=1)
    assert "This node is already part of a swarm" in again.stderr
    words = shlex.split(join)
    command(worker, path, *noun, "join", *words[words.index("--token") :])
    pair.wait_until(lambda: pair.ready() == {"m1", "w1"}, 15, "both are ready")
    create(pair, service("web", replicas=2))
    assert containers(worker)
    command(worker, path, *noun, "leave")
    assert state(worker) == "inactive"
    assert not containers(worker), "who leaves takes the cluster's containers away"
    pair.wait_until(lambda: pair.ready() == {"m1"}, 15, "the manager sees it go")
    pair.wait_until(lambda: len(pair.running("web")) == 2, 15, "its task runs elsewhere")
    node_id = next(node for node, name in pair.hostnames().items() if name == "w1")
    command(manager, path, "node", "rm", node_id)
    assert set(pair.hostnames().values()) == {"m1"}
    refused = command(manager, path, *noun, "leave", code=1)
    assert "--force" in refused.stderr
    command(manager, path, *noun, "leave", "--force")
    assert state(manager) == "inactive"
    assert not containers(manager)
    pair.wait_until(lambda: not manager.runs("etcd") and not manager.runs("manager"), 10, "its processes end")
    assert not (manager.directory / "data" / "etcd").exists()


def test_a_wrong_token_and_a_wrong_address_are_refused(pair: Lab) -> None:
    manager, worker = pair.node("m1"), pair.node("w1")
    command(manager, "cluster", "init", "--advertise-addr", manager.address)
    token = command(manager, "cluster", "join-token", "-q", "worker").stdout.strip()
    wrong = token[:-3] + ("aaa" if not token.endswith("aaa") else "bbb")
    refused = command(worker, "cluster", "join", "--token", wrong, manager.address, code=1)
    assert "token" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    nobody = command(worker, "cluster", "join", "--token", token, "198.51.100.99", code=1)
    assert "198.51.100.99" in nobody.stderr
    assert state(worker) == "inactive"
    command(manager, "cluster", "join-token", "--rotate", "worker")
    old = command(worker, "cluster", "join", "--token", token, manager.address, code=1)
    assert "token" in old.stderr


def test_a_node_without_etcd_says_in_one_line_what_is_missing() -> None:
    with Lab(nodes=1, cluster=False, options=("--etcd=/no/such/etcd",)) as lab:
        node = lab.node("m1")
        with pytest.raises(CoveyError) as refused:
            node.client.post("/swarm/init", json={"AdvertiseAddr": node.address, "ListenAddr": "0.0.0.0:2377"})
        assert refused.value.status == 503
        assert "/no/such/etcd" in refused.value.message
        assert "\n" not in refused.value.message.strip()
        assert state(node) == "inactive"
        assert json.dumps(node.client.get("/containers/json")) == "[]", "the node itself works"
