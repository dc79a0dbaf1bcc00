"""Nodes with real stores and real blob ports in one process, and the manager's tracker between them."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from covey.clock import SystemClock
from covey.testing import images as made
from covey.tls import client_context
from covey.wire.messages import AnyMessage, BlobEnded, BlobWanted, ImagesHeld, ImageSought, ImageWanted
from manager.images.tracker import Tell, Tracker
from worker.agent import cluster_images as rules
from worker.agent.cluster_images import ClusterImages
from worker.images import reference
from worker.images.store import ImageStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripted_manager import CLUSTER, Authority

AUTHORITY = Authority()
NAME = "covey/thing:1"
KIB = 1024


def layer(name: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.uid, info.gid, info.size = os.getuid(), os.getgid(), size
        archive.addfile(info, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


class Node:
    """A node's store and its part in the cluster."""

    def __init__(self, cluster: Cluster, name: str, rate: int = 0, listen: str = "127.0.0.1:0") -> None:
        self.cluster, self.name = cluster, name
        self.root = cluster.root / name
        self.store = ImageStore(self.root / "images")
        self.images = ClusterImages(self.store, SystemClock(), "test", listen=listen, rate=rate)
        self._life = AsyncExitStack()
        self._port = AsyncExitStack()
        self._session: asyncio.Task[None] | None = None

    async def open(self) -> Node:
        await self._life.enter_async_context(self.images)
        await self.open_port()
        await self.connect()
        return self

    async def connect(self) -> None:
        self.cluster.joined(self)
        context = client_context(AUTHORITY.identity(self.name, "worker"))
        self._session = asyncio.create_task(self.images.converse(self.send, "127.0.0.1:1", context))
        await self.cluster.wait(f"{self.name} has said what it holds", lambda: self.name in self.cluster.said)

    async def send(self, message: AnyMessage) -> None:
        await self.cluster.hear(self, message)

    async def disconnect(self) -> None:
        assert self._session is not None
        self._session.cancel()
        with suppress(asyncio.CancelledError):
            await self._session
        self.cluster.left(self)

    async def close_port(self) -> None:
        await self._port.aclose()

    async def open_port(self) -> None:
        """Again, at another number: the manager hears of it with the next session."""
        await self._port.enter_async_context(self.images.serving(AUTHORITY.identity(self.name, "worker"), CLUSTER))

    async def close(self) -> None:
        await self.disconnect()
        await self.close_port()
        await self._life.aclose()

    def load(self, *layers: bytes, name: str = NAME) -> None:
        self.store.load_archive(io.BytesIO(made.docker_archive(name, layers)))
        self.images.changed()

    async def fetch(self, name: str = NAME, said: rules.Said = lambda current, total: None) -> Any:
        return await self.images.fetch(reference.parse_tagged(name), said)

    def received(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = self.images.traffic.show()["Received"]["ByDigest"]
        return found

    def files(self) -> set[str]:
        found = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        return found - {"images/index.json", "images/oci-layout"}

    def big(self, name: str = NAME) -> str:
        """The image's largest blob."""
        return max(self.store.resolve(name).layers, key=lambda one: one.blob_size).digest


class Cluster:
    """The tracker, and messages carried between it and the nodes as a manager does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tracker = Tracker()
        self.nodes: dict[str, Node] = {}
        self.said: set[str] = set()
        self.told: list[Tell] = []

    def joined(self, node: Node) -> None:
        self.nodes[node.name] = node
        port = node.images.blob_port
        self.say(self.tracker.join(node.name, f"127.0.0.1:{port}" if port else ""))

    def left(self, node: Node) -> None:
        self.nodes.pop(node.name, None)
        self.said.discard(node.name)
        self.say(self.tracker.leave(node.name, time.monotonic()))

    async def hear(self, node: Node, message: AnyMessage) -> None:
        now, tracker = time.monotonic(), self.tracker
        match message:
            case ImagesHeld():
                self.say(tracker.held(node.name, message, now))
                self.said.add(node.name)
            case ImageWanted():
                self.say(tracker.image_wanted(node.name, message, now))
            case ImageSought():
                self.say(tracker.image_sought(node.name, message, now))
            case BlobWanted():
                self.say(tracker.blob_wanted(node.name, message, now))
            case BlobEnded():
                self.say(tracker.ended(node.name, message, now))

    def say(self, told: list[Tell]) -> None:
        for tell in told:
            self.told.append(tell)
            if (node := self.nodes.get(tell.node_id)) is not None:
                self._tasks.create_task(node.images.heard(tell.message))

    async def advance(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.say(self.tracker.advance(time.monotonic()))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as self._tasks:
            advancing = self._tasks.create_task(self.advance())
            yield
            for node in list(self.nodes.values()):
                await node.close()
            advancing.cancel()

    async def node(self, name: str, **more: Any) -> Node:
        return await Node(self, name, **more).open()

    async def holds(self, node: Node, name: str = NAME) -> None:
        full = str(reference.parse_tagged(name))
        await self.wait(
            f"{node.name} has announced {name}",
            lambda: any(who == node.name and full in image.names for who, image in self.tracker.catalogue.images()),
        )

    async def wait(self, what: str, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, f"not within 10 s: {what}; {self.tracker.statistics()}, {self.told[-5:]}"
            await asyncio.sleep(0.005)


Test = Callable[[Cluster], Awaitable[None]]


def in_cluster(test: Test) -> Callable[[Path], None]:
    """The test, with a cluster that runs while it does."""

    def run(tmp_path: Path) -> None:
        async def main() -> None:
            cluster = Cluster(tmp_path)
            async with cluster.running():
                await test(cluster)

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
