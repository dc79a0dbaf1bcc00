"""Blobs on their way into the content store: each once, however many pulls wait for it.

It decides who fetches, from where, and when a download that nobody waits for any more ends. Bytes go from the network to
the disk through a pipe; a blob is whole and what its digest says, or it is not there. Knows no image and no manifest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from covey.errors import CoveyError, Internal, NotFound
from worker.images.content import BadDigest, ContentStore, Lease
from worker.images.manifests import BadManifest, Descriptor
from worker.images.pipe import Pipe
from worker.images.sources import BlobSource, Sink
from worker.images.threads import until_done

Origin = Callable[[Descriptor, Sink], Awaitable[None]]
"""Writes the blob from ``sink.offset`` to its end, or raises: the registry."""

Listener = Callable[[int], None]
"""Told how many bytes have come."""


@dataclass(eq=False)
class _Running:
    """One download and who waits for it."""

    task: asyncio.Task[None]
    listeners: list[Listener] = field(default_factory=list)


class _Flow:
    """The Sink of one download."""

    def __init__(self, descriptor: Descriptor, pipe: Pipe, listeners: Sequence[Listener]) -> None:
        self._descriptor, self._pipe, self._listeners = descriptor, pipe, listeners
        self.offset = 0

    async def write(self, data: bytes) -> None:
        """See sources.Sink."""
        if self.offset + len(data) > self._descriptor.size:
            raise BadDigest(f"blob {self._descriptor.digest} is longer than the {self._descriptor.size} bytes announced")
        self.offset += len(data)
        await self._pipe.write(data)
        for listener in self._listeners:
            listener(self.offset)


class Downloads:
    """Belongs to one event loop. ``threads`` write to the disk, one a download; at most ``most`` run at once."""

    def __init__(
        self, content: ContentStore, threads: ThreadPoolExecutor, most: int, sources: Sequence[BlobSource] = ()
    ) -> None:
        self._content, self._threads = content, threads
        self._slots = asyncio.Semaphore(most)
        self.sources = sources
        self._running: dict[str, _Running] = {}

    async def fetch(self, descriptor: Descriptor, origin: Origin | None, listener: Listener) -> None:
        """The blob is in the content store when this returns. The caller has pinned its digest.

        Whoever comes second waits for the first's download; should that fail, it makes its own. Cancelled together with
        the last who waits.
        """
        while True:
            running = self._running.get(descriptor.digest)
            mine = running is None
            if running is None:
                running = self._start(descriptor, origin)
            try:
                return await self._wait(descriptor.digest, running, listener)
            except CoveyError:
                if mine:
                    raise

    def statistics(self) -> dict[str, int]:
        return {"downloads": len(self._running), "waiting": sum(len(one.listeners) for one in self._running.values())}

    def _start(self, descriptor: Descriptor, origin: Origin | None) -> _Running:
        listeners: list[Listener] = []
        task = asyncio.get_running_loop().create_task(
            self._download(descriptor, origin, listeners), name=f"download {descriptor.digest[:19]}"
        )
        running = self._running[descriptor.digest] = _Running(task, listeners)
        task.add_done_callback(lambda _: self._forget(descriptor.digest, running))
        return running

    def _forget(self, digest: str, running: _Running) -> None:
        if self._running.get(digest) is running:
            del self._running[digest]

    async def _wait(self, digest: str, running: _Running, listener: Listener) -> None:
        running.listeners.append(listener)
        try:
            await asyncio.shield(running.task)
        finally:
            running.listeners.remove(listener)
            if not running.listeners and not running.task.done():
                self._forget(digest, running)
                running.task.cancel()
                await until_done(running.task)

    async def _download(self, descriptor: Descriptor, origin: Origin | None, listeners: Sequence[Listener]) -> None:
        async with self._slots:
            with self._content.lease() as lease:
                helped = bool(self.sources)
                try:
                    await self._once(descriptor, origin, listeners, lease, self.sources)
                except BadDigest:
                    # A source may have lied, and its part cannot be told from the rest.
                    if not helped or origin is None:
                        raise
                    await self._once(descriptor, origin, listeners, lease, ())

    async def _once(
        self,
        descriptor: Descriptor,
        origin: Origin | None,
        listeners: Sequence[Listener],
        lease: Lease,
        sources: Sequence[BlobSource],
    ) -> None:
        pipe = Pipe()
        storing = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._content.ingest(pipe, lease, descriptor.digest, descriptor.size)
        )
        feeding = asyncio.create_task(self._feed(_Flow(descriptor, pipe, listeners), descriptor, origin, sources, pipe))
        ends: list[asyncio.Future[Any]] = [storing, feeding]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not storing.done():
                await feeding
            stored = await asyncio.shield(storing)
        finally:
            feeding.cancel()
            # The thread must be out of the store before the lease closes, whoever hurries.
            pipe.fail(Internal(f"download of {descriptor.digest} was given up"))
            await until_done(*ends)
        if stored.size != descriptor.size:
            raise BadManifest(f"blob {descriptor.digest} has {stored.size} bytes, not {descriptor.size} as its manifest says")

    @staticmethod
    async def _feed(
        flow: _Flow, descriptor: Descriptor, origin: Origin | None, sources: Sequence[BlobSource], pipe: Pipe
    ) -> None:
        whole = False
        for source in sources:
            if whole := await source.fetch(descriptor, flow):
                break
        if not whole:
            if origin is None:
                raise NotFound(f"no node that can be reached has blob {descriptor.digest}, and there is no registry to ask")
            if flow.offset < descriptor.size or not descriptor.size:
                await origin(descriptor, flow)
        pipe.close()
