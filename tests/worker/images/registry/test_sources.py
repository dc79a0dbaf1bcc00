"""Places besides the registry: asked first, believed never."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from covey.errors import NotFound
from worker.images import reference
from worker.images.from_registry import FromRegistry
from worker.images.manifests import Descriptor
from worker.images.pull import Puller, platform_of
from worker.images.registry.errors import RegistryError
from worker.images.registry.repository import Found
from worker.images.sources import BlobSource, Sink

from .conftest import Node
from .scripted import Made, ScriptedRegistry, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]


class Peer:
    """Has ``blobs``, as ``change`` gives them, and hands over ``most`` bytes of each."""

    def __init__(self, image: Made, change: Callable[[bytes], bytes] = bytes, most: int = 1 << 30) -> None:
        self.image, self.change, self.most = image, change, most
        self.asked: list[str] = []

    async def fetch(self, descriptor: Descriptor, sink: Sink) -> bool:
        self.asked.append(descriptor.digest)
        data = self.image.blobs.get(descriptor.digest)
        if data is None and descriptor.digest == self.image.digest:
            data = self.image.manifest
        if data is None:
            return False
        data = self.change(data)
        end = min(self.most, len(data))
        if sink.offset < end:
            await sink.write(data[sink.offset : end])
        return end == len(data)


@asynccontextmanager
async def pulling(node: Node, *sources: BlobSource) -> AsyncIterator[Puller]:
    puller = Puller(node.store, node.registries, sources)
    try:
        yield puller
    finally:
        puller.close()


@pytest.fixture
def image(registry: ScriptedRegistry) -> Made:
    found = made({"a": b"1" * 50_000}, {"b": b"2" * 50_000})
    registry.add("app", "v1", found)
    return found


async def test_what_a_peer_has_is_not_asked_of_the_registry(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    peer = Peer(image)
    async with pulling(node, peer) as puller:
        pulled = await puller.pull(reference.parse(f"{registry.address}/app:v1"))
    assert pulled.image.id == image.config
    assert sorted(peer.asked) == sorted(image.blobs)
    assert not registry.of("GET", "/blobs/")


@pytest.mark.parametrize("most", [0, 1, 100])
async def test_the_registry_goes_on_where_a_peer_left_off(
    registry: ScriptedRegistry, node: Node, image: Made, most: int
) -> None:
    async with pulling(node, Peer(image, most=most)) as puller:
        pulled = await puller.pull(reference.parse(f"{registry.address}/app:v1"))
    assert pulled.image.id == image.config
    ranges = {one.headers.get("Range", "") for one in registry.of("GET", "/blobs/")}
    assert ranges == {f"bytes={most}-" if most else ""}


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "change", [flipped, lambda data: data + b"more", lambda data: data[:50] + b"x"], ids=["bit", "long", "short"]
)
async def test_a_peer_that_lies_costs_time_only(
    registry: ScriptedRegistry, node: Node, image: Made, change: Callable[[bytes], bytes]
) -> None:
    async with pulling(node, Peer(image, change)) as puller:
        pulled = await puller.pull(reference.parse(f"{registry.address}/app:v1"))
    assert pulled.image.id == image.config
    assert all(node.store.content.read(digest) == data for digest, data in image.blobs.items())


async def test_peers_are_asked_in_turn(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    peers: Sequence[Peer] = (Peer(made({"else": b""})), Peer(image, most=10), Peer(image))
    async with pulling(node, *peers) as puller:
        await puller.pull(reference.parse(f"{registry.address}/app:v1"))
    assert [sorted(peer.asked) for peer in peers] == [sorted(image.blobs)] * 3
    assert not registry.of("GET", "/blobs/")


async def test_without_a_registry_peers_are_all_there_is(node: Node) -> None:
    image = made({"a": b"1"})
    async with pulling(node, Peer(image)) as puller:
        found = Found(image.digest, image.media_type, image.manifest)
        name = reference.parse("only/here:1")
        taken = await puller.take(found, [name], repository=None, platform=platform_of("linux/amd64"))
        assert taken.image.repo_tags == ("only/here:1",)
        other = made({"b": b"2"})
        lost = Found(other.digest, other.media_type, other.manifest)
        with pytest.raises(NotFound, match="there is no registry to ask"):
            await puller.take(lost, [name], repository=None, platform=platform_of(""))
    assert node.store.resolve("only/here:1").id == image.config


async def test_a_task_s_image_comes_from_the_registry(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    said: list[tuple[int, int]] = []
    place = FromRegistry(node.puller)
    wanted = reference.parse(f"{registry.address}/app:v1@{image.digest}")
    found = await place.fetch(wanted, lambda current, total: said.append((current, total)))
    assert found.id == image.config
    assert node.store.resolve(str(wanted)).id == image.config
    total = sum(len(image.blobs[layer]) for layer in image.layers)
    assert said[-1] == (total, total)
    with pytest.raises(NotFound, match="manifest unknown"):
        await place.fetch(reference.parse(f"{registry.address}/app:none"), lambda current, total: None)


async def test_a_build_s_base_image_comes_with_the_build_s_login(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.user = ("user", "secret")
    logins = {"other.example": {"username": "x"}, registry.address: {"username": "user", "password": "secret"}}
    lines: list[object] = []
    place = FromRegistry(node.puller)
    found = await place.pull(f"{registry.address}/app:v1", platform="", credentials=logins, listener=lines.append)
    assert found.id == image.config
    assert lines
    with pytest.raises(RegistryError, match="no basic auth credentials"):
        await place.pull(f"{registry.address}/app:v2", platform="", credentials={}, listener=lines.append)
