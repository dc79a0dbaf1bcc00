"""A node's images as a registry: what the distribution spec says, what skopeo does with it, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from covey.clock import SystemClock
from covey.errors import InvalidArgument
from covey.testing import images as made
from worker.containers.events import EventBus
from worker.images.store import ImageStore
from worker.registry import listen, pending

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["errors"][0]["code"])


def layer(name: str = "file", size: int = 50_000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.uid, info.gid, info.size = os.getuid(), os.getgid(), size
        archive.addfile(info, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


class Clock(SystemClock):
    """The machine's, and as much ahead as a test says."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Node:
    """A store, and its registry while ``serving``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ImageStore(root / "images")
        self.events = EventBus(SystemClock())
        self.port = 0
        self.clock = Clock()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Node]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        async with listen.serving(f"127.0.0.1:{self.port}", self.store, self.events, self.clock):
            yield self

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        def exchange() -> Reply:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
                answer = connection.getresponse()
                fields = {name.lower(): value for name, value in answer.getheaders()}
                return Reply(answer.status, fields, answer.read())
            finally:
                connection.close()

        return await asyncio.to_thread(exchange)

    def load(self, name: str) -> None:
        self.store.load_archive(io.BytesIO(made.docker_archive(name, [layer()])))

    async def push_blob(self, data: bytes, repository: str = "app") -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        begun = await self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert begun.status == 202
        done = await self.ask("PUT", f"{begun.headers['location']}?digest={digest}", data)
        assert done.status == 201, done
        return digest

    async def image(self, architecture: str = "") -> tuple[dict[str, Any], list[bytes]]:
        """A manifest and its blobs (config, layer), not pushed; of this machine's architecture unless named."""
        data = layer()
        rootfs = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest()]}
        document = {"architecture": architecture or made.architecture(), "os": "linux", "config": {}, "rootfs": rootfs}
        config = json.dumps(document).encode()
        described = [
            {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(one).hexdigest(), "size": len(one)}
            for kind, one in (
                ("application/vnd.oci.image.config.v1+json", config),
                ("application/vnd.oci.image.layer.v1.tar", data),
            )
        ]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        return manifest, [config, data]


Test = Callable[[Node], Awaitable[None]]


def on_node(test: Test) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        async def main() -> None:
            async with Node(tmp_path).serving() as node:
                await test(node)

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


@on_node
async def test_what_is_pushed_is_an_image_of_the_node_and_can_be_pulled(node: Node) -> None:
    document, blobs = await node.image()
    for data in blobs:
        await node.push_blob(data)
    body = json.dumps(document).encode()
    put = await node.ask("PUT", "/v2/app/manifests/1", body, Content_Type=MANIFEST)
    assert put.status == 201, put
    digest = put.headers["docker-content-digest"]
    image = node.store.resolve("app:1")
    assert image.manifest_digest == digest
    for wanted in ("1", digest):
        got = await node.ask("GET", f"/v2/app/manifests/{wanted}")
        assert (got.body, got.headers["content-type"], got.headers["docker-content-digest"]) == (body, MANIFEST, digest)
        head = await node.ask("HEAD", f"/v2/app/manifests/{wanted}")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(body)))
    path = f"/v2/app/blobs/{image.layers[0].digest}"
    assert (await node.ask("GET", path)).body == blobs[1]
    part = await node.ask("GET", path, Range="bytes=100-")
    assert (part.status, part.body) == (206, blobs[1][100:])
    assert (await node.ask("HEAD", path)).headers["content-length"] == str(len(blobs[1]))
    assert json.loads((await node.ask("GET", "/v2/app/tags/list")).body) == {"name": "app", "tags": ["1"]}
    assert json.loads((await node.ask("GET", "/v2/_catalog")).body) == {"repositories": ["app"]}
    assert json.loads((await node.ask("GET", f"/v2/app/referrers/{digest}")).body)["manifests"] == []
    assert (await node.ask("GET", "/v2/")).headers["docker-distribution-api-version"] == "registry/2.0"
    node.store.collect()
    assert node.store.resolve("app:1") == image


@on_node
async def test_an_upload_may_come_in_pieces_and_go_on_after_a_break(node: Node) -> None:
    data = os.urandom(100_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begun = await node.ask("POST", "/v2/app/blobs/uploads/")
    place = begun.headers["location"]
    first = await node.ask("PATCH", place, data[:40_000], Content_Range="0-39999")
    assert (first.status, first.headers["range"]) == (202, "0-39999")
    assert (await node.ask("PATCH", place, b"x", Content_Range="50000-50000")).status == 416
    assert (await node.ask("GET", place)).headers["range"] == "0-39999"
    assert (await node.ask("PATCH", place, data[40_000:])).headers["range"] == "0-99999"
    assert (await node.ask("PUT", f"{place}?digest={digest}")).status == 201
    assert node.store.content.read(digest) == data
    assert (await node.ask("GET", place)).code == "BLOB_UPLOAD_UNKNOWN"
    mounted = await node.ask("POST", f"/v2/other/blobs/uploads/?mount={digest}&from=app")
    assert mounted.status == 201
    whole = await node.ask("POST", f"/v2/app/blobs/uploads/?digest={digest}", data)
    assert whole.status == 201


@on_node
async def test_wrong_bytes_and_cancelled_uploads_leave_nothing(node: Node) -> None:
    wrong = "sha256:" + "0" * 64
    begun = await node.ask("POST", "/v2/app/blobs/uploads/")
    refused = await node.ask("PUT", f"{begun.headers['location']}?digest={wrong}", b"data")
    assert (refused.status, refused.code) == (400, "DIGEST_INVALID")
    begun = await node.ask("POST", "/v2/app/blobs/uploads/")
    assert (await node.ask("DELETE", begun.headers["location"])).status == 204
    for digest in ("", "sha256:xyz", "md5:0", "../../etc/passwd"):
        begun = await node.ask("POST", "/v2/app/blobs/uploads/")
        assert (await node.ask("PUT", f"{begun.headers['location']}?digest={digest}", b"data")).code == "DIGEST_INVALID"
    assert not list((node.root / "registry").iterdir())
    assert not list((node.root / "images" / "blobs" / "sha256").iterdir())


@on_node
async def test_a_manifest_that_does_not_hold_is_refused_and_the_store_unchanged(node: Node) -> None:
    document, blobs = await node.image()
    body = json.dumps(document).encode()
    missing = await node.ask("PUT", "/v2/app/manifests/1", body, Content_Type=MANIFEST)
    assert (missing.status, missing.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    for data in blobs:
        await node.push_blob(data)
    bad: list[tuple[bytes, str]] = [
        (b"{", MANIFEST),
        (b"[]", MANIFEST),
        (b"[" * 100_000, MANIFEST),
        (json.dumps({"manifests": []}).encode(), MANIFEST),
        (body, "application/vnd.docker.distribution.manifest.v2+json"),
        (json.dumps({**document, "config": {"digest": "sha256:x"}}).encode(), MANIFEST),
        (json.dumps({**document, "layers": [7]}).encode(), MANIFEST),
        (json.dumps({**document, "layers": []}).encode(), MANIFEST),
        (json.dumps({**document, "config": document["layers"][0]}).encode(), MANIFEST),
    ]
    for data, kind in bad:
        refused = await node.ask("PUT", "/v2/app/manifests/1", data, Content_Type=kind)
        assert (refused.status, refused.code) == (400, "MANIFEST_INVALID"), (data[:60], refused)
    assert (await node.ask("PUT", "/v2/app/manifests/1", b" " * (4 << 20) + body, Content_Type=MANIFEST)).status == 413
    other = await node.ask("PUT", "/v2/app/manifests/sha256:" + "0" * 64, body, Content_Type=MANIFEST)
    assert other.code == "DIGEST_INVALID"
    assert node.store.list() == []
    assert (await node.ask("PUT", "/v2/app/manifests/1", body, Content_Type=MANIFEST)).status == 201


INDEX = "application/vnd.oci.image.index.v1+json"
OTHER = "riscv64"


async def push_manifest(node: Node, reference: str, document: Any, kind: str = MANIFEST) -> Reply:
    return await node.ask("PUT", f"/v2/app/manifests/{reference}", json.dumps(document).encode(), Content_Type=kind)


async def part(node: Node, architecture: str, document: dict[str, Any], blobs: list[bytes]) -> dict[str, Any]:
    """Push a manifest by its digest, as a part of an index; its entry there."""
    for data in blobs:
        await node.push_blob(data)
    body = json.dumps(document).encode()
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    assert (await push_manifest(node, digest, document)).status == 201
    platform = {"os": "linux", "architecture": architecture} if architecture else {"os": "unknown", "architecture": "unknown"}
    return {"mediaType": MANIFEST, "digest": digest, "size": len(body), "platform": platform}


def attestation() -> tuple[dict[str, Any], list[bytes]]:
    """What buildx puts beside an image: a manifest of which no container is made."""
    blobs = [b'{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":[]}}', b'{"_type":"in-toto"}']
    kinds = ("application/vnd.oci.image.config.v1+json", "application/vnd.in-toto+json")
    config, statement = (
        {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(one).hexdigest(), "size": len(one)}
        for kind, one in zip(kinds, blobs, strict=True)
    )
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [statement]}, blobs


@on_node
async def test_of_an_index_the_image_for_this_machine_is_kept(node: Node) -> None:
    own, other = await node.image(), await node.image(OTHER)
    entries = [
        await part(node, made.architecture(), *own),
        await part(node, OTHER, *other),
        await part(node, "", *attestation()),
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    done = await push_manifest(node, "1", index, INDEX)
    assert done.status == 201, done
    digest = "sha256:" + hashlib.sha256(json.dumps(index).encode()).hexdigest()
    assert done.headers["docker-content-digest"] == digest
    image = node.store.resolve("app:1")
    assert image.manifest_digest == entries[0]["digest"]
    assert f"app@{digest}" in image.repo_digests
    assert len(node.store.list()) == 1, "neither the other machine's nor the attestation"
    again = await node.ask("GET", "/v2/app/manifests/1")
    assert again.headers["docker-content-digest"] == entries[0]["digest"]
    node.clock.ahead += pending.IDLE + 1
    await node.ask("POST", "/v2/app/blobs/uploads/")
    node.store.collect()
    assert not node.store.content.has(entries[1]["digest"])
    assert list(node.store.fsck()) == []


@on_node
async def test_an_index_that_does_not_hold_is_refused(node: Node) -> None:
    other = await part(node, OTHER, *await node.image(OTHER))
    missing = {**other, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": made.architecture()}}
    for entries, status, code in (
        ([other], 400, "MANIFEST_INVALID"),
        ([], 400, "MANIFEST_INVALID"),
        ([other, missing], 404, "MANIFEST_BLOB_UNKNOWN"),
    ):
        refused = await push_manifest(node, "1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)
        assert (refused.status, refused.code) == (status, code), refused
    document, blobs = attestation()
    for data in blobs:
        await node.push_blob(data)
    assert (await push_manifest(node, "1", document)).code == "MANIFEST_INVALID", "no image, and nothing names it"
    assert node.store.list() == []


@on_node
async def test_what_is_not_there_or_not_done_is_said_with_the_spec_s_codes(node: Node) -> None:
    node.load("app:1")
    for method, path, status, code in (
        ("GET", "/v2/app/manifests/2", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/nosuch/manifests/1", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/app/manifests/sha256:" + "0" * 64, 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/app/blobs/sha256:" + "0" * 64, 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/nosuch/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/App/tags/list", 404, "NAME_INVALID"),
        ("GET", "/v2/../../etc/passwd", 404, "NAME_INVALID"),
        ("GET", "/v2/app/blobs/..", 404, "NAME_INVALID"),
        ("GET", "/images/json", 404, "NAME_INVALID"),
        ("DELETE", "/v2/app/manifests/1", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/app/blobs/uploads/" + "0" * 32, 404, "BLOB_UPLOAD_UNKNOWN"),
    ):
        reply = await node.ask(method, path)
        assert (reply.status, reply.code) == (status, code), (method, path, reply)
    blob = node.store.resolve("app:1").layers[0].digest
    for given in ("bytes=0-5", "bytes=999999999-", "lines=1-"):
        assert (await node.ask("GET", f"/v2/app/blobs/{blob}", Range=given)).code == "RANGE_INVALID"


@on_node
async def test_uploads_are_bounded_and_what_is_idle_too_long_goes(node: Node) -> None:
    first = await node.ask("POST", "/v2/app/blobs/uploads/")
    for _ in range(pending.UPLOADS - 1):
        assert (await node.ask("POST", "/v2/app/blobs/uploads/")).status == 202
    assert (await node.ask("POST", "/v2/app/blobs/uploads/")).status == 503
    node.clock.ahead += pending.IDLE + 1
    assert (await node.ask("GET", first.headers["location"])).status == 404
    digest = await node.push_blob(b"waits for a manifest")
    node.store.collect()
    assert node.store.content.has(digest)
    node.clock.ahead += pending.IDLE + 1
    assert (await node.ask("POST", "/v2/app/blobs/uploads/")).status == 202
    node.store.collect()
    assert not node.store.content.has(digest)
    assert len(list((node.root / "registry").iterdir())) == 1


@pytest.mark.parametrize(
    "given", ["0.0.0.0:5000", "192.0.2.1:5000", "[::]:5000", "example.org:5000", "5000x", "", "127.0.0.1:0"]
)
def test_only_a_loopback_address_will_do(given: str) -> None:
    with pytest.raises(InvalidArgument, match="--registry"):
        listen.address(given)


def test_a_port_alone_is_on_loopback() -> None:
    assert listen.address("5000") == ("127.0.0.1", 5000)
    assert listen.address("[::1]:5000") == ("::1", 5000)


@pytest.mark.suite
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed: apt-get install skopeo")
@pytest.mark.parametrize("form", [[], ["--format", "v2s2"], ["--format", "oci"]])
def test_skopeo_pushes_and_pulls(tmp_path: Path, form: list[str]) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(made.docker_archive("x:1", [layer("one", 3_000_000), layer("two")], {"Cmd": ["sh"]}))

    def skopeo(*words: str) -> str:
        done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @on_node
    async def run(node: Node) -> None:
        place = f"docker://127.0.0.1:{node.port}/team/app:1"
        insecure = ("--dest-tls-verify=false",)
        await asyncio.to_thread(skopeo, "copy", *form, *insecure, f"docker-archive:{archive}", place)
        image = node.store.resolve("team/app:1")
        assert len(image.layers) == 2
        shown = json.loads(await asyncio.to_thread(skopeo, "inspect", "--tls-verify=false", place))
        assert shown["Digest"] == image.manifest_digest
        target = tmp_path / "back"
        await asyncio.to_thread(skopeo, "copy", "--src-tls-verify=false", place, f"dir:{target}")
        manifest = (target / "manifest.json").read_bytes()
        assert "sha256:" + hashlib.sha256(manifest).hexdigest() == image.manifest_digest
        for one in image.layers:
            kept = (target / one.digest.removeprefix("sha256:")).read_bytes()
            assert "sha256:" + hashlib.sha256(kept).hexdigest() == one.digest

    run(tmp_path)


def oci_layout(root: Path, name: str, images: list[tuple[str, dict[str, Any], list[bytes]]]) -> None:
    """A directory in OCI layout with one index over ``images`` (architecture, manifest, blobs)."""
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(kind: str, data: bytes, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    entries = []
    for architecture, document, parts in images:
        for part in parts:
            put("", part)
        entries.append(put(MANIFEST, json.dumps(document).encode(), platform={"os": "linux", "architecture": architecture}))
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    named = put(INDEX, json.dumps(index).encode(), annotations={"org.opencontainers.image.ref.name": name})
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.mark.suite
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed: apt-get install skopeo")
def test_skopeo_pushes_an_index(tmp_path: Path) -> None:
    @on_node
    async def run(node: Node) -> None:
        images = [(one, *await node.image(one)) for one in (OTHER, made.architecture())]
        oci_layout(tmp_path / "layout", "x", images)
        place = f"docker://127.0.0.1:{node.port}/team/many:1"
        words = ("skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:x", place)
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert len(node.store.list()) == 1
        assert node.store.resolve("team/many:1").architecture == made.architecture()

    run(tmp_path / "node")
