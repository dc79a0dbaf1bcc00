"""Pulls an image: manifest, platform, config and layers into the store, each layer unpacked as soon as it is there.

It decides the order of things and what Docker calls them. Registries are worker.images.registry's, one blob's way to the
disk worker.images.downloads', names and images the store's. Nothing that failed leaves anything that counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from covey.credentials import Credentials
from covey.errors import CoveyError, Internal, NotFound
from worker.images import image, manifests, platforms, progress
from worker.images.arrivals import Arrivals
from worker.images.content import Blob, Lease
from worker.images.downloads import Downloads
from worker.images.image import Image
from worker.images.manifests import Descriptor, Index, Manifest
from worker.images.platforms import Platform
from worker.images.progress import Listener
from worker.images.reference import Reference
from worker.images.registry.access import Registries
from worker.images.registry.errors import Refused
from worker.images.registry.repository import Found, Repository
from worker.images.sources import BlobSource, Sink
from worker.images.store import ImageStore
from worker.images.threads import Threads, together

MOST_DOWNLOADS = 12


@dataclass(frozen=True, slots=True)
class Pulled:
    """``digest``: of what ``name`` names, perhaps an index. ``fresh``: the name meant something else before."""

    name: Reference
    image: Image
    digest: str
    fresh: bool


class Puller:
    """Belongs to one event loop; ``async with Registries`` around it. ``sources`` are tried before any registry."""

    def __init__(self, store: ImageStore, registries: Registries, sources: Sequence[BlobSource] = ()) -> None:
        self._store, self._registries = store, registries
        self._threads = Threads(2 * MOST_DOWNLOADS, "pull")
        self._downloads = Downloads(store.content, self._threads.pool, MOST_DOWNLOADS, sources)

    def close(self) -> None:
        """Ends the threads; pulls must have ended."""
        self._threads.close()

    def statistics(self) -> dict[str, int]:
        return self._downloads.statistics()

    async def pull(
        self,
        named: Reference,
        *,
        auth: Credentials | None = None,
        platform: str = "",
        listener: Listener = progress.nobody,
    ) -> Pulled:
        """The image that ``named`` (a tag or digest) names at its registry, as it is now. Raises in Docker's words."""
        named = named.tagged()
        wanted = platform_of(platform)

        async def at(repository: Repository) -> Pulled:
            if (known := await self._unchanged(repository, named, wanted)) is not None:
                listener(progress.status(f"Pulling from {_shown(named)}", named.tag or ""))
                return known
            found = await repository.manifest(named.digest or named.tag or "")
            listener(progress.status(f"Pulling from {_shown(named)}", named.tag or named.digest or ""))
            return await self.take(found, [named], repository=repository, platform=wanted, listener=listener)

        try:
            pulled = await self._registries.first(named, auth, at)
        except Refused as error:
            raise in_dockers_words(error, named) from error
        listener(progress.status(f"Digest: {pulled.digest}"))
        state = "Downloaded newer image" if pulled.fresh else "Image is up to date"
        listener(progress.status(f"Status: {state} for {named.familiar}"))
        return pulled

    async def pull_all(
        self, named: Reference, *, auth: Credentials | None = None, platform: str = "", listener: Listener = progress.nobody
    ) -> list[Pulled]:
        """Every tag of a repository, one after another."""
        try:
            tags = await self._registries.first(named, auth, lambda repository: repository.tags())
        except Refused as error:
            raise in_dockers_words(error, named) from error
        if not tags:
            raise NotFound(f"repository {named.familiar_name} has no tags: give one, as {named.familiar_name}:latest")
        return [await self.pull(named.with_tag(tag), auth=auth, platform=platform, listener=listener) for tag in tags]

    async def _unchanged(self, repository: Repository, named: Reference, wanted: Platform) -> Pulled | None:
        """What is here, if the tag still means it: registries count who fetches manifests, not who asks for a digest."""
        known = await self._threads.run(self._image_of, named) if not named.digest else None
        if known is None or Platform(known.os, known.architecture, known.variant).normal != wanted.normal:
            return None
        try:
            digest = (await repository.manifest_descriptor(named.tag or "")).digest
        except Refused:
            # The manifest itself will tell, or its refusal, which has words.
            return None
        if _canonical(named, digest).familiar not in known.repo_digests:
            return None
        with self._store.content.lease() as lease:
            whole = await self._threads.run(self._whole, known, lease)
        return Pulled(named, known, digest, fresh=False) if whole else None

    async def take(
        self,
        found: Found,
        names: Sequence[Reference],
        *,
        repository: Repository | None,
        platform: Platform,
        listener: Listener = progress.nobody,
    ) -> Pulled:
        """Has the image of a manifest or index that is at hand, its blobs from the sources and ``repository``, if any.

        ``names`` are given to it, and to each repository named the digest.
        """
        with self._store.content.lease() as lease:
            try:
                return await self._take(found, names, repository, platform, listener, lease)
            except BaseException:
                lease.close()
                await self._threads.run(self._store.collect)
                raise

    async def _take(
        self,
        found: Found,
        names: Sequence[Reference],
        repository: Repository | None,
        platform: Platform,
        listener: Listener,
        lease: Lease,
    ) -> Pulled:
        given = [*(name for name in names if not name.digest), *dict.fromkeys(_canonical(name, found.digest) for name in names)]
        chosen, manifest = await self._chosen(found, repository, platform)
        before = await self._threads.run(self._image_of, given[0])
        if before is None or before.manifest_digest != chosen.digest or not await self._threads.run(self._whole, before, lease):
            await self._fill(manifest, repository, listener, lease)
        blob = await self._threads.run(self._store.content.put, chosen.data, lease)
        taken = await self._threads.run(self._store.add, Blob(blob.digest, blob.size), given, lease)
        return Pulled(given[0], taken, found.digest, fresh=before is None or before.id != taken.id)

    async def _chosen(self, found: Found, repository: Repository | None, platform: Platform) -> tuple[Found, Manifest]:
        """The manifest for ``platform``: ``found`` itself, or what its index names, however often."""
        for _ in range(manifests.INDEX_DEPTH):
            document = manifests.parse(found.data, found.media_type)
            if isinstance(document, Manifest):
                manifests.require_image(document)
                return found, document
            found = await self._entry(document, repository, platform)
        raise manifests.BadManifest(f"{found.digest}: indexes lie in one another more than {manifests.INDEX_DEPTH} deep")

    async def _entry(self, index: Index, repository: Repository | None, platform: Platform) -> Found:
        entry = manifests.choose(index, platform)
        if entry.size > manifests.SIZE_LIMIT:
            raise manifests.BadManifest(f"manifest {entry.digest} is larger than {manifests.SIZE_LIMIT} bytes")
        if await self._threads.run(self._store.content.has, entry.digest):
            data = await self._threads.run(self._store.content.read, entry.digest)
            return Found(entry.digest, entry.media_type, data)
        if repository is not None:
            found = await repository.manifest(entry.digest)
            return replace(found, media_type=entry.media_type or found.media_type)
        with self._store.content.lease() as lease:
            lease.pin(entry.digest)
            await self._downloads.fetch(entry, None, lambda _: None)
            data = await self._threads.run(self._store.content.read, entry.digest)
        return Found(entry.digest, entry.media_type, data)

    async def _fill(self, manifest: Manifest, repository: Repository | None, listener: Listener, lease: Lease) -> None:
        """Config and layers into the store, a few at a time; layers unpacked in their order meanwhile."""
        if manifest.config.size > manifests.SIZE_LIMIT:
            raise manifests.BadManifest(f"config {manifest.config.digest} is larger than {manifests.SIZE_LIMIT} bytes")
        slots = asyncio.Semaphore(self._registries.options.downloads)
        origin = _origin(repository) if repository is not None else None
        unpacking = Arrivals(self._store, manifest, listener, self._threads)
        for blob in manifest.blobs:
            lease.pin(blob.digest)

        async def one(place: int, layer: Descriptor) -> None:
            if await self._threads.run(self._held, layer):
                unpacking.came(place, already=True)
                return
            listener(progress.step("Pulling fs layer", layer.digest))
            if slots.locked():
                listener(progress.step("Waiting", layer.digest))
            async with slots:
                told = progress.Throttle(listener, time.monotonic, "Downloading", layer.digest, layer.size)
                await self._downloads.fetch(layer, origin, told.at)
                await self._threads.run(self._held, layer)
            listener(progress.step("Verifying Checksum", layer.digest))
            listener(progress.step("Download complete", layer.digest))
            unpacking.came(place)

        async def config() -> None:
            if not await self._threads.run(self._held, manifest.config):
                await self._downloads.fetch(manifest.config, origin, lambda _: None)
            unpacking.knows(await self._threads.run(self._store.content.read, manifest.config.digest), lease)

        works: list[Awaitable[None]] = [config(), unpacking.run()]
        await together([*works, *(one(place, layer) for place, layer in enumerate(manifest.layers))])

    def _held(self, blob: Descriptor) -> bool:
        """Whether the blob is here. BadManifest when it is, and has another size than announced."""
        if not self._store.content.has(blob.digest):
            return False
        size = self._store.content.size(blob.digest)
        if size != blob.size:
            raise manifests.BadManifest(f"blob {blob.digest} has {size} bytes, not {blob.size} as its manifest says")
        return True

    def _whole(self, known: Image, lease: Lease) -> bool:
        """Whether nothing of an image that is here is missing, nor will be while the lease is open."""
        blobs = (known.id, known.manifest_digest, *(layer.digest for layer in known.layers))
        for each in (*blobs, *(layer.chain_id for layer in known.layers)):
            lease.pin(each)
        unpacked = all(self._store.layers.has(layer.chain_id) for layer in known.layers)
        return unpacked and all(self._store.content.has(digest) for digest in blobs)

    def _image_of(self, name: Reference) -> Image | None:
        try:
            return self._store.resolve(name.familiar)
        except NotFound:
            return None


def platform_of(text: str) -> Platform:
    """The platform a request names, this machine's where it names none."""
    host = Platform("linux", image.host_architecture())
    return platforms.parse(text, host) if text else host


def _origin(repository: Repository) -> Callable[[Descriptor, Sink], Awaitable[None]]:
    """The registry as where blobs come from. A foreign layer's own address is never gone to: nobody knows who is there."""

    async def fetch(descriptor: Descriptor, sink: Sink) -> None:
        try:
            await repository.blob(descriptor, sink)
        except Refused as error:
            if not (descriptor.urls or descriptor.is_foreign) or error.http_status != 404:
                raise
            place = descriptor.urls[0] if descriptor.urls else "elsewhere"
            raise ForeignLayer(
                f"layer {descriptor.digest} is foreign: it lies at {place:.200} and not in the registry, and layers are taken "
                "from the image's own registry only; push the image with its foreign layers"
            ) from None

    return fetch


class ForeignLayer(Internal):
    """A layer that its registry does not hold."""


def _canonical(name: Reference, digest: str) -> Reference:
    return Reference(name.domain, name.path, None, name.digest or digest)


def _shown(named: Reference) -> str:
    """The repository as the first line of a pull names it: its path at the registry."""
    return named.path


def in_dockers_words(error: Refused, named: Reference) -> CoveyError:
    """A registry's refusal as Docker tells it: 404 for what is not there or not for us, 500 for the rest."""
    if error.code in ("DENIED", "INSUFFICIENT_SCOPE"):
        return NotFound(
            f"pull access denied for {named.familiar_name}, repository does not exist or may require 'docker login': "
            f"{error.message}"
        )
    if error.code == "MANIFEST_UNKNOWN" or (error.code == "NOT_FOUND" and error.http_status == 404):
        return NotFound(f"manifest for {named.familiar} not found: {error.message}")
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {named.familiar_name} not found: {error.message}")
    return error
