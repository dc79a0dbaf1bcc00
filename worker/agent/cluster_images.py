"""Images from and for the other nodes: tells the manager what this node holds, asks it for what the node lacks, fetches that.

It decides what a node asks for: a manifest, then the blobs of it that are not here. Who gives them is the manager's to say
(manager.images.tracker), how they travel worker.blobs'. Blobs are taken into the content store under one lease, and become an
image when all are there; what fails leaves nothing but that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

from covey.clock import Clock
from covey.errors import Conflict, InvalidArgument, NotFound, Unavailable
from covey.tls import Identity
from covey.wire.messages import (
    AnyMessage,
    BlobEnded,
    BlobSource,
    BlobWanted,
    ImageNews,
    ImageOffer,
    ImageSought,
    ImageWanted,
)
from worker.agent import inventory
from worker.agent.haul import Haul
from worker.blobs.download import PIECE, Body, Direct, Relayed, Wanted
from worker.blobs.port import BlobPort
from worker.blobs.traffic import Traffic
from worker.blobs.upload import Uploads
from worker.images import manifests
from worker.images.content import Blob, Lease
from worker.images.image import Image, host_architecture
from worker.images.manifests import Descriptor
from worker.images.reference import Reference, check_digest
from worker.images.sources import Sink
from worker.images.store import ImageStore
from worker.images.threads import ended, together

log = logging.getLogger(__name__)

T = TypeVar("T")
Send = Callable[[AnyMessage], Awaitable[None]]
Said = Callable[[int, int], None]

#: So many blobs come in at once, of all images together.
BLOBS_AT_ONCE = 4
#: Without a session for so long nobody can say where an image is.
SESSION_SECONDS = 15.0
#: How often what the node holds is looked at without being told that it changed.
LOOK_SECONDS = 5.0
SAY_SECONDS = 1.0
#: How soon whoever waits for a source sees that nobody wants the image any more.
WAKE_SECONDS = 0.25


class _Session:
    """The session as long as it lasts."""

    def __init__(self, send: Send, manager: str, context: ssl.SSLContext) -> None:
        self.send = send
        self.manager = manager
        self.context = context


class _Lock:
    """Of one digest, for those that want its blob."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class ClusterImages:
    """``listen`` is the blob port's host:port, "" for none. Use as an async context."""

    def __init__(self, images: ImageStore, clock: Clock, software: str, *, listen: str = "", rate: int = 0) -> None:
        self._images = images
        self._clock = clock
        self._software = software
        self._listen = listen
        self.traffic = Traffic()
        self.uploads = Uploads(images.content, self.traffic, clock, rate)
        self.blob_port = 0
        self._port: BlobPort | None = None
        self._session: _Session | None = None
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._requests = itertools.count(1)
        self._offers: dict[int, asyncio.Future[ImageOffer]] = {}
        self._sources: dict[str, tuple[BlobWanted, asyncio.Future[BlobSource]]] = {}
        self._locks: dict[str, _Lock] = {}
        self._hauls: set[Haul] = set()
        self._loop: asyncio.AbstractEventLoop
        self._threads: ThreadPoolExecutor

    async def __aenter__(self) -> ClusterImages:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(BLOBS_AT_ONCE, "blobs")
        return self

    async def __aexit__(self, *fault: object) -> None:
        for haul in self._hauls:
            haul.stop()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    # -- the session's side ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serving(self, identity: Identity, cluster_id: str) -> AsyncIterator[None]:
        """The blob port is open, unless it is turned off. An address in use turns it off too: blobs go through a manager."""
        async with AsyncExitStack() as stack:
            if self._listen:
                host, _, port = self._listen.rpartition(":")
                self._port = BlobPort(self.uploads, identity, cluster_id)
                try:
                    self.blob_port = await stack.enter_async_context(self._port.listen(host.strip("[]"), int(port)))
                except Conflict as error:
                    log.warning("no blob port: %s; other nodes get this node's blobs through a manager", error.message)
            try:
                yield
            finally:
                self.blob_port, self._port = 0, None

    async def converse(self, send: Send, manager: str, context: ssl.SSLContext) -> None:
        """A session with the manager is open: say what the node holds, and again when it changes; until cancelled."""
        session = _Session(send, manager, context)
        said = inventory.held(await self._run(self._images.list))
        await send(inventory.complete(said))
        self._session = session
        self._arrived.set()
        try:
            for wanted, _ in list(self._sources.values()):
                await send(wanted)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()
                self._changed.clear()
                now = inventory.held(await self._run(self._images.list))
                if (message := inventory.change(said, now)) is not None:
                    await send(message)
                    said = now
        finally:
            if self._session is session:
                self._session = None
                self._arrived.clear()
                for offer in self._offers.values():
                    if not offer.done():
                        offer.set_exception(ConnectionError("the session ended"))

    async def heard(self, message: ImageNews) -> None:
        """The manager has answered."""
        match message:
            case ImageOffer():
                if (offer := self._offers.get(message.request)) is not None and not offer.done():
                    offer.set_result(message)
            case BlobSource():
                waiting = self._sources.get(message.digest)
                if waiting is not None and not waiting[1].done():
                    waiting[1].set_result(message)
                else:
                    await self._tell(BlobEnded(digest=message.digest, fault="stopped"))

    def changed(self) -> None:
        """The node's images have changed, or may have."""
        self._changed.set()

    # -- fetching --------------------------------------------------------------------------------------------------

    async def fetch(self, wanted: Reference, said: Said) -> Image:
        """The image of that name from the cluster, under that name. NotFound when no node has it, Unavailable for now."""
        offer = await self._ask(str(wanted))
        # With tag and digest, as with a pull of both: the digest is what was asked for, and the name it is found by.
        name = Reference(wanted.domain, wanted.path, None, wanted.digest) if wanted.digest else wanted
        return await self._fetch(Blob(check_digest(offer.manifest), offer.size), [name], said)

    async def sought(self, wanted: Reference, error: str) -> None:
        """The image, which no node had, has come from elsewhere, or ``error``: others may be waiting for this."""
        self.changed()
        await self._tell(ImageSought(image=str(wanted), architecture=host_architecture(), error=error))

    async def receive(self, manifest: str, names: Sequence[Reference], said: Said) -> Image:
        """The image with that manifest, from the cluster, under ``names``."""
        offer = await self._ask(check_digest(manifest))
        return await self._fetch(Blob(manifest, offer.size), names, said)

    async def _ask(self, wanted: str) -> ImageOffer:
        deadline = self._clock.monotonic() + SESSION_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                    await self._arrived.wait()
                    offer = await self._ask_once(wanted)
            except TimeoutError:
                raise Unavailable(f"no manager says which node has the image {wanted}: is one running?") from None
            except ConnectionError:
                continue
            if offer.error:
                raise NotFound(offer.error)
            if offer.size > manifests.SIZE_LIMIT:
                raise InvalidArgument(f"manifest {offer.manifest} has {offer.size} bytes: more than {manifests.SIZE_LIMIT}")
            return offer

    async def _ask_once(self, wanted: str) -> ImageOffer:
        request = next(self._requests)
        offer: asyncio.Future[ImageOffer] = self._loop.create_future()
        self._offers[request] = offer
        try:
            await self._tell(ImageWanted(request=request, image=wanted, architecture=host_architecture()))
            return await offer
        finally:
            del self._offers[request]

    async def _fetch(self, manifest: Blob, names: Iterable[Reference], said: Said) -> Image:
        haul = Haul(self._images.content, self, self.traffic.received)
        self._hauls.add(haul)
        saying = asyncio.create_task(self._say(haul, said), name="image progress")
        try:
            with self._images.content.lease() as lease:
                try:
                    await self._blob(manifest, lease, haul)
                    document = await self._run(self._images.content.read, manifest.digest, manifests.SIZE_LIMIT)
                    named = manifests.image_of(document, f"manifest {manifest.digest}").blobs
                    blobs = {blob.digest: Blob(blob.digest, blob.size) for blob in named}.values()
                    absent = [blob for blob in blobs if not await self._run(self._images.content.has, blob.digest)]
                    haul.total = haul.current + sum(blob.size for blob in absent)
                    # The largest first: what is short fills the gaps.
                    ordered = sorted(blobs, key=lambda blob: -blob.size)
                    await together(self._blob(blob, lease, haul) for blob in ordered)
                    adding = self._loop.run_in_executor(None, self._images.add, manifest, list(names), lease)
                    return await ended(adding)
                finally:
                    haul.stop()
        except InvalidArgument:
            # A bad image, or a disk that has changed it: nothing of that may be taken for sound the next time. What came whole
            # before any other failure stays until the store is next swept: it need not come again.
            await self._run(self._images.collect)
            raise
        finally:
            saying.cancel()
            self._hauls.discard(haul)
            self.changed()

    async def _blob(self, blob: Blob, lease: Lease, haul: Haul) -> None:
        """One blob is here. Two images that want it at once have it sent once."""
        lease.pin(blob.digest)
        async with self._alone(blob.digest):
            if await self._run(self._images.content.has, blob.digest):
                return
            # Under the lease: what a thread takes in later would be pinned for ever.
            await ended(self._loop.run_in_executor(self._threads, haul.fetch, blob, lease), haul.stop)

    async def hand_over(self, blob: Blob, sink: Sink) -> bool:
        """For a pull: the rest of a blob from nodes that have it, not verified; False as soon as no node can give more."""
        if self._session is None:
            return False
        haul = Haul(self._images.content, self, self.traffic.received)
        self._hauls.add(haul)
        stream = haul.held_elsewhere(blob, sink.offset)
        try:
            async with self._alone(blob.digest):
                while data := await ended(self._loop.run_in_executor(self._threads, stream.read, PIECE), haul.stop):
                    await sink.write(data)
        except (NotFound, Unavailable) as lack:
            log.debug("blob %s is not to be had of a node: %s", blob.digest, lack.message)
            return False
        finally:
            haul.stop()
            stream.close()
            self._hauls.discard(haul)
            # Not that it has come: it is not in the store yet.
            await self._tell(BlobEnded(digest=blob.digest, fault="stopped"))
        self.traffic.received.add(blob.digest, blobs=1)
        return True

    @asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(digest, _Lock())
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[digest]

    async def _say(self, haul: Haul, said: Said) -> None:
        while True:
            await self._clock.sleep(SAY_SECONDS)
            said(haul.current, haul.total)

    # -- the hauls' desk, called from their threads ----------------------------------------------------------------

    def next_source(self, wanted: BlobWanted, ended: BlobEnded | None, stopped: Callable[[], bool]) -> BlobSource:
        source = asyncio.run_coroutine_threadsafe(self._next_source(wanted, ended, stopped), self._loop).result()
        if source.error:
            raise NotFound(source.error)
        return source

    def connect(self, source: BlobSource, wanted: Wanted) -> Body:
        session = self._session
        if session is None:
            raise Unavailable("the session with the manager is lost: the image is fetched again with the next")
        if source.address:
            return Direct(source.address, session.context, wanted)
        return Relayed(session.manager, session.context, wanted, self._software)

    def ended(self, ended: BlobEnded) -> None:
        if ended.words:
            log.info("blob %s of node %s: %s: %s", ended.digest, ended.node_id, ended.fault, ended.words)
        asyncio.run_coroutine_threadsafe(self._tell(ended), self._loop).result()

    async def _next_source(self, wanted: BlobWanted, ended: BlobEnded | None, stopped: Callable[[], bool]) -> BlobSource:
        future: asyncio.Future[BlobSource] = self._loop.create_future()
        self._sources[wanted.digest] = (wanted, future)
        try:
            if ended is not None:
                log.info("blob %s of node %s: %s: %s", ended.digest, ended.node_id, ended.fault, ended.words)
                await self._tell(ended)
            await self._tell(wanted)
            heard_of_manager = self._clock.monotonic()
            while not stopped():
                await asyncio.wait({future}, timeout=WAKE_SECONDS)
                if future.done():
                    return future.result()
                now = self._clock.monotonic()
                heard_of_manager = now if self._session else heard_of_manager
                if now - heard_of_manager > (0 if wanted.only_held else SESSION_SECONDS):
                    raise Unavailable(f"no manager says which node has the blob {wanted.digest}: is one running?")
            raise Unavailable("the image is no longer waited for")
        finally:
            del self._sources[wanted.digest]

    async def _tell(self, message: AnyMessage) -> None:
        """Say it if there is a session; what still matters is said again on the next."""
        if self._session is not None:
            with suppress(OSError):
                await self._session.send(message)

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    def statistics(self) -> dict[str, Any]:
        """As ``GET /covey/blobs`` answers."""
        port = self._port.statistics() if self._port else {}
        return {
            "Port": self.blob_port,
            "Clients": port,
            "Uploads": self.uploads.statistics(),
            "Waiting": len(self._sources),
            **self.traffic.show(),
        }


class ClusterBlobs:
    """The other nodes as a source of pulls' blobs (worker.images.sources): nearer than any registry."""

    def __init__(self, images: ClusterImages) -> None:
        self._images = images

    async def fetch(self, descriptor: Descriptor, sink: Sink) -> bool:
        """See BlobSource."""
        return await self._images.hand_over(Blob(descriptor.digest, descriptor.size), sink)
