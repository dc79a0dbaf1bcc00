"""The layers of an image that is being pulled: each is unpacked as soon as it is there and all below it are.

Decides the order only. What unpacking means is worker.images.layers'; how blobs come, worker.images.downloads'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from covey.errors import NotFound
from worker.images import image, layers, manifests, progress
from worker.images.compression import Readable
from worker.images.content import Lease
from worker.images.manifests import Descriptor, Manifest
from worker.images.progress import Listener
from worker.images.store import ImageStore
from worker.images.threads import Threads


class Arrivals:
    """Unpacks one image's layers, lowest first, each when it is there and all below it are."""

    def __init__(self, store: ImageStore, manifest: Manifest, listener: Listener, threads: Threads) -> None:
        self._store, self._manifest, self._listener, self._threads = store, manifest, listener, threads
        self._arrived = [asyncio.Event() for _ in manifest.layers]
        self._already = [False] * len(manifest.layers)
        self._known = asyncio.Event()
        self._diff_ids: list[str] = []
        self._stopped = False

    def came(self, place: int, *, already: bool = False) -> None:
        """Layer ``place`` is in the content store; ``already``: it was before."""
        self._already[place] = already
        self._arrived[place].set()

    def knows(self, config: bytes, lease: Lease) -> None:
        """The config is there: what the layers must unpack to. Raises when it does not fit the manifest."""
        digest = self._manifest.config.digest
        incoming = image.from_documents(digest, 0, self._manifest, manifests.load(config, f"config {digest}"))
        for layer in incoming.layers:
            lease.pin(layer.chain_id)
        self._diff_ids = [layer.diff_id for layer in incoming.layers]
        self._known.set()

    async def run(self) -> None:
        """Until all are unpacked."""
        await self._known.wait()
        for place, layer in enumerate(self._manifest.layers):
            await self._arrived[place].wait()
            chain = layers.chain_ids(self._diff_ids[: place + 1])[-1]
            there = await self._threads.run(self._store.layers.has, chain)
            if not there:
                unpack = partial(self._unpack, place, layer, asyncio.get_running_loop())
                await self._threads.run(unpack, on_cancel=self._stop)
            self._listener(progress.step("Already exists" if there and self._already[place] else "Pull complete", layer.digest))

    def _stop(self) -> None:
        self._stopped = True

    def _unpack(self, place: int, layer: Descriptor, loop: asyncio.AbstractEventLoop) -> None:
        told = progress.Throttle(self._listener, time.monotonic, "Extracting", layer.digest, layer.size)
        with self._store.content.open(layer.digest) as file:
            watched = _Watched(file, lambda count: loop.call_soon_threadsafe(told.at, count), lambda: self._stopped)
            self._store.layers.ensure(self._diff_ids[: place + 1], watched)


class _Watched:
    """A blob that tells how far it has been read, and that stops when nobody wants it any more."""

    def __init__(self, file: Readable, told: Callable[[int], object], stopped: Callable[[], bool]) -> None:
        self._file, self._told, self._stopped = file, told, stopped
        self._count = 0
        self._next = 0

    def read(self, n: int = -1, /) -> bytes:
        if self._stopped():
            raise NotFound("the pull was given up")
        data = self._file.read(n)
        self._count += len(data)
        if data and self._count >= self._next:
            self._next = self._count + (1 << 20)
            self._told(self._count)
        return data
