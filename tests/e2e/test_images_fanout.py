"""Images across a cluster that has no registry: one node has the image, and every node runs it in the end.

Nodes count what they send and receive of each blob, the manager what it carries: ``GET /covey/blobs``, ``/covey/statistics``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images
from covey.testing.lab import Lab
from covey.testing.lab_node import LabNode

from .conftest import SLEEP, command, empty, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

MIB = 1 << 20
#: So slow that a test can look while a blob of some MiB is on its way.
RATE = 6 * MIB


def archive(name: str, *sizes: int) -> bytes:
    """A docker-archive: busybox and a layer of noise of each size."""
    noise = [images.tar([(f"noise{number}", 0o644, os.urandom(size))]) for number, size in enumerate(sizes)]
    return images.docker_archive(name, [images.busybox_rootfs_tar(), *noise], {"Cmd": ["sh"]})


def traffic(node: LabNode) -> dict[str, Any]:
    with node.connect() as client:
        found: dict[str, Any] = client.get("/covey/blobs")
        return found


def counted(node: LabNode, direction: str, what: str = "Blobs") -> dict[str, int]:
    """Digest → whole blobs (or bytes) that went that way."""
    return {digest: count[what] for digest, count in traffic(node)[direction]["ByDigest"].items()}


def relayed(lab: Lab) -> dict[str, int]:
    """What the manager has carried."""
    found: dict[str, int] = lab.manager.client.get("/covey/statistics")["relay"]
    return found


def has(node: LabNode, name: str) -> bool:
    with node.connect() as client:
        return any(name in (image["RepoTags"] or ()) for image in client.get("/images/json"))


def spec(name: str, image: str, replicas: int) -> dict[str, Any]:
    return service(name, SLEEP, replicas=replicas, container={"Image": image})


def run(lab: Lab, name: str, image: str, replicas: int, seconds: float = 60.0) -> list[dict[str, Any]]:
    lab.manager.client.post("/services/create", json=spec(name, image, replicas))
    return lab.wait_until(
        lambda: tasks if len(tasks := lab.running(name)) == replicas else None, seconds, f"{replicas} of {name} run"
    )


def second_transfer(source: LabNode) -> str | None:
    """The 12 MiB blob, once one node has it whole and the source is well into sending it to a second."""
    sent = traffic(source)["Sent"]["ByDigest"]
    return next((digest for digest, count in sent.items() if count["Blobs"] == 1 and count["Bytes"] > 15 * MIB), None)


def received_once(nodes: list[LabNode], before: dict[str, dict[str, int]]) -> set[str]:
    """The blobs that came since; each came once to each node."""
    seen: set[str] = set()
    for node in nodes:
        new = {digest: count - before[node.name].get(digest, 0) for digest, count in counted(node, "Received").items()}
        came = {digest: count for digest, count in new.items() if count}
        assert set(came.values()) == {1}, f"{node.name} received blobs more than once: {came}"
        assert not seen or seen == set(came), f"{node.name} received other blobs than the rest"
        seen = set(came)
    return seen


@pytest.fixture(scope="module")
def five() -> Iterator[Lab]:
    with Lab(nodes=5, options=(f"--blob-rate={RATE}",)) as lab:
        yield lab


@pytest.fixture
def lab(five: Lab) -> Iterator[Lab]:
    yield five
    for node in five:
        if not node.alive:
            node.restart()
    everyone = set(five.nodes)
    five.wait_until(lambda: five.ready() == everyone, 20, "every node is ready again")
    empty(five)


def test_a_service_whose_image_one_node_has_runs_on_all(lab: Lab) -> None:
    lab.load_image(archive("covey/one:1", 4 * MIB, 2 * MIB), ["w1"])
    before = {node.name: counted(node, "Received") for node in lab}
    sent = {node.name: counted(node, "Sent") for node in lab}
    tasks = run(lab, "one", "covey/one:1", 5)
    assert len({task["NodeID"] for task in tasks}) == 5
    others = [node for node in lab if node.name != "w1"]
    digests = received_once(others, before)
    assert len(digests) == 5, "a manifest, a config and three layers"
    assert not counted(lab.node("w1"), "Received")
    for node in lab:
        most = {digest: count - sent[node.name].get(digest, 0) for digest, count in counted(node, "Sent").items()}
        assert max(most.values(), default=0) <= 2, f"{node.name} sent a blob more than twice: {most}"
        assert not counted(node, "Relayed")
    assert relayed(lab)["blobs"] == 0, "the manager carried blobs"
    # A second service of the image moves nothing.
    run(lab, "two", "covey/one:1", 5)
    assert received_once(others, before) == digests


def test_the_node_with_the_image_dies_in_the_middle_and_the_others_go_on_where_they_were(lab: Lab) -> None:
    name = "covey/mortal:1"
    lab.load_image(archive(name, 12 * MIB), ["w1"])
    source, others = lab.node("w1"), [node for node in lab if node.name != "w1"]
    carried = relayed(lab)["blobs"]
    before = {node.name: counted(node, "Received") for node in lab}
    sizes = {node.name: counted(node, "Received", "Bytes") for node in lab}
    lab.manager.client.post("/services/create", json=spec("mortal", name, 5))

    big = lab.wait_until(lambda: second_transfer(source), 30, "the second transfer of the big blob is under way", poll=0.02)
    told = {task["Status"]["Message"] for task in lab.tasks("mortal")}
    source.kill()
    assert any(words.startswith(f"receiving image {name}: ") and words.endswith(" %") for words in told), told
    tasks = lab.wait_until(
        lambda: found if len(found := lab.running("mortal")) == 5 else None, 60, "five replicas run without the source"
    )
    assert {lab.hostnames()[task["NodeID"]] for task in tasks} == {node.name for node in others}
    assert big in received_once(others, before)
    for node in others:
        came = counted(node, "Received", "Bytes")[big] - sizes[node.name].get(big, 0)
        assert 12 * MIB < came < 13 * MIB, f"{node.name} received {came} bytes: it began anew"
    assert relayed(lab)["blobs"] == carried


def test_a_source_that_hangs_is_left_for_another(lab: Lab) -> None:
    name = "covey/stuck:1"
    lab.load_image(archive(name, 12 * MIB), ["w1"])
    source = lab.node("w1")
    before = {node.name: counted(node, "Received") for node in lab}
    elsewhere = {"Placement": {"Constraints": ["node.hostname!=w1"]}}
    wanted = service("stuck", SLEEP, replicas=4, container={"Image": name}, task=elsewhere)
    lab.manager.client.post("/services/create", json=wanted)

    lab.wait_until(lambda: second_transfer(source), 30, "the second transfer of the big blob is under way", poll=0.02)
    source.pause(processes=("daemon",))
    try:
        lab.wait_until(lambda: len(lab.running("stuck")) == 4, 60, "four replicas run beside the node that hangs")
    finally:
        source.resume()
    received_once([node for node in lab if node.name != "w1"], before)


def test_the_only_node_with_the_image_dies_comes_back_and_the_transfer_goes_on(lab: Lab) -> None:
    name = "covey/phoenix:1"
    lab.load_image(archive(name, 12 * MIB), ["w2"])
    source, target = lab.node("w2"), lab.node("w3")
    before = counted(target, "Received", "Bytes")
    only = {"Placement": {"Constraints": ["node.hostname==w3"]}}
    lab.manager.client.post("/services/create", json=service("phoenix", SLEEP, container={"Image": name}, task=only))

    def halfway() -> str | None:
        fresh = {digest: size - before.get(digest, 0) for digest, size in counted(target, "Received", "Bytes").items()}
        return next((digest for digest, size in fresh.items() if 3 * MIB < size < 9 * MIB), None)

    big = lab.wait_until(halfway, 30, "the blob is half there", poll=0.02)
    source.kill()
    lab.wait_until(lambda: "w2" not in lab.ready(), 20, "the cluster has noticed")
    source.restart()
    lab.wait_until(lambda: lab.running("phoenix"), 60, "the service runs")
    assert counted(target, "Received")[big] == 1
    assert counted(target, "Received", "Bytes")[big] < 13 * MIB, "it began anew"


def test_a_port_that_nobody_reaches_is_gone_round_through_the_manager(lab: Lab) -> None:
    name = "covey/walled:1"
    lab.load_image(archive(name, MIB), ["w1"])
    wall = "add table inet wall; add chain inet wall in { type filter hook input priority 0; }; "
    wall += "add rule inet wall in tcp dport 2378 reject with tcp reset"
    before = relayed(lab)["blobs"]
    assert lab.node("w1").run("nft", wall).returncode == 0
    try:
        run(lab, "walled", name, 5)
    finally:
        lab.node("w1").run("nft", "delete table inet wall")
    carried = relayed(lab)["blobs"] - before
    assert 0 < carried <= 4, f"the manager carried {carried} blobs: each at most once, then the nodes have them"


def test_an_image_is_loaded_on_all_nodes_replaced_there_and_cleared_up(lab: Lab, tmp_path: Path) -> None:
    name, file = "covey/everywhere:1", tmp_path / "image.tar"
    ids = set()
    for _ in range(2):
        file.write_bytes(archive(name, MIB))
        done = command(lab.manager, "cluster", "image", "load", str(file), "--all-nodes")
        assert all(f"{node.name}: has {name}" in done.stdout for node in lab), done.stdout
        found = {node.client.get(f"/images/{name}/json")["Id"] for node in lab}
        assert len(found) == 1, "the nodes have different images under one name"
        ids |= found
    assert len(ids) == 2
    listed = command(lab.manager, "cluster", "image", "ls", "covey/everywhere", "--all-nodes").stdout
    assert {line.split()[0] for line in listed.splitlines()[1:]} == set(lab.nodes)
    done = command(lab.manager, "cluster", "image", "prune", "--all", "--force", "--all-nodes")
    assert "Total reclaimed space" in done.stdout
    assert not any(has(node, name) for node in lab)


def test_who_does_not_get_the_image_is_named_and_the_command_fails(lab: Lab, tmp_path: Path) -> None:
    name, file = "covey/almost:1", tmp_path / "image.tar"
    file.write_bytes(archive(name, MIB))
    lab.node("w4").kill()
    done = command(lab.manager, "cluster", "image", "load", str(file), "--all-nodes", code=1)
    assert f"w4 does not have {name}" in done.stderr
    assert "w1: has" in done.stdout
    lab.node("w4").restart()
    lab.wait_until(lambda: "w4" in lab.ready(), 20, "w4 is back")
    assert not has(lab.node("w4"), name)
    command(lab.manager, "cluster", "image", "distribute", name, "--node", "w4")
    assert has(lab.node("w4"), name)
    done = command(lab.manager, "cluster", "image", "distribute", "covey/nosuch:1", code=1)
    assert "No such image: covey/nosuch:1 on any node" in done.stderr


def test_an_image_that_no_node_has_is_said_so_with_the_next_step(lab: Lab) -> None:
    lab.manager.client.post("/services/create", json=spec("nowhere", "covey/nowhere:1", 1))

    def refused() -> str | None:
        return next((err for task in lab.tasks("nowhere") if "Err" in task["Status"] and (err := task["Status"]["Err"])), None)

    words = lab.wait_until(refused, 20, "a task says why it has no image")
    # The lab reaches no registry.
    assert words.startswith("No such image: covey/nowhere:1 on any node (Get ")
    assert words.endswith("): load it with `cluster image load --all-nodes` or give a registry")


def test_without_blob_ports_the_manager_carries_each_blob() -> None:
    with Lab(nodes=3, options=("--blob-port=0",)) as lab:
        lab.load_image(archive("covey/carried:1", 2 * MIB), ["w1"])
        run(lab, "carried", "covey/carried:1", 3)
        digests = received_once([lab.node("m1"), lab.node("w2")], {name: {} for name in lab.nodes})
        assert len(digests) == 4
        for node in lab:
            assert traffic(node)["Port"] == 0
            assert not counted(node, "Sent")
            assert max(counted(node, "Relayed").values(), default=0) <= 2
        carried = relayed(lab)
        assert carried["blobs"] == 2 * len(digests)
        assert carried["bytes"] == sum(sum(counted(node, "Received", "Bytes").values()) for node in lab)
