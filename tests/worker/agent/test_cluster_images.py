"""Images between nodes: real stores, real blob ports, the manager's tracker in between; sources that lie, break and go."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from covey.errors import CoveyError, InvalidArgument, NotFound, Unavailable
from covey.wire.messages import HeldImage, ImagesHeld
from manager.images.tracker import ANNOUNCING
from worker.agent import cluster_images as rules
from worker.agent.supply import Supply
from worker.images import manifests, reference
from worker.images.content import BadDigest

sys.path.insert(0, str(Path(__file__).parent))

from image_nodes import KIB, NAME, Cluster, Node, in_cluster, layer

pytestmark = pytest.mark.suite


@in_cluster
async def test_an_image_comes_from_who_has_it_under_the_name_it_was_asked_by(cluster: Cluster) -> None:
    source, target = await cluster.node("a"), await cluster.node("b")
    source.load(layer("one", 900 * KIB), layer("two", 10))
    await cluster.holds(source)
    image = await target.fetch()
    assert image.repo_tags == (NAME,)
    assert image == target.store.resolve(NAME)
    assert image.id == source.store.resolve(NAME).id
    assert {count["Blobs"] for count in target.received().values()} == {1}
    assert len(target.received()) == 4
    digest = image.manifest_digest
    pinned = await target.fetch(f"covey/thing@{digest}")
    assert target.store.resolve(f"covey/thing@{digest}") == pinned
    both = await (await cluster.node("c")).fetch(f"covey/thing:1@{digest}")
    assert both.repo_digests == (f"covey/thing@{digest}",)


@in_cluster
async def test_what_nobody_has_is_refused_with_the_next_step(cluster: Cluster) -> None:
    target = await cluster.node("b")
    async with Supply(target.store, target.images) as supply:
        with pytest.raises(NotFound) as refused:
            await supply.ensure("covey/thing")
    assert refused.value.message == (
        "No such image: covey/thing:latest on any node: load it with `cluster image load --all-nodes` or give a registry"
    )


@in_cluster
async def test_two_that_need_an_image_wait_for_one_download_and_hear_how_far_it_is(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=600 * KIB), await cluster.node("b")
    source.load(layer("one", 900 * KIB))
    await cluster.holds(source)
    told: dict[str, list[str]] = {"first": [], "second": []}
    async with Supply(target.store, target.images) as supply:
        waiting = [asyncio.create_task(supply.ensure(NAME, told[who].append)) for who in told]
        gone = asyncio.create_task(supply.ensure(NAME))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(*waiting)
        assert supply.statistics() == {"fetching": []}
        await supply.ensure(NAME)
    assert {count["Blobs"] for count in target.received().values()} == {1}
    for words in told.values():
        assert any(word.startswith(f"receiving image {NAME}: ") and word.endswith(" %") for word in words), words


@in_cluster
async def test_images_that_share_a_layer_have_it_sent_once(cluster: Cluster) -> None:
    source, target = await cluster.node("a"), await cluster.node("b")
    shared = layer("shared", 900 * KIB)
    source.load(shared, layer("one", 10), name="covey/one:1")
    source.load(shared, layer("two", 10), name="covey/two:1")
    await cluster.holds(source, "covey/two:1")
    await asyncio.gather(target.fetch("covey/one:1"), target.fetch("covey/two:1"))
    assert {count["Blobs"] for count in target.received().values()} == {1}
    assert len(target.received()) == 7


@in_cluster
async def test_a_source_whose_blob_is_damaged_is_left_for_one_that_is_sound(cluster: Cluster) -> None:
    damaged, target = await cluster.node("a"), await cluster.node("b")
    content = layer("one", 900 * KIB)
    damaged.load(content)
    await cluster.holds(damaged)
    path = damaged.store.content.path(damaged.big())
    data = bytearray(path.read_bytes())
    data[500_000] ^= 1
    path.write_bytes(data)
    fetching = asyncio.create_task(target.fetch())
    await cluster.wait("the damage is found", lambda: "a" not in cluster.tracker.catalogue.holders(damaged.big()))
    sound = await cluster.node("c")
    sound.load(content)
    image = await fetching
    assert target.store.content.read(image.layers[0].digest) == content
    assert (target.root / "images" / "ingest").is_dir()
    assert not list((target.root / "images" / "ingest").iterdir())


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_source_whose_blob_has_another_size_is_given_up(
    tmp_path: Path, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.images.tracker.ORPHANED", 0.2)

    @in_cluster
    async def run(cluster: Cluster) -> None:
        damaged, target = await cluster.node("a"), await cluster.node("b")
        damaged.load(layer("one", 300 * KIB))
        await cluster.holds(damaged)
        before = target.files()
        path = damaged.store.content.path(damaged.big())
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(NotFound, match="no node has the blob"):
            await target.fetch()
        with pytest.raises(NotFound):
            target.store.resolve(NAME)
        target.store.collect()
        assert target.files() == before, "something of the failed image stays"

    run(tmp_path)


@in_cluster
async def test_a_transfer_goes_on_from_another_source_where_the_first_broke_off(cluster: Cluster) -> None:
    content = layer("one", 900 * KIB)
    slow, target = await cluster.node("a", rate=400 * KIB), await cluster.node("b")
    slow.load(content)
    await cluster.holds(slow)
    fetching = asyncio.create_task(target.fetch())
    big = slow.big()
    await cluster.wait("half of it is there", lambda: target.received().get(big, {}).get("Bytes", 0) > 300 * KIB)
    other = await cluster.node("c")
    other.load(content)
    await cluster.holds(other)
    await slow.close_port()
    await slow.disconnect()
    image = await fetching
    assert target.received()[big] == {"Blobs": 1, "Bytes": image.layers[0].blob_size}
    assert 0 < other.images.traffic.show()["Sent"]["ByDigest"][big]["Bytes"] < image.layers[0].blob_size - 300 * KIB
    await slow._life.aclose()


@in_cluster
async def test_a_session_that_breaks_while_a_node_waits_changes_nothing(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=400 * KIB), await cluster.node("b")
    source.load(layer("one", 600 * KIB), layer("two", 300 * KIB))
    await cluster.holds(source)
    fetching = asyncio.create_task(target.fetch())
    await cluster.wait("it has begun", lambda: target.received().get(source.big(), {}).get("Bytes", 0) > 100 * KIB)
    await target.disconnect()
    await source.disconnect()
    await source.connect()
    await target.connect()
    image = await fetching
    assert {target.received()[one.digest]["Bytes"] for one in image.layers} == {one.blob_size for one in image.layers}


@in_cluster
async def test_whoever_gives_up_leaves_nothing_and_keeps_nothing_from_being_collected(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=300 * KIB), await cluster.node("b")
    source.load(layer("one", 900 * KIB))
    await cluster.holds(source)
    before = target.files()
    fetching = asyncio.create_task(target.fetch())
    await cluster.wait("it has begun", lambda: target.received().get(source.big(), {}).get("Bytes", 0) > 50 * KIB)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    target.store.collect()
    assert target.files() == before
    await cluster.wait("the tracker knows", lambda: cluster.tracker.idle and not cluster.tracker.statistics()["under_way"])


@in_cluster
async def test_who_gives_up_a_shared_layer_does_not_take_it_from_the_other(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=400 * KIB), await cluster.node("b")
    shared = layer("shared", 700 * KIB)
    source.load(shared, layer("one", 10), name="covey/one:1")
    source.load(shared, layer("two", 10), name="covey/two:1")
    await cluster.holds(source, "covey/two:1")
    first = asyncio.create_task(target.fetch("covey/one:1"))
    big = source.big("covey/one:1")
    await cluster.wait("it has begun", lambda: target.received().get(big, {}).get("Bytes", 0) > 50 * KIB)
    second = asyncio.create_task(target.fetch("covey/two:1"))
    await cluster.wait("the other has begun too", lambda: len(target.received()) > 3)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).repo_tags == ("covey/two:1",)
    with pytest.raises(NotFound):
        target.store.resolve("covey/one:1")


def test_without_a_session_there_is_an_answer_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SESSION_SECONDS", 0.2)

    @in_cluster
    async def run(cluster: Cluster) -> None:
        target = await cluster.node("b")
        await target.disconnect()
        with pytest.raises(Unavailable, match="is one running"):
            await target.fetch()
        await target.close_port()
        await target._life.aclose()

    run(tmp_path)


DIGEST = "sha256:" + "0" * 64


def made(**parts: Any) -> bytes:
    """A manifest of these parts."""
    return json.dumps({"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "layers": [], **parts}).encode()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"not json", "is not JSON"),
        (b"[" * 100_000, "is nested deeper"),
        (b"[]", "is not a JSON object"),
        (b'{"schemaVersion": 2, "manifests": []}', "is an index, not the manifest of one image"),
        (made(config=None), "config is not a descriptor"),
        (made(config={"digest": "sha256:x", "size": 1}), "invalid checksum digest"),
        (made(config={"digest": DIGEST, "size": -1}), "config has size -1"),
        (made(config={"digest": DIGEST, "size": "1"}), "config has size '1'"),
        (made(config={"digest": DIGEST, "size": 1}, layers=[7]), r"layers\[0\] is not a descriptor"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, document: bytes, words: str) -> None:
    @in_cluster
    async def run(cluster: Cluster) -> None:
        source, target = await cluster.node("a"), await cluster.node("b")
        with source.store.content.lease() as lease:
            manifest = source.store.content.put(document, lease)
            held = HeldImage(manifest=manifest.digest, size=manifest.size, names=(f"docker.io/{NAME}",))
            cluster.say(cluster.tracker.held("a", ImagesHeld(complete=False, images=(held,)), 0.0))
            with pytest.raises(InvalidArgument, match=words):
                await target.fetch()

    run(tmp_path)


@in_cluster
async def test_places_are_asked_in_their_order_and_a_failure_there_is_told(cluster: Cluster) -> None:
    node = await cluster.node("a")

    class Registry:
        def __init__(self, answer: CoveyError | None) -> None:
            self.answer, self.asked = answer, 0

        async def fetch(self, wanted: reference.Reference, said: Any) -> Any:
            self.asked += 1
            if self.answer is not None:
                raise self.answer
            node.load(layer("one", 10), name=wanted.familiar)
            return node.store.resolve(wanted.familiar)

    down = Registry(Unavailable("the registry is down"))
    async with Supply(node.store, node.images, [down]) as supply:
        with pytest.raises(NotFound, match=r"No such image: covey/thing:1 on any node \(the registry is down\): load it"):
            await supply.ensure(NAME)
    up = Registry(None)
    async with Supply(node.store, node.images, [up]) as supply:
        await supply.ensure(NAME)
        await supply.ensure(NAME)
    assert (down.asked, up.asked) == (1, 1)


@in_cluster
async def test_what_only_a_registry_has_comes_into_the_cluster_once(cluster: Cluster) -> None:
    nodes = [await cluster.node(name) for name in "abc"]
    pulls: list[str] = []

    class Registry:
        def __init__(self, node: Node) -> None:
            self.node = node

        async def fetch(self, wanted: reference.Reference, said: Any) -> Any:
            pulls.append(self.node.name)
            await asyncio.sleep(2.5 * ANNOUNCING)
            self.node.load(layer("one", 300 * KIB), name=wanted.familiar)
            return self.node.store.resolve(wanted.familiar)

    async with AsyncExitStack() as stack:
        supplies = [await stack.enter_async_context(Supply(node.store, node.images, [Registry(node)])) for node in nodes]
        await asyncio.gather(*(supply.ensure(NAME) for supply in supplies))
    assert len(pulls) == 1, f"pulled by {pulls}"
    assert len({node.store.resolve(NAME).id for node in nodes}) == 1
    for node in nodes:
        assert {count["Blobs"] for count in node.received().values()} == (set() if node.name in pulls else {1})


@in_cluster
async def test_one_that_looks_elsewhere_in_vain_keeps_nobody_waiting(cluster: Cluster) -> None:
    nodes = [await cluster.node(name) for name in "abc"]
    asked: list[str] = []

    class Registry:
        def __init__(self, node: Node) -> None:
            self.node = node

        async def fetch(self, wanted: reference.Reference, said: Any) -> Any:
            asked.append(self.node.name)
            raise Unavailable("no credentials on this node")

    async with AsyncExitStack() as stack:
        supplies = [await stack.enter_async_context(Supply(node.store, node.images, [Registry(node)])) for node in nodes]
        ends = await asyncio.gather(*(supply.ensure(NAME) for supply in supplies), return_exceptions=True)
    assert sorted(asked) == ["a", "b", "c"]
    assert all(isinstance(end, NotFound) and "no credentials" in end.message for end in ends), ends


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ports_and_sessions_that_come_and_go_and_bytes_that_turn(tmp_path: Path, seed: int) -> None:
    """All nodes have the image in the end, every blob as its digest says, and nothing else."""
    rng = random.Random(seed)

    @in_cluster
    async def run(cluster: Cluster) -> None:
        source = await cluster.node("a", rate=1500 * KIB)
        others = [await cluster.node(name, rate=1500 * KIB) for name in "bcdef"]
        source.load(*(layer(f"layer{number}", rng.randint(1, 700) * KIB) for number in range(5)))
        await cluster.holds(source)
        fetches = [asyncio.create_task(until_it_is_there(node)) for node in others]
        troubles = 0
        while not all(fetch.done() for fetch in fetches) and troubles < 25:
            await asyncio.sleep(rng.uniform(0.02, 0.2))
            troubles += 1
            node = rng.choice([source, *others])
            match rng.choice(("port", "session", "flip")):
                case "port":
                    await node.close_port()
                    await asyncio.sleep(rng.uniform(0.0, 0.1))
                    await node.open_port()
                    await node.disconnect()
                    await node.connect()
                case "session":
                    await node.disconnect()
                    await asyncio.sleep(rng.uniform(0.0, 0.2))
                    await node.connect()
                case "flip" if node is not source:
                    damage(rng, node)
        print(f"seed {seed}: {troubles} troubles, {cluster.tracker.statistics()}")
        images = await asyncio.gather(*fetches)
        wanted = source.store.resolve(NAME)
        assert {image.id for image in images} == {wanted.id}
        assert troubles >= 5

    run(tmp_path)


async def until_it_is_there(node: Node) -> Any:
    """As a task's restarts do: a node whose own disk turned a bit before it had the image fails, and tries again."""
    for _ in range(10):
        try:
            return await node.fetch()
        except BadDigest:
            continue
    raise AssertionError("ten times the disk was damaged")


def damage(rng: random.Random, node: Node) -> None:
    """A bit of one of the node's blobs turns, unless it makes the image already."""
    blobs = sorted((node.root / "images" / "blobs" / "sha256").iterdir())
    if not blobs or node.store.list():
        return
    path = rng.choice(blobs)
    data = bytearray(path.read_bytes())
    if len(data) > 10_000:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


class Taken:
    """A pull's end of a blob."""

    def __init__(self, offset: int = 0) -> None:
        self.offset, self.data = offset, b""

    async def write(self, data: bytes) -> None:
        self.data += data
        self.offset += len(data)


async def big_blob(cluster: Cluster, source: Node) -> manifests.Descriptor:
    """Of an image that the node has, and has said so."""
    source.load(layer("one", 900 * KIB))
    await cluster.holds(source)
    (one,) = source.store.resolve(NAME).layers
    return manifests.Descriptor("", one.digest, one.blob_size)


@in_cluster
async def test_a_pull_has_from_the_nodes_what_they_hold(cluster: Cluster) -> None:
    source, target = await cluster.node("a"), await cluster.node("b")
    wanted = await big_blob(cluster, source)
    blobs = rules.ClusterBlobs(target.images)
    whole = source.store.content.read(wanted.digest, 1 << 20)
    for offset in (0, 500_000):
        taken = Taken(offset)
        assert await blobs.fetch(wanted, taken)
        assert taken.data == whole[offset:]
    assert target.received()[wanted.digest]["Blobs"] == 2
    assert not target.store.content.has(wanted.digest), "it is the pull that takes it in"
    assert cluster.tracker.idle
    nobody = manifests.Descriptor("", "sha256:" + "0" * 64, 10)
    assert not await blobs.fetch(nobody, Taken())


@in_cluster
async def test_a_pull_goes_on_at_its_registry_when_the_nodes_fail_it(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=300 * KIB), await cluster.node("b")
    wanted = await big_blob(cluster, source)
    blobs, taken = rules.ClusterBlobs(target.images), Taken()
    fetching = asyncio.create_task(blobs.fetch(wanted, taken))
    await cluster.wait("some of it has come", lambda: taken.offset)
    await source.close_port()
    assert not await fetching
    assert 0 < taken.offset < wanted.size
    assert taken.data == source.store.content.read(wanted.digest, 1 << 20)[: taken.offset]
    await target.disconnect()
    assert not await blobs.fetch(wanted, Taken()), "nobody to ask"
    await target.connect()


@in_cluster
async def test_a_pull_that_is_given_up_leaves_its_source(cluster: Cluster) -> None:
    source, target = await cluster.node("a", rate=100 * KIB), await cluster.node("b")
    wanted = await big_blob(cluster, source)
    taken = Taken()
    fetching = asyncio.create_task(rules.ClusterBlobs(target.images).fetch(wanted, taken))
    await cluster.wait("some of it has come", lambda: taken.offset)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await cluster.wait("nothing is under way", lambda: cluster.tracker.statistics()["under_way"] == 0)
    assert target.images.statistics()["Waiting"] == 0
