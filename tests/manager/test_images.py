"""Images as a manager serves them: over sessions, as a relay between nodes, and the route that brings one to all nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_worker import FakeWorker, Wire, dial
from harness import Cluster, wait_until

from covey.errors import CoveyError, InvalidArgument, NotFound, Unauthorized
from covey.tls import client_context, pinning_context
from covey.wire.messages import (
    BlobEnded,
    BlobRelay,
    BlobRelayed,
    BlobSource,
    BlobWanted,
    HeldImage,
    ImageOffer,
    ImagesHeld,
    ImageWanted,
)
from worker.blobs.download import Fault, Relayed, Wanted

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]

BLOB = bytes(range(256)) * 1000
DIGEST = "sha256:" + "a" * 64
IMAGE = HeldImage(manifest="sha256:" + "b" * 64, size=7, id=DIGEST, names=("docker.io/library/thing:1",), blobs=(DIGEST,))


class Node:
    """What a worker answers on its own Engine API, when a manager dials."""

    def __init__(self, receives: bool = True) -> None:
        self.asked: list[str] = []
        self.receives = receives

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = head.split("\r\n")[0]
        self.asked.append(line)
        length = next((int(field.split(":")[1]) for field in head.split("\r\n") if field.startswith("Content-Length")), 0)
        body = await reader.readexactly(length)
        if "/covey/images/receive" in line:
            self.asked.append(body.decode())
            lines = [{"status": "Receiving", "progressDetail": {"current": 1, "total": 2}}]
            lines.append({"status": "Received", "id": DIGEST} if self.receives else {"error": "no room on its disk"})
            self._answer(writer, "200 OK", b"".join(json.dumps(one).encode() + b"\r\n" for one in lines))
        elif DIGEST in line:
            offset = int(line.partition("offset=")[2].split(" ")[0] or 0)
            self._answer(writer, "200 OK", BLOB[offset:])
        else:
            self._answer(writer, "404 Not Found", b'{"message": "No such blob"}')
        await writer.drain()

    def _answer(self, writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )


async def say(worker: FakeWorker, *messages: Any) -> None:
    assert worker._wire is not None
    for message in messages:
        await worker._wire.send(message)


async def told(worker: FakeWorker, kind: type, count: int = 1) -> Any:
    """The ``count``th message of a kind that the worker was told."""

    async def came() -> Any:
        found = [message for message in worker.messages if isinstance(message, kind)]
        return found[count - 1] if len(found) >= count else None

    return await wait_until(f"{kind.__name__} {count}", came)


async def relay(cluster: Cluster, worker: FakeWorker, asked: BlobRelay) -> bytes:
    """A blob through the manager, as a node fetches it."""

    def fetch() -> bytes:
        wanted = Wanted(asked.digest, len(BLOB), asked.node_id, asked.offset)
        body = Relayed(cluster.address, client_context(worker.identity), wanted, "test")
        try:
            return b"".join(iter(body.read, b""))
        finally:
            body.close()

    return await asyncio.to_thread(fetch)


@asynccontextmanager
async def two(cluster: Cluster) -> AsyncIterator[tuple[FakeWorker, FakeWorker, Node]]:
    """A worker that has the image and one that has not; what the first answers to a dial-back."""
    async with cluster.workers(2) as (source, target):
        node = Node()
        source.serve = node.serve
        await say(source, ImagesHeld(complete=True, images=(IMAGE,)))
        yield source, target, node


async def test_a_node_asks_and_is_told_and_what_it_has_received_it_gives_to_others(cluster: Cluster) -> None:
    async with two(cluster) as (source, target, _):
        await say(target, ImagesHeld(complete=True), ImageWanted(request=3, image="docker.io/library/thing:1"))
        offer = await told(target, ImageOffer)
        assert (offer.request, offer.manifest, offer.size) == (3, IMAGE.manifest, 7)
        await say(target, BlobWanted(digest=DIGEST, size=len(BLOB)))
        # Neither has a blob port.
        assert await told(target, BlobSource) == BlobSource(digest=DIGEST, node_id=source.node_id)
        await say(target, BlobEnded(digest=DIGEST, node_id=source.node_id))

        async def counted() -> bool:
            return bool((await cluster.client.call("covey_statistics"))["images"]["relayed"] == 1)

        await wait_until("the transfer is counted", counted)
        source.hang_up()
        await wait_until("the source has a new session", lambda: _is(source.sessions == 2))
        statistics = (await cluster.client.call("covey_statistics"))["images"]
        assert statistics["blobs"] == 1, "what the source said was said in another session"


async def _is(value: bool) -> bool:
    return value


async def test_a_blob_goes_through_the_manager_from_an_offset_on_and_is_counted(cluster: Cluster) -> None:
    async with two(cluster) as (source, target, node):
        assert await relay(cluster, target, BlobRelay(digest=DIGEST, node_id=source.node_id)) == BLOB
        offset = len(BLOB) - 10
        assert await relay(cluster, target, BlobRelay(digest=DIGEST, node_id=source.node_id, offset=offset)) == BLOB[-10:]
        assert [line.partition("?")[2] for line in node.asked] == ["offset=0 HTTP/1.1", f"offset={offset} HTTP/1.1"]
        carried = (await cluster.client.call("covey_statistics"))["relay"]
        assert carried == {"blobs": 2, "bytes": len(BLOB) + 10, "refused": 0, "under_way": 0}


async def test_what_cannot_be_passed_on_is_refused_in_words(cluster: Cluster) -> None:
    async with two(cluster) as (source, target, _):
        with pytest.raises(Fault, match="No such blob") as refused:
            await relay(cluster, target, BlobRelay(digest="sha256:" + "c" * 64, node_id=source.node_id))
        assert refused.value.kind == "gone"
        with pytest.raises(Fault, match="is not connected") as refused:
            await relay(cluster, target, BlobRelay(digest=DIGEST, node_id="nobody"))
        assert refused.value.kind == "broken"
        with pytest.raises(Unauthorized, match="needs a certificate"):
            await dial(cluster.address, pinning_context(), "blob")
        wire, _ = await dial(cluster.address, client_context(target.identity), "blob")
        await wire.send(ImagesHeld(complete=True))
        with pytest.raises(InvalidArgument, match="BlobRelay was due"):
            await _refusal(wire)
    assert (await cluster.client.call("covey_statistics"))["relay"]["blobs"] == 0


async def _refusal(wire: Wire) -> None:
    await wire.expect(BlobRelayed)


async def distribute(cluster: Cluster, **body: Any) -> list[dict[str, Any]]:
    async with cluster.client.stream("covey_image_distribute", json=body) as response:
        return [line async for line in response.lines()]


async def test_an_image_is_brought_to_the_nodes_and_who_does_not_get_it_is_named(cluster: Cluster) -> None:
    async with two(cluster) as (source, target, node):
        target.serve = Node(receives=False).serve
        *steps, outcome = await distribute(cluster, Name="thing:1")
        assert outcome == {
            "Received": ["w0"],
            "Failed": {"w1": "no room on its disk", "fake": outcome["Failed"].get("fake")},
        } or (outcome["Received"] == ["w0"] and outcome["Failed"]["w1"] == "no room on its disk")
        assert {"node": "w0", "status": "Received", "id": DIGEST} in steps
        asked = json.loads(node.asked[-1])
        assert asked == {"Manifest": IMAGE.manifest, "Names": ["docker.io/library/thing:1"]}
        *_, outcome = await distribute(cluster, Name="thing:1", Nodes=[source.node_id])
        assert outcome == {"Received": ["w0"], "Failed": {}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Name is missing"),
        ({"Name": 7}, "Name is missing"),
        ({"Name": "x", "Nodes": "w1"}, "Nodes a list"),
        ({"Name": "x", "Nodes": [7]}, "Nodes a list"),
        ({"Name": "x", "Id": 7}, "Id is a string"),
        ({"Name": "x", "Nodes": ["nosuch"]}, "node nosuch not found"),
    ],
)
async def test_a_bad_request_is_refused(cluster: Cluster, body: dict[str, Any], words: str) -> None:
    with pytest.raises(CoveyError, match=words):
        await distribute(cluster, **body)


async def test_an_image_nobody_has_is_refused_after_a_while(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manager.routes.images.ANNOUNCED_SECONDS", 0.1)
    async with two(cluster):
        with pytest.raises(NotFound, match="No such image: thing:2 on any node"):
            await distribute(cluster, Name="thing:2")
        with pytest.raises(NotFound, match="No such image"):
            await distribute(cluster, Name="thing:1", Id="sha256:" + "d" * 64)
