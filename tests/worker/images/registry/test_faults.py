"""Registries and lines that fail in the middle of a pull: a clear error, the store as it was, nothing left on the way in."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from covey.credentials import Credentials
from covey.errors import CoveyError, NotFound
from worker.images.content import BadDigest
from worker.images.disk import DiskFull
from worker.images.manifests import BadManifest
from worker.images.registry.errors import Refused, Unreachable, Unsound

from .conftest import Node
from .scripted import Asked, Made, ScriptedRegistry, cut, digest_of, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]

Rule = Callable[[Asked], bool]


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Script:
    """Faults for the requests ``rule`` means, one after another; ``None`` lets one through. The last goes on for ever."""

    def __init__(self, rule: Rule, *faults: Any) -> None:
        self.rule, self.faults, self.count = rule, list(faults), 0

    async def __call__(self, asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if not self.rule(asked):
            return None
        self.count += 1
        fault = self.faults[min(self.count, len(self.faults)) - 1]
        if fault is None or isinstance(fault, web.StreamResponse):
            return fault  # type: ignore[return-value]
        return await fault(asked, request)  # type: ignore[no-any-return]


def blobs(asked: Asked) -> bool:
    return bool(asked.blob)


def answer(status: int, **headers: str) -> Callable[[Asked, web.Request], Any]:
    async def give(asked: Asked, request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text="the registry is not well", headers=named)

    return give


def cut_at(data: bytes, at: int) -> Callable[[Asked, web.Request], Any]:
    async def give(asked: Asked, request: web.Request) -> web.StreamResponse:
        return await cut(request, data, at)

    return give


async def silence(asked: Asked, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("the client should have gone")


async def hang_up(asked: Asked, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.fixture
def image(registry: ScriptedRegistry) -> Made:
    found = made({"small": b"1"}, {"noise": noise(200_000)})
    registry.add("app", "v1", found)
    return found


async def refused(
    node: Node, registry: ScriptedRegistry, kind: type[Exception], words: str | None = None, **how: Any
) -> CoveyError:
    """Pulls ``app:v1``, which must fail so and leave the store as it was."""
    before, images = node.files(), node.store.list()
    with pytest.raises(kind, match=words) as caught:
        await node.pull(f"{registry.address}/app:v1", **how)
    assert node.files() == before
    assert node.store.list() == images
    assert not list((node.data / "images" / "ingest").iterdir())
    assert node.puller.statistics() == {"downloads": 0, "waiting": 0}
    assert isinstance(caught.value, CoveyError)
    return caught.value


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_registry_that_recovers_is_waited_for(registry: ScriptedRegistry, node: Node, image: Made, status: int) -> None:
    for rule in (blobs, lambda asked: "/manifests/" in asked.path):
        registry.fault = Script(rule, *[answer(status)] * 4, None)
        await node.pull(f"{registry.address}/app:v1")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_registry_that_does_not_recover_is_given_up(
    registry: ScriptedRegistry, node: Node, image: Made, status: int
) -> None:
    script = registry.fault = Script(lambda asked: asked.blob == image.layers[1], answer(status))
    error = await refused(node, registry, Refused, f"answered with status {status}")
    assert image.layers[1] in error.message
    assert script.count == 5


async def test_what_the_registry_asks_to_wait_is_waited(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.fault = Script(lambda asked: "/manifests/" in asked.path, answer(429, Retry_After="1"), None)
    begun = time.monotonic()
    await node.pull(f"{registry.address}/app:v1")
    assert time.monotonic() - begun >= 0.05, "Retry-After was not heeded (the test's longest wait is 0.05 s)"


@pytest.mark.parametrize("status", [400, 403, 404, 410])
async def test_what_will_not_get_better_is_asked_once(registry: ScriptedRegistry, node: Node, image: Made, status: int) -> None:
    script = registry.fault = Script(lambda asked: asked.blob == image.layers[0], answer(status))
    await refused(node, registry, CoveyError)
    assert script.count == 1


async def test_a_registry_that_is_down_is_named(registry: ScriptedRegistry, node: Node) -> None:
    with pytest.raises(Unreachable, match=r'Get "http://127.0.0.1:1/v2/.*": dial tcp 127.0.0.1:1: connect: connection refused'):
        await node.pull("127.0.0.1:1/app:v1")


async def test_a_name_nobody_knows_is_named(node: Node) -> None:
    with pytest.raises(Unreachable, match=r"lookup registry\.invalid"):
        await node.pull("registry.invalid/app:v1")


async def test_a_silent_registry_is_given_up(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.fault = Script(lambda asked: "/manifests/" in asked.path, silence)
    await refused(node, registry, Unreachable, "Client.Timeout exceeded")


async def test_silence_in_the_middle_of_a_layer_is_a_cut(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    data = image.blobs[image.layers[1]]

    async def stall(asked: Asked, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:1000])
        await asyncio.sleep(60)
        return response

    registry.fault = Script(lambda asked: asked.blob == image.layers[1], stall, None)
    await node.pull(f"{registry.address}/app:v1")
    assert registry.of("GET", image.layers[1])[1].headers["Range"] == "bytes=1000-"


async def test_a_cut_layer_goes_on_where_it_was_cut(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    data = image.blobs[image.layers[1]]
    registry.fault = Script(lambda asked: asked.blob == image.layers[1], cut_at(data, 70_000), None)
    await node.pull(f"{registry.address}/app:v1")
    first, second = registry.of("GET", image.layers[1])
    assert ("Range" not in first.headers, second.headers["Range"]) == (True, "bytes=70000-")


async def test_a_registry_without_ranges_begins_anew(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.ranges = False
    data = image.blobs[image.layers[1]]
    registry.fault = Script(lambda asked: asked.blob == image.layers[1], cut_at(data, 70_000), None)
    assert (await node.pull(f"{registry.address}/app:v1")).image.id == image.config


async def test_a_line_that_is_cut_again_and_again_gets_there(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    """Attempts count anew when there was progress: a bad line is slow, not hopeless."""
    data = image.blobs[image.layers[1]]

    async def a_little(asked: Asked, request: web.Request) -> web.StreamResponse:
        start = int(asked.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return await cut(request, data[start:], 20_000, 206 if start else 200, headers if start else None)

    registry.fault = Script(lambda asked: asked.blob == image.layers[1], a_little)
    assert (await node.pull(f"{registry.address}/app:v1")).image.id == image.config
    assert len(registry.of("GET", image.layers[1])) > 9


async def test_a_line_that_gives_nothing_is_given_up(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    script = registry.fault = Script(lambda asked: asked.blob == image.layers[1], hang_up)
    await refused(node, registry, Unreachable, "EOF")
    # The HTTP client asks again by itself when a connection it had kept turns out to be dead.
    assert 5 <= script.count <= 10


async def test_other_bytes_than_the_digest_says_are_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    data = bytearray(image.blobs[image.layers[1]])
    data[len(data) // 2] ^= 1
    registry.repository("app").blobs[image.layers[1]] = bytes(data)
    error = await refused(node, registry, BadDigest, "fetch it again")
    assert image.layers[1] in error.message


async def test_a_config_that_is_not_its_digest_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.repository("app").blobs[image.config] = image.blobs[image.config][:-1] + b" "
    await refused(node, registry, BadDigest)


async def test_a_manifest_that_is_not_its_digest_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.repository("app").manifests[image.digest] = (image.media_type, image.manifest + b" ")
    with pytest.raises(Unsound, match="was damaged on the way"):
        await node.pull(f"{registry.address}/app@{image.digest}")
    await refused(node, registry, Unsound, "was damaged on the way")


async def test_a_truncated_blob_is_refused_at_its_head(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.repository("app").blobs[image.layers[1]] = image.blobs[image.layers[1]][:1000]
    await refused(node, registry, Unsound, "has 1000 bytes at the registry, not .* as its manifest says")


async def test_a_longer_blob_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    registry.repository("app").blobs[image.layers[1]] += b"more"
    await refused(node, registry, Unsound, "as its manifest says")


async def test_a_blob_without_end_is_cut_off(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    """Without a Content-Length nothing tells but the bytes: no more are taken than the manifest announces."""
    sent = 0

    async def endless(asked: Asked, request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while sent < 1 << 30:
            await response.write(b"x" * 65536)
            sent += 65536
        return response

    registry.fault = Script(lambda asked: asked.blob == image.layers[1], endless)
    await refused(node, registry, BadDigest, "longer than the")
    assert sent < 64 << 20


async def test_a_chunked_blob_that_ends_early_is_a_cut(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    data = image.blobs[image.layers[1]]

    async def early(asked: Asked, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(data[:500])
        return response

    registry.fault = Script(lambda asked: asked.blob == image.layers[1], early, None)
    await node.pull(f"{registry.address}/app:v1")
    assert registry.of("GET", image.layers[1])[1].headers["Range"] == "bytes=500-"


async def test_a_range_that_was_not_asked_for_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    data = image.blobs[image.layers[1]]

    async def another(asked: Asked, request: web.Request) -> web.StreamResponse:
        return web.Response(status=206, body=data[10:], headers={"Content-Range": f"bytes 10-{len(data) - 1}/{len(data)}"})

    registry.fault = Script(lambda asked: asked.blob == image.layers[1], cut_at(data, 1000), another)
    await refused(node, registry, Unsound, "asked for bytes from 1000 on")


async def test_a_packed_answer_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    async def packed(asked: Asked, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})

    registry.fault = Script(blobs, packed)
    await refused(node, registry, Unsound, "which nobody asked for")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"manifests": []}, "ambiguous"),
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "has no manifests"),
        (
            {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest_of(b""), "size": 0}},
            "artifact",
        ),
    ],
)
async def test_a_confused_manifest_is_refused(
    registry: ScriptedRegistry, node: Node, change: dict[str, Any], words: str
) -> None:
    registry.add("app", "v1", made(**change))
    repository = registry.repository("app")
    found = repository.manifests[repository.tags["v1"]]
    repository.manifests[repository.tags["v1"]] = ("", found[1])
    await refused(node, registry, BadManifest, words)
    assert not registry.of("GET", "/blobs/")


async def test_a_manifest_without_end_is_cut_off(registry: ScriptedRegistry, node: Node) -> None:
    big = made(annotations={"x": "y" * (5 << 20)})
    registry.add("app", "v1", big)
    await refused(node, registry, Unsound, "more than the 4194304 bytes")


async def test_a_manifest_that_lies_about_a_size_is_refused(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    document = json.loads(image.manifest)
    document["layers"][1]["size"] += 1
    registry.add("app", "v1", Made(json.dumps(document).encode(), image.blobs, image.layers, image.config))
    await refused(node, registry, Unsound, "as its manifest says")


async def test_a_config_for_other_layers_is_refused(registry: ScriptedRegistry, node: Node) -> None:
    one, two = made({"a": b"1"}), made({"b": b"2"})
    document = {**json.loads(one.manifest), "layers": json.loads(two.manifest)["layers"]}
    registry.add("app", "v1", Made(json.dumps(document).encode(), {**one.blobs, **two.blobs}, two.layers, one.config))
    await refused(node, registry, BadDigest, "diff id")


async def test_a_layer_that_is_no_archive_is_refused(registry: ScriptedRegistry, node: Node) -> None:
    fine = made({"a": b"1"})
    junk = noise(1000)
    document = json.loads(fine.manifest)
    document["layers"][0] = {**document["layers"][0], "digest": digest_of(junk), "size": len(junk)}
    registry.add("app", "v1", Made(json.dumps(document).encode(), {**fine.blobs, digest_of(junk): junk}, [], fine.config))
    await refused(node, registry, CoveyError)


async def test_a_foreign_layer_is_taken_from_its_registry_or_not_at_all(registry: ScriptedRegistry, node: Node) -> None:
    """Its address is never asked: a manifest must not send us, or our login, anywhere."""
    fine = made({"a": b"1"})
    async with ScriptedRegistry() as elsewhere:
        document = json.loads(fine.manifest)
        document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        document["layers"][0]["urls"] = [f"http://{elsewhere.address}/v2/app/blobs/{fine.layers[0]}"]
        foreign = Made(json.dumps(document).encode(), fine.blobs, fine.layers, fine.config)
        registry.add("app", "v1", foreign)
        elsewhere.add("app", "v1", fine)
        held = registry.repository("app").blobs.pop(fine.layers[0])
        await refused(node, registry, CoveyError, "is foreign: it lies at http://127.0.0.1", auth=Credentials("user", "secret"))
        assert elsewhere.asked == []
        registry.repository("app").blobs[fine.layers[0]] = held
        await node.pull(f"{registry.address}/app:v1")


async def test_a_token_that_runs_out_in_the_middle_is_renewed(
    registry: ScriptedRegistry, node: Node, image: Made, credentials: Credentials
) -> None:
    registry.user = ("user", "secret")
    registry.want_tokens()
    data = image.blobs[image.layers[1]]

    async def cut_and_forget(asked: Asked, request: web.Request) -> web.StreamResponse:
        assert registry.tokens is not None
        registry.tokens.clear()
        return await cut(request, data, 50_000)

    admitted = Script(lambda asked: asked.blob == image.layers[1] and "Authorization" in asked.headers, cut_and_forget, None)
    registry.fault = admitted
    pulled = await node.pull(f"{registry.address}/app:v1", auth=credentials)
    assert pulled.image.id == image.config
    assert len(registry.of("GET", "/token")) >= 2


async def test_a_full_disk_is_named_and_nothing_stays(
    registry: ScriptedRegistry, node: Node, image: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, on a small tmpfs, is test_a_small_disk; here every write after the first fails as a full disk does."""
    real = os.fsync
    count = 0

    def full(fd: int) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr("worker.images.content.os.fsync", full)
    await refused(node, registry, DiskFull, "no space left on device; free space there")


@pytest.mark.root
async def test_a_small_disk(registry: ScriptedRegistry, tmp_path: Path) -> None:
    """Whatever fits and does not: the pull says that the disk is full, and all of it is free again."""
    import subprocess

    from worker.images.pull import Puller
    from worker.images.registry.access import Registries
    from worker.images.registry.endpoints import RegistryOptions
    from worker.images.store import ImageStore

    from .conftest import TIMING

    registry.add("app", "v1", made({"a": noise(300_000, 1)}, {"b": noise(300_000, 2)}, {"c": noise(300_000, 3)}))
    disk = tmp_path / "disk"
    disk.mkdir()
    outcomes = set()
    for kilobytes in (256, 512, 800, 1024, 1400, 4096):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=True, timeout=20)
        try:
            async with Registries(RegistryOptions(certificates=(), timing=TIMING)) as registries:
                store = ImageStore(disk / "images")
                puller = Puller(store, registries)
                node = Node.__new__(Node)
                node.data, node.store, node.puller, node.lines = disk, store, puller, []
                told: list[str] = []
                try:
                    await node.pull(f"{registry.address}/app:v1")
                except DiskFull as error:
                    told.append(error.message)
                finally:
                    puller.close()
                if told:
                    assert str(disk) in told[0]
                    assert node.files() == set()
                    assert store.list() == []
                outcomes.add("full" if told else "fits")
        finally:
            subprocess.run(["umount", str(disk)], check=True, timeout=20)
    assert outcomes == {"fits", "full"}


async def cut_once_at(registry: ScriptedRegistry, node: Node, image: Made, at: int) -> None:
    """A pull whose stream of answers' bytes, taken together, is cut at byte ``at``; the pull mends it, or a second one does."""
    passed = 0
    done = False

    async def count(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        nonlocal passed, done
        repository = registry.repository("app")
        data = repository.blobs.get(asked.blob) if asked.blob else image.manifest if "/manifests/" in asked.path else None
        if data is None or done or asked.headers.get("Range"):
            return None
        if passed + len(data) <= at:
            passed += len(data)
            return None
        done = True
        headers = {} if asked.blob else {"Content-Type": image.media_type, "Docker-Content-Digest": image.digest}
        return await cut(request, data, at - passed, headers=headers)

    registry.fault = count
    try:
        pulled = await node.pull(f"{registry.address}/app:v1")
    except (Unreachable, NotFound):
        assert node.files() == set(), f"cut at byte {at} left something"
        registry.fault = None
        pulled = await node.pull(f"{registry.address}/app:v1")
    assert done
    assert pulled.image.id == image.config
    node.store.remove(f"{registry.address}/app:v1", force=True)
    assert node.files() == set(), f"cut at byte {at}: something stays after the image is gone"


async def cut_at_random_bytes(registry: ScriptedRegistry, node: Node, image: Made, cuts: int) -> None:
    total = len(image.manifest) + sum(map(len, image.blobs.values()))
    seed = int(os.environ.get("COVEY_SEED", "20261127"))
    print(f"{cuts} cuts in {total} bytes, seed {seed}")
    chosen = random.Random(seed)
    for _ in range(cuts):
        await cut_once_at(registry, node, image, chosen.randrange(total))


async def test_a_pull_cut_at_random_bytes(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    await cut_at_random_bytes(registry, node, image, 25)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_pull_cut_at_a_thousand_random_bytes(registry: ScriptedRegistry, node: Node, image: Made) -> None:
    await cut_at_random_bytes(registry, node, image, 1000)
