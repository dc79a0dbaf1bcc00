"""The blob port over real TLS: blobs by digest, whole or from an offset on, for nodes of the cluster and nobody else."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from covey.clock import SystemClock
from covey.tls import Identity, client_context
from manager.ca.authority import make_identity
from worker.blobs import upload as rules
from worker.blobs.download import Direct, Fault, Wanted
from worker.blobs.port import BlobPort
from worker.blobs.traffic import Traffic
from worker.blobs.upload import Uploads
from worker.images.content import ContentStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripted_manager import CLUSTER, Authority

AUTHORITY = Authority()
SOURCE = AUTHORITY.identity("w1", "worker")
CLIENT = AUTHORITY.identity("w2", "worker")
BLOB = os.urandom(700_000)


class Node:
    """A content store with one blob, and its port."""

    def __init__(self, root: Path, rate: int = 0) -> None:
        self.content = ContentStore(root)
        with self.content.lease() as lease:
            self.digest = self.content.put(BLOB, lease).digest
        self.traffic = Traffic()
        self.uploads = Uploads(self.content, self.traffic, SystemClock(), rate)
        self.port = BlobPort(self.uploads, SOURCE, CLUSTER)
        self.address = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Node]:
        async with self.port.listen("127.0.0.1", 0) as number:
            self.address = f"127.0.0.1:{number}"
            yield self

    async def ask(self, request: str, identity: Identity | None = CLIENT, context: ssl.SSLContext | None = None) -> bytes:
        """The whole answer to a request's bytes."""
        if context is None:
            assert identity is not None
            context = client_context(identity)
        host, _, number = self.address.rpartition(":")
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, int(number), ssl=context)
            writer.write(request.encode())
            try:
                return await reader.read()
            finally:
                writer.close()

    async def status(self, request: str) -> int:
        return int((await self.ask(request)).split(b" ", 2)[1])

    def fetch(self, offset: int = 0, digest: str = "", size: int = len(BLOB), node_id: str = "w1") -> bytes:
        """As a haul does, in a thread."""
        body = Direct(self.address, client_context(CLIENT), Wanted(digest or self.digest, size, node_id, offset))
        try:
            return b"".join(iter(body.read, b""))
        finally:
            body.close()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def wait(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"not within 10 s: {what}"
        await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_a_node_of_the_cluster_gets_a_blob_whole_and_from_an_offset_on_and_it_is_counted(node: Node) -> None:
    async with node.open():
        assert await asyncio.to_thread(node.fetch) == BLOB
        assert await asyncio.to_thread(node.fetch, 123_456) == BLOB[123_456:]
        assert await asyncio.to_thread(node.fetch, len(BLOB) - 1) == BLOB[-1:]
        answer = await node.ask(f"GET /blobs/{node.digest} HTTP/1.1\r\nHost: x\r\nRange: bytes=699990-\r\n\r\n")
        await wait("every place is given back", lambda: node.uploads.statistics()["under_way"] == 0)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 206 ")
    assert b"Content-Range: bytes 699990-699999/700000" in head
    assert body == BLOB[-10:]
    sent = node.traffic.show()["Sent"]["ByDigest"][node.digest]
    assert sent == {"Blobs": 4, "Bytes": 2 * len(BLOB) - 123_456 + 11}
    assert node.port.statistics() == {"served": 4, "refused": 0, "connections": 0}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /blobs/sha256:{absent}", 404),
        ("GET /blobs/sha256:{short}", 404),
        ("GET /blobs/{digest}/", 404),
        ("GET /blobs/{digest}?x=1", 404),
        ("GET /blobs/../blobs/{digest}", 404),
        ("GET /blobs/sha256:../../index.json", 404),
        ("GET /blobs/sha256:%2e%2e%2f{hex}", 404),
        ("GET //blobs/{digest}", 404),
        ("GET /blobs/{upper}", 404),
        ("GET /blobs/sha512:{absent}{absent}", 404),
        ("GET /blobs/", 404),
        ("GET /", 404),
        ("GET /index.json", 404),
        ("GET /v1.52/images/json", 404),
        ("GET /containers/json", 404),
        ("POST /containers/create", 404),
        ("GET http://127.0.0.1/blobs/{digest}", 404),
        ("HEAD /blobs/{digest}", 405),
        ("PUT /blobs/{digest}", 405),
        ("DELETE /blobs/{digest}", 405),
        ("POST /blobs/{digest}", 405),
        ("GET /blobs/{digest} x", 400),
        ("nonsense", 400),
    ],
)
async def test_nothing_but_a_blob_by_its_digest_is_answered(node: Node, request_line: str, status: int) -> None:
    hexadecimal = node.digest.removeprefix("sha256:")
    line = request_line.format(digest=node.digest, hex=hexadecimal, absent="0" * 64, short="0" * 63, upper=f"sha256:{'A' * 64}")
    async with node.open():
        answer = await node.ask(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
        assert BLOB[:100] not in answer
        assert await asyncio.to_thread(node.fetch) == BLOB, "the port goes on"
    assert (node.content.path(node.digest)).read_bytes() == BLOB


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "field",
    [
        "bytes=700001-",
        "bytes=0-5",
        "bytes=-5",
        "bytes=5-2",
        "bytes=0-,5-",
        "lines=1-",
        "bytes=99999999999999999999-",
        "bytes=x-",
    ],
)
async def test_only_ranges_from_an_offset_to_the_end_are_given(node: Node, field: str) -> None:
    async with node.open():
        assert await node.status(f"GET /blobs/{node.digest} HTTP/1.1\r\nRange: {field}\r\n\r\n") == 416


@pytest.mark.asyncio
async def test_a_link_in_the_store_is_not_followed_out_of_it_by_a_digest(node: Node) -> None:
    """Only what lies under its own digest is a blob; nothing else in the directory has a name that can be asked for."""
    (node.content.path(node.digest).parent / "notes").write_text("secret")
    async with node.open():
        for name in ("notes", "sha256:notes"):
            assert await node.status(f"GET /blobs/{name} HTTP/1.1\r\n\r\n") == 404


@pytest.mark.asyncio
async def test_a_certificate_of_another_cluster_none_at_all_or_an_older_protocol_gets_nothing(node: Node) -> None:
    stranger = AUTHORITY.stranger()
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with_stranger = client_context(Identity(stranger.key_pem, stranger.certificate_pem, CLIENT.ca_pem))
    old = client_context(CLIENT)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    # Signed by our root, for a cluster of another name.
    renamed = client_context(make_identity(AUTHORITY.key, AUTHORITY.certificate, "w9", "worker", "other", time.time()))
    async with node.open():
        request = f"GET /blobs/{node.digest} HTTP/1.1\r\n\r\n"
        for context in (anonymous, with_stranger, old):
            try:
                came = await node.ask(request, context=context)
            except OSError:
                came = b""
            assert not came
        assert (await node.ask(request, context=renamed)).startswith(b"HTTP/1.1 403 ")
        assert node.traffic.show()["Sent"]["Bytes"] == 0
        assert await asyncio.to_thread(node.fetch) == BLOB


@pytest.mark.asyncio
async def test_a_client_refuses_a_source_that_is_not_who_it_should_be(node: Node) -> None:
    async with node.open():
        with pytest.raises(Fault) as refused:
            await asyncio.to_thread(node.fetch, 0, "", len(BLOB), "w7")
        assert refused.value.kind == "unreachable"
        with pytest.raises(Fault) as refused:
            await asyncio.to_thread(node.fetch, 0, "sha256:" + "0" * 64)
        assert refused.value.kind == "gone"
        with pytest.raises(Fault) as refused:
            await asyncio.to_thread(node.fetch, 0, "", len(BLOB) + 1)
        assert refused.value.kind == "corrupt"
    with pytest.raises(Fault) as refused:
        await asyncio.to_thread(node.fetch)
    assert refused.value.kind == "unreachable"


@pytest.mark.suite
@pytest.mark.asyncio
async def test_uploads_at_once_are_bounded_and_a_client_that_goes_gives_its_place_back(tmp_path: Path) -> None:
    node = Node(tmp_path, rate=200_000)
    async with node.open():
        host, _, number = node.address.rpartition(":")
        writers = []
        for _ in range(rules.AT_ONCE):
            _, writer = await asyncio.open_connection(host, int(number), ssl=client_context(CLIENT))
            writer.write(f"GET /blobs/{node.digest} HTTP/1.1\r\n\r\n".encode())
            writers.append(writer)
        await wait("all are being served", lambda: node.uploads.statistics()["under_way"] == rules.AT_ONCE)
        assert await node.status(f"GET /blobs/{node.digest} HTTP/1.1\r\n\r\n") == 503
        for writer in writers:
            writer.transport.abort()
        await wait("the places are free", lambda: node.uploads.statistics()["under_way"] == 0)
        assert (await node.ask(f"GET /blobs/{node.digest} HTTP/1.1\r\nRange: bytes=699000-\r\n\r\n")).endswith(BLOB[-1000:])


@pytest.mark.asyncio
async def test_the_rate_bounds_all_uploads_together(tmp_path: Path) -> None:
    node = Node(tmp_path, rate=2_000_000)
    async with node.open():
        began = time.monotonic()
        both = await asyncio.gather(asyncio.to_thread(node.fetch), asyncio.to_thread(node.fetch))
        assert time.monotonic() - began >= 2 * len(BLOB) / 2_000_000 * 0.9
    assert both == [BLOB, BLOB]


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_said_so(node: Node) -> None:
    async with node.open():
        with pytest.raises(Exception, match="choose another --blob-port"):
            async with BlobPort(node.uploads, SOURCE, CLUSTER).listen("127.0.0.1", int(node.address.rpartition(":")[2])):
                pass
