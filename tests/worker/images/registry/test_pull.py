"""A pull from a well-behaved registry: what comes, under which names, what is told, and what is not fetched twice."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from covey.errors import Conflict, NotFound
from covey.testing import images as archives
from worker.images import manifests, reference

from .conftest import Node
from .scripted import OCI_INDEX, Made, ScriptedRegistry, digest_of, layer_tar, made

pytestmark = pytest.mark.asyncio


def short(digest: str) -> str:
    return digest[7:19]


def index_of(*images: tuple[str, Made]) -> Made:
    entries = []
    for platform, image in images:
        system, architecture, *variant = platform.split("/")
        entries.append(
            {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": len(image.manifest),
                "platform": {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})},
            }
        )
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return Made(json.dumps(document).encode(), {}, [], "", OCI_INDEX)


async def test_an_image_comes_whole(registry: ScriptedRegistry, node: Node) -> None:
    image = made({"a": b"1"}, {"b": b"2" * 300_000})
    registry.add("team/app", "v1", image)
    pulled = await node.pull(f"{registry.address}/team/app:v1")
    assert pulled.image.id == image.config
    assert pulled.image.repo_tags == (f"{registry.address}/team/app:v1",)
    assert pulled.image.repo_digests == (f"{registry.address}/team/app@{image.digest}",)
    assert [(path / "b").exists() or (path / "a").exists() for path in node.store.layer_dirs(pulled.image)] == [True, True]
    assert node.store.content.read(image.digest) == image.manifest
    for digest, data in image.blobs.items():
        assert node.store.content.read(digest) == data
    told = node.statuses()
    assert told[0] == "v1: Pulling from team/app"
    for layer in image.layers:
        states = [line.partition(": ")[2] for line in told if line.startswith(short(layer))]
        want = ["Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"]
        assert [state for state in dict.fromkeys(states) if state != "Waiting"] == want
    assert told[-2:] == [f"Digest: {image.digest}", f"Status: Downloaded newer image for {registry.address}/team/app:v1"]


async def test_a_second_pull_asks_for_the_digest_only(registry: ScriptedRegistry, node: Node) -> None:
    image = made({"a": b"1"})
    registry.add("app", "v1", image)
    await node.pull(f"{registry.address}/app:v1")
    registry.asked.clear()
    pulled = await node.pull(f"{registry.address}/app:v1")
    assert not pulled.fresh
    assert [one.method for one in registry.asked] == ["HEAD"]
    assert node.statuses()[-1] == f"Status: Image is up to date for {registry.address}/app:v1"
    assert len(node.statuses()) == 3
    registry.add("app", "v2", image)
    assert (await node.pull(f"{registry.address}/app:v2")).fresh
    assert f"{short(image.layers[0])}: Already exists" in node.statuses()


async def test_another_platform_than_the_one_here_is_fetched(registry: ScriptedRegistry, node: Node) -> None:
    images = [made({"a": b"amd"}, platform="linux/amd64"), made({"a": b"arm"}, platform="linux/arm64")]
    registry.add("app", "v1", index_of(("linux/amd64", images[0]), ("linux/arm64", images[1])), *images)
    for place, platform in ((1, "linux/arm64"), (0, "linux/amd64"), (1, "linux/arm64"), (1, "linux/arm64")):
        pulled = await node.pull(f"{registry.address}/app:v1", platform=platform)
        assert pulled.image.id == images[place].config


async def test_a_layer_that_is_here_is_not_fetched(registry: ScriptedRegistry, node: Node) -> None:
    base, both = made({"a": b"1"}), made({"a": b"1"}, {"b": b"2"})
    registry.add("app", "base", base)
    registry.add("app", "both", both)
    await node.pull(f"{registry.address}/app:base")
    registry.asked.clear()
    await node.pull(f"{registry.address}/app:both")
    assert {one.blob for one in registry.of("GET", "/blobs/")} == {both.layers[1], both.config}
    assert f"{short(both.layers[0])}: Already exists" in node.statuses()


async def test_a_tag_that_moved_leaves_the_old_image_its_digest(registry: ScriptedRegistry, node: Node) -> None:
    old, new = made({"a": b"1"}), made({"a": b"2"})
    registry.add("app", "v1", old)
    first = await node.pull(f"{registry.address}/app:v1")
    registry.add("app", "v1", new)
    second = await node.pull(f"{registry.address}/app:v1")
    assert second.fresh
    assert node.store.resolve(f"{registry.address}/app:v1").id == new.config
    before = node.store.resolve(first.image.id)
    assert (before.repo_tags, before.repo_digests) == ((), (f"{registry.address}/app@{old.digest}",))


async def test_a_digest_pulls_without_a_tag(registry: ScriptedRegistry, node: Node) -> None:
    image = made()
    registry.add("app", "v1", image)
    pulled = await node.pull(f"{registry.address}/app@{image.digest}")
    assert (pulled.image.repo_tags, pulled.image.repo_digests) == ((), (f"{registry.address}/app@{image.digest}",))
    assert node.store.resolve(f"{registry.address}/app@{image.digest}").id == image.config
    assert node.statuses()[0] == f"{image.digest}: Pulling from app"


@pytest.mark.parametrize(("platform", "place"), [("", 0), ("linux/arm64", 1), ("linux/arm64/v8", 1)])
async def test_an_index_gives_the_platform_asked_for(
    registry: ScriptedRegistry, node: Node, platform: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.images.image.host_architecture", lambda: "amd64")
    images = [made({"a": b"amd"}, platform="linux/amd64"), made({"a": b"arm"}, platform="linux/arm64")]
    index = index_of(("linux/amd64", images[0]), ("linux/arm64", images[1]))
    registry.add("app", "v1", index, *images)
    pulled = await node.pull(f"{registry.address}/app:v1", platform=platform)
    assert pulled.image.id == images[place].config
    assert pulled.digest == index.digest
    assert pulled.image.repo_digests == (f"{registry.address}/app@{index.digest}",)
    assert pulled.image.manifest_digest == images[place].digest


async def test_an_index_without_the_platform_says_what_it_has(registry: ScriptedRegistry, node: Node) -> None:
    arm = made(platform="linux/arm64")
    registry.add("app", "v1", index_of(("linux/s390x", arm)), arm)
    with pytest.raises(NotFound, match=r"no matching manifest for linux/riscv64 in .*; the image is there for: linux/s390x"):
        await node.pull(f"{registry.address}/app:v1", platform="linux/riscv64")
    assert node.files() == set()


async def test_indexes_in_indexes_have_an_end(registry: ScriptedRegistry, node: Node) -> None:
    image = made()
    chain = [image]
    for _ in range(manifests.INDEX_DEPTH):
        chain.append(index_of(("linux/amd64", chain[-1])))
    registry.add("app", "deep", chain[-1], *chain[:-1])
    registry.add("app", "fair", chain[-2], *chain[:-2])
    await node.pull(f"{registry.address}/app:fair", platform="linux/amd64")
    with pytest.raises(manifests.BadManifest, match="deep"):
        await node.pull(f"{registry.address}/app:deep", platform="linux/amd64")


async def test_all_tags_come_page_after_page(registry: ScriptedRegistry, node: Node) -> None:
    for number in range(5):
        registry.add("app", f"v{number}", made({"a": str(number).encode()}))
    pulled = await node.puller.pull_all(reference.parse(f"{registry.address}/app"))
    assert [one.image.repo_tags for one in pulled] == [(f"{registry.address}/app:v{number}",) for number in range(5)]


async def test_two_pulls_at_once_fetch_each_blob_once(registry: ScriptedRegistry, node: Node) -> None:
    image = made({"a": b"1" * 50_000}, {"b": b"2" * 50_000})
    registry.add("app", "v1", image)
    waiting = asyncio.Event()

    async def slow(asked, request):  # type: ignore[no-untyped-def]
        if asked.blob:
            await waiting.wait()

    registry.fault = slow
    pulls = [asyncio.create_task(node.pull(f"{registry.address}/app:v1")) for _ in range(2)]
    while node.puller.statistics()["waiting"] < 6:
        await asyncio.sleep(0.001)
    waiting.set()
    done = await asyncio.gather(*pulls)
    assert {one.image.id for one in done} == {image.config}
    assert sorted(one.blob for one in registry.of("GET", "/blobs/")) == sorted(image.blobs)


def _asked(registry: ScriptedRegistry, image: Made) -> list[str]:
    """The layers that were asked for, each as often as it was."""
    return [one.blob for one in registry.of("GET", "/blobs/") if one.blob in image.layers]


async def test_the_second_of_two_pulls_goes_on_when_the_first_is_given_up(registry: ScriptedRegistry, node: Node) -> None:
    image = made({"a": b"1" * 50_000})
    registry.add("app", "v1", image)
    waiting = asyncio.Event()

    async def slow(asked, request):  # type: ignore[no-untyped-def]
        if asked.blob in image.layers:
            await waiting.wait()

    registry.fault = slow
    first, second = (asyncio.create_task(node.pull(f"{registry.address}/app:v1")) for _ in range(2))
    # Both wait for the layer, none for the config any more.
    while not _asked(registry, image) or node.puller.statistics() != {"downloads": 1, "waiting": 2}:
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    waiting.set()
    assert (await second).image.id == image.config
    assert len(_asked(registry, image)) == 1


async def test_a_pull_nobody_waits_for_ends_and_leaves_nothing(registry: ScriptedRegistry, node: Node) -> None:
    image = made({"a": b"1" * 50_000})
    registry.add("app", "v1", image)
    arrived, hung_up = asyncio.Event(), asyncio.Event()

    async def silent(asked, request):  # type: ignore[no-untyped-def]
        if asked.blob in image.layers:
            arrived.set()
            try:
                await asyncio.sleep(30)
            finally:
                hung_up.set()

    registry.fault = silent
    pull = asyncio.create_task(node.pull(f"{registry.address}/app:v1"))
    await asyncio.wait_for(arrived.wait(), 5)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    await asyncio.wait_for(hung_up.wait(), 5)
    assert node.puller.statistics() == {"downloads": 0, "waiting": 0}
    assert node.files() == set()


async def test_what_a_pull_has_fetched_is_kept_while_others_are_removed(registry: ScriptedRegistry, node: Node) -> None:
    base, both = made({"a": b"1"}), made({"a": b"1"}, {"b": b"2"})
    registry.add("app", "base", base)
    registry.add("app", "both", both)
    await node.pull(f"{registry.address}/app:base")
    at_second, removed = asyncio.Event(), asyncio.Event()

    async def remove_meanwhile(asked, request):  # type: ignore[no-untyped-def]
        if asked.blob == both.layers[1]:
            at_second.set()
            await removed.wait()

    registry.fault = remove_meanwhile
    pull = asyncio.create_task(node.pull(f"{registry.address}/app:both"))
    await asyncio.wait_for(at_second.wait(), 5)
    try:
        node.store.remove(f"{registry.address}/app:base")
    except Conflict:
        pytest.fail("an image that is not in use can be removed")
    removed.set()
    pulled = await pull
    assert pulled.image.id == both.config
    assert all(node.store.content.has(digest) for digest in both.blobs)
    assert len(node.store.layer_dirs(pulled.image)) == 2


async def test_docker_schema_2_is_kept_byte_for_byte(registry: ScriptedRegistry, node: Node) -> None:
    image = made(mediaType=manifests.DOCKER_MANIFEST)
    image.media_type = manifests.DOCKER_MANIFEST
    registry.add("app", "v1", image)
    pulled = await node.pull(f"{registry.address}/app:v1")
    assert node.store.content.read(pulled.image.manifest_digest) == image.manifest
    assert pulled.image.manifest_type == manifests.DOCKER_MANIFEST


async def test_an_empty_layer_comes_too(registry: ScriptedRegistry, node: Node) -> None:
    image = made({}, {"a": b"1"})
    registry.add("app", "v1", image)
    assert (await node.pull(f"{registry.address}/app:v1")).image.layers[0].digest == image.layers[0]
    assert digest_of(image.manifest) == image.digest


async def test_what_a_registry_has_takes_the_place_of_what_an_archive_held(registry: ScriptedRegistry, node: Node) -> None:
    """Else a pulled image would go on with other bytes than it came with, for the same image was loaded before."""
    files = {"a": b"1"}
    image = made(files)
    registry.add("app", "v1", image)
    archive = archives.docker_archive("app:loaded", [layer_tar(files)], {})
    loaded = node.store.load_archive(io.BytesIO(archive))[0].image
    config = json.loads(image.blobs[image.config])
    same = made_with(node.store.content.read(loaded.id), image)
    registry.add("app", "v1", same)
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in loaded.layers]
    pulled = await node.pull(f"{registry.address}/app:v1")
    assert pulled.image.id == loaded.id
    assert pulled.image.repo_tags == (f"{registry.address}/app:v1", "app:loaded")
    assert pulled.image.manifest_digest == same.digest
    assert [layer.digest for layer in pulled.image.layers] == image.layers
    node.store.collect()
    assert node.store.content.read(same.digest) == same.manifest


def made_with(config: bytes, image: Made) -> Made:
    """``image`` with another config."""
    document = json.loads(image.manifest)
    document["config"] = {**document["config"], "digest": digest_of(config), "size": len(config)}
    blobs = {**image.blobs, digest_of(config): config}
    return Made(json.dumps(document).encode(), blobs, image.layers, digest_of(config))
