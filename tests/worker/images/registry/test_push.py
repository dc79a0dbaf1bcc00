"""A push: what is sent, what is not, that it is the same bytes each time, and how it survives a bad line."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from covey.credentials import Credentials
from covey.errors import CoveyError, InvalidArgument, NotFound
from covey.testing import images
from worker.images import reference, upload
from worker.images.push import Pushed, Pusher
from worker.images.registry.access import Registries
from worker.images.registry.endpoints import RegistryOptions
from worker.images.registry.errors import NoCredentials, Refused

from .conftest import TIMING, Node
from .scripted import Asked, ScriptedRegistry, digest_of, layer_tar, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]


class Sender:
    """A node's way out. ``lines``: the progress of the last push."""

    def __init__(self, node: Node) -> None:
        self.pusher = Pusher(node.store, node.registries)
        self.lines: list[dict[str, Any]] = []

    async def push(self, name: str, **how: Any) -> list[Pushed]:
        self.lines = []
        return await self.pusher.push(reference.parse(name), listener=self.lines.append, **how)  # type: ignore[arg-type]

    def statuses(self) -> list[str]:
        return [line["status"] for line in self.lines if "status" in line]


@pytest_asyncio.fixture
async def sender(node: Node) -> AsyncIterator[Sender]:
    sender = Sender(node)
    yield sender
    sender.pusher.close()


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def load(node: Node, *layers: dict[str, bytes], name: str = "app:1") -> None:
    archive = images.docker_archive(name, [layer_tar(files) for files in layers], {"Cmd": ["sh"]})
    node.store.load_archive(io.BytesIO(archive))


async def test_a_loaded_image_goes_packed_and_the_same_each_time(
    registry: ScriptedRegistry, node: Node, sender: Sender
) -> None:
    load(node, {"a": b"1" * 5000}, {"b": b"2" * 5000})
    image = node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    (first,) = await sender.push(f"{registry.address}/app:1")
    repository = registry.repository("app")
    media_type, manifest = repository.manifests[first.digest]
    document = json.loads(manifest)
    assert [layer["mediaType"] for layer in document["layers"]] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 2
    assert all(digest_of(repository.blobs[layer["digest"]]) == layer["digest"] for layer in document["layers"])
    assert repository.tags == {"1": first.digest}
    assert media_type == image.manifest_type
    assert sender.statuses()[-1] == f"1: digest: {first.digest} size: {len(manifest)}"
    assert sender.lines[-1]["aux"] == {"Tag": "1", "Digest": first.digest, "Size": len(manifest)}
    registry.asked.clear()
    (second,) = await sender.push(f"{registry.address}/app:1")
    assert second.digest == first.digest
    assert sender.statuses().count("Layer already exists") == 2
    assert not registry.of("POST")
    assert node.store.resolve("app:1").repo_digests == (f"{registry.address}/app@{first.digest}",)
    assert len([path for path in node.files() if path.startswith("images/blobs")]) == 4, "what was packed has not stayed"


async def test_another_node_packs_the_same_bytes(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    load(node, {"a": b"1" * 5000})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    (first,) = await sender.push(f"{registry.address}/app:1")
    fresh = Pusher(node.store, node.registries)
    registry.repositories.clear()
    (second,) = await fresh.push(reference.parse(f"{registry.address}/app:1"))
    fresh.close()
    assert second.digest == first.digest


async def test_a_pulled_image_goes_back_byte_for_byte(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    image = made({"a": b"1"}, {"b": b"2"}, annotations={"odd": "  spacing  "})
    image.manifest = image.manifest.replace(b": ", b" :  ", 3)
    registry.add("app", "v1", image)
    await node.pull(f"{registry.address}/app:v1")
    async with ScriptedRegistry() as other:
        node.store.tag(f"{registry.address}/app:v1", reference.parse(f"{other.address}/copy:v2"))
        (pushed,) = await sender.push(f"{other.address}/copy:v2")
        repository = other.repository("copy")
        assert pushed.digest == image.digest
        assert repository.manifests[image.digest] == (image.media_type, image.manifest)
        assert repository.blobs == image.blobs


async def test_a_plain_layer_of_a_registry_stays_plain(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    tar = layer_tar({"a": b"1"})
    image = made({"a": b"1"})
    document = json.loads(image.manifest)
    document["layers"] = [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(tar), "size": len(tar)}]
    image.manifest, image.blobs = json.dumps(document).encode(), {**image.blobs, digest_of(tar): tar}
    registry.add("app", "v1", image)
    await node.pull(f"{registry.address}/app:v1")
    registry.repository("app").tags.clear()
    (pushed,) = await sender.push(f"{registry.address}/app:v1")
    assert pushed.digest == image.digest


async def test_a_blob_of_another_repository_is_mounted(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    image = made({"a": b"1"}, {"b": b"2"})
    registry.add("first", "v1", image)
    await node.pull(f"{registry.address}/first:v1")
    node.store.tag(f"{registry.address}/first:v1", reference.parse(f"{registry.address}/second:v1"))
    await sender.push(f"{registry.address}/second:v1")
    assert sender.statuses().count("Mounted from first") == 2
    assert not [one for one in registry.of("PUT", "/blobs/") if one.size > 1000]


async def test_a_registry_that_mounts_nothing_gets_the_bytes(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    registry.mounts = False
    image = made({"a": b"1"})
    registry.add("first", "v1", image)
    await node.pull(f"{registry.address}/first:v1")
    node.store.tag(f"{registry.address}/first:v1", reference.parse(f"{registry.address}/second:v1"))
    await sender.push(f"{registry.address}/second:v1")
    assert registry.repository("second").blobs == image.blobs
    assert sender.statuses().count("Pushed") == 1


async def test_a_push_asks_for_a_token_that_may_mount(
    registry: ScriptedRegistry, node: Node, sender: Sender, credentials: Credentials
) -> None:
    registry.add("first", "v1", made())
    await node.pull(f"{registry.address}/first:v1")
    node.store.tag(f"{registry.address}/first:v1", reference.parse(f"{registry.address}/second:v1"))
    registry.user = ("user", "secret")
    with pytest.raises(NoCredentials, match="no basic auth credentials"):
        await sender.push(f"{registry.address}/second:v1")
    registry.want_tokens()
    await sender.push(f"{registry.address}/second:v1", auth=credentials)
    scopes = {scope for one in registry.of("GET", "/token") for scope in one.query.getall("scope")}  # type: ignore[attr-defined]
    assert scopes == {"repository:second:pull,push", "repository:first:pull"}


async def test_all_tags_of_a_repository(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    load(node, {"a": b"1"})
    for tag in ("one", "two"):
        node.store.tag("app:1", reference.parse(f"{registry.address}/app:{tag}"))
    assert [one.name.tag for one in await sender.push(f"{registry.address}/app")] == ["one", "two"]
    assert set(registry.repository("app").tags) == {"one", "two"}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("none/none:1", NotFound, "An image does not exist locally with the tag: none/none"),
        ("app:2", NotFound, "tag does not exist: app:2"),
        (f"app@sha256:{'a' * 64}", InvalidArgument, "cannot push a digest reference"),
    ],
)
async def test_what_is_not_here_cannot_be_pushed(
    node: Node, sender: Sender, name: str, kind: type[CoveyError], words: str
) -> None:
    load(node, {"a": b"1"})
    with pytest.raises(kind, match=words):
        await sender.push(name)


async def test_another_platform_than_the_images_is_refused(node: Node, sender: Sender, registry: ScriptedRegistry) -> None:
    load(node, {"a": b"1"})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    with pytest.raises(NotFound, match="does not provide the specified platform: wanted windows/amd64"):
        await sender.push(f"{registry.address}/app:1", platform='{"os":"windows","architecture":"amd64"}')
    with pytest.raises(InvalidArgument, match="invalid platform"):
        await sender.push(f"{registry.address}/app:1", platform="linux/amd64")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """So that a layer of a test is large."""
    defaults = list(upload.Upload.__init__.__defaults__ or ())
    monkeypatch.setattr(upload.Upload.__init__, "__defaults__", (*defaults[:-1], 40_000))
    return 40_000


@pytest.mark.usefixtures("small_chunks")
async def test_a_large_blob_goes_in_chunks(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    load(node, {"noise": noise(200_000)})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    await sender.push(f"{registry.address}/app:1")
    sizes = [one.size for one in registry.of("PATCH")]
    assert set(sizes) == {40_000}
    assert [one.headers["Content-Range"] for one in registry.of("PATCH")][:2] == ["0-39999", "40000-79999"]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["hang up", "500", "hang up after", "forget"])
async def test_an_upload_goes_on_where_it_was_cut(registry: ScriptedRegistry, node: Node, sender: Sender, kind: str) -> None:
    load(node, {"noise": noise(200_000)})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    count = 0

    async def fault(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        nonlocal count
        if asked.method != "PATCH":
            return None
        count += 1
        if count != 3:
            return None
        if kind == "500":
            return web.Response(status=500)
        if kind == "forget":
            registry._uploads.clear()
            return None
        if kind == "hang up after":
            await registry._upload(request, asked, "app", asked.path.rpartition("/")[2])
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    registry.fault = fault
    (pushed,) = await sender.push(f"{registry.address}/app:1")
    document = json.loads(registry.repository("app").manifests[pushed.digest][1])
    blob = registry.repository("app").blobs[document["layers"][0]["digest"]]
    assert hashlib.sha256(blob).hexdigest() == document["layers"][0]["digest"].removeprefix("sha256:")
    begun = len(registry.of("POST", "/uploads/"))
    assert begun == (3 if kind == "forget" else 2), "config and layer, and the layer again only if the registry forgot it"


async def test_an_upload_whose_answer_was_lost_is_not_sent_again(
    registry: ScriptedRegistry, node: Node, sender: Sender
) -> None:
    load(node, {"a": b"1"})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    lost: list[str] = []

    async def lose(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.method != "PUT" or "/uploads/" not in asked.path or lost:
            return None
        lost.append(asked.path)
        await registry._upload(request, asked, "app", asked.path.rpartition("/")[2])
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    registry.fault = lose
    await sender.push(f"{registry.address}/app:1")
    assert lost
    assert len(registry.of("POST", "/uploads/")) == 2


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (413, 1), (500, 5)])
async def test_a_registry_that_takes_nothing_is_given_up(
    registry: ScriptedRegistry, node: Node, sender: Sender, status: int, tries: int
) -> None:
    load(node, {"a": b"1"})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    before = node.files()

    async def fault(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if asked.method == "PUT" else None

    registry.fault = fault
    with pytest.raises(Refused, match=str(status)):
        await sender.push(f"{registry.address}/app:1")
    assert len(registry.of("PUT", "/uploads/")) == tries
    assert not registry.repository("app").tags
    assert node.files() == before


async def test_a_push_that_is_given_up_ends(registry: ScriptedRegistry, node: Node, sender: Sender) -> None:
    load(node, {"a": noise(50_000)})
    node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
    arrived = asyncio.Event()

    async def silent(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.method == "PUT":
            arrived.set()
            await asyncio.sleep(60)
        return None

    registry.fault = silent
    before = node.files()
    push = asyncio.create_task(sender.push(f"{registry.address}/app:1"))
    await asyncio.wait_for(arrived.wait(), 5)
    push.cancel()
    with pytest.raises(asyncio.CancelledError):
        await push
    assert node.files() == before


async def test_a_slow_upload_is_not_taken_for_silence(registry: ScriptedRegistry, tmp_path: Path) -> None:
    """The registry takes longer to read than it may be silent, and is never silent for long."""
    limit = 4.0

    async def slow(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.method == "PUT" and int(asked.headers.get("Content-Length", "0")) > 1_000_000:
            until = asyncio.get_running_loop().time() + limit + 0.5
            while asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.1)
                await request.content.readany()
            return web.Response(status=503)
        return None

    registry.fault = slow
    options = RegistryOptions(certificates=(), timing=replace(TIMING, read=limit, attempts=1))
    async with Registries(options) as registries:
        node = Node(tmp_path / "data", registries)
        load(node, {"a": noise(12_000_000)})
        node.store.tag("app:1", reference.parse(f"{registry.address}/app:1"))
        sender = Sender(node)
        with pytest.raises(Refused, match="503"):
            await sender.push(f"{registry.address}/app:1")
        sender.pusher.close()
        node.puller.close()
    tries = [one for one in registry.of("PUT") if int(one.headers.get("Content-Length", "0")) > 1_000_000]
    assert len(tries) == 1
