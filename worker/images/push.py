"""Pushes images: blobs the registry lacks, then the manifest, and what Docker tells meanwhile.

It decides what is sent: layers as they were pulled, byte for byte; a layer that never was compressed is packed, always to the
same bytes. A blob that another repository of the registry has is mounted instead. How one blob is sent is
worker.images.upload's, the calls themselves worker.images.registry's.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from covey.credentials import Credentials
from covey.errors import InvalidArgument, NotFound
from worker.images import manifests, platforms, progress, reference
from worker.images.compression import CHUNK, Readable
from worker.images.content import Blob, Lease
from worker.images.image import Image, Layer
from worker.images.progress import Listener
from worker.images.pull import platform_of
from worker.images.reference import Reference
from worker.images.registry.access import Registries
from worker.images.registry.repository import Repository
from worker.images.store import ImageStore
from worker.images.threads import Threads, together
from worker.images.upload import Upload

MOST_MOUNTS = 3
_PACKED = {
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


@dataclass(frozen=True, slots=True)
class Pushed:
    """What now lies at the registry under ``name``."""

    name: Reference
    image: Image
    digest: str
    size: int


class Pusher:
    """Belongs to one event loop; ``async with Registries`` around it."""

    def __init__(self, store: ImageStore, registries: Registries) -> None:
        self._store, self._registries = store, registries
        self._threads = Threads(2 * registries.options.uploads, "push")
        self._packed: dict[str, Blob] = {}
        """Diff id → what its layer was packed into: the same bytes each time, so they need not be made to be asked for."""

    def close(self) -> None:
        """Ends the threads; pushes must have ended."""
        self._threads.close()

    async def push(
        self,
        named: Reference,
        *,
        auth: Credentials | None = None,
        platform: str = "",
        listener: Listener = progress.nobody,
    ) -> list[Pushed]:
        """The tag ``named``, or every tag of the repository where it names none. Raises in Docker's words."""
        if named.digest:
            raise InvalidArgument("cannot push a digest reference; give a tag")
        listener(progress.status(f"The push refers to repository [{named.name}]"))
        names = await self._threads.run(self._names, named)
        return [await self._push(name, auth, platform, listener) for name in names]

    def _names(self, named: Reference) -> list[Reference]:
        tags = [reference.parse(tag) for image in self._store.list() for tag in image.repo_tags]
        found = sorted((tag for tag in tags if tag.name == named.name), key=str)
        if not found:
            raise NotFound(f"An image does not exist locally with the tag: {named.familiar_name}")
        if named.tag is None:
            return found
        if named not in found:
            raise NotFound(f"tag does not exist: {named.familiar}")
        return [named]

    async def _push(self, named: Reference, auth: Credentials | None, platform: str, listener: Listener) -> Pushed:
        image = await self._threads.run(self._store.resolve, named.familiar)
        _check_platform(image, platform)
        with self._store.content.lease() as lease:
            for digest in (image.manifest_digest, image.id, *(layer.digest for layer in image.layers)):
                lease.pin(digest)
            try:
                return await self._send(named, image, auth, listener, lease)
            finally:
                lease.close()
                # What was packed for the way is not the store's.
                await self._threads.run(self._store.collect)

    async def _send(self, named: Reference, image: Image, auth: Credentials | None, listener: Listener, lease: Lease) -> Pushed:
        original = await self._threads.run(self._store.content.read, image.manifest_digest)
        mounts = await self._threads.run(self._elsewhere, image, named)
        also = sorted({path for paths in mounts.values() for path in paths})
        for layer in reversed(image.layers):
            listener(progress.step("Preparing", layer.diff_id))

        async def at(repository: Repository) -> tuple[str, int]:
            work = _Push(self._store, self._threads, repository, listener, self._registries.options.uploads, self._packed)
            sent = await work.blobs(image, _keeps_manifest(image), mounts, lease)
            data = original if not sent else _with_layers(original, sent)
            digest = await repository.put_manifest(named.tag or "", data, image.manifest_type)
            return digest, len(data)

        digest, size = await self._registries.first(named, auth, at, pushing=True, also_from=also)
        await self._threads.run(self._record, named, image, digest, lease)
        listener(progress.status(f"{named.tag}: digest: {digest} size: {size}"))
        listener({"progressDetail": {}, "aux": {"Tag": named.tag, "Digest": digest, "Size": size}})
        return Pushed(named, image, digest, size)

    def _record(self, named: Reference, image: Image, digest: str, lease: Lease) -> None:
        """The image has the digest's name now, if it is still there."""
        try:
            self._store.resolve(image.id)
        except NotFound:
            return
        canonical = Reference(named.domain, named.path, None, digest)
        self._store.add(Blob(image.manifest_digest, image.manifest_size), [canonical], lease)

    def _elsewhere(self, image: Image, named: Reference) -> Mapping[str, Sequence[str]]:
        """Layer digest → other repositories of the same registry that have it: they were pulled from or pushed to."""
        wanted = {layer.digest for layer in image.layers}
        found: dict[str, dict[str, None]] = {}
        for other in self._store.list():
            names = [reference.parse(name) for name in other.repo_digests]
            paths = [name.path for name in names if name.domain == named.domain and name.path != named.path]
            for layer in other.layers:
                if paths and layer.digest in wanted:
                    found.setdefault(layer.digest, {}).update(dict.fromkeys(paths))
        return {digest: list(paths)[:MOST_MOUNTS] for digest, paths in found.items()}


class _Push:
    """The blobs of one image on their way to one repository."""

    def __init__(
        self,
        store: ImageStore,
        threads: Threads,
        repository: Repository,
        listener: Listener,
        at_once: int,
        packed: dict[str, Blob],
    ) -> None:
        self._store, self._threads, self._repository = store, threads, repository
        self._listener, self._packed = listener, packed
        self._slots = asyncio.Semaphore(at_once)

    async def blobs(
        self, image: Image, as_it_is: bool, mounts: Mapping[str, Sequence[str]], lease: Lease
    ) -> list[tuple[str, Blob]]:
        """Sends what is missing. The layers' (media type, blob) where other bytes than the image's were sent, else nothing."""
        sent: list[tuple[str, Blob]] = [(layer.media_type, Blob(layer.digest, layer.blob_size)) for layer in image.layers]
        changed = False

        async def one(place: int, layer: Layer) -> None:
            nonlocal changed
            if self._slots.locked():
                self._listener(progress.step("Waiting", layer.diff_id))
            async with self._slots:
                if as_it_is or layer.media_type not in _PACKED:
                    await self._layer(layer, sent[place][1], mounts.get(layer.digest, ()))
                else:
                    sent[place] = (_PACKED[layer.media_type], await self._unpacked_layer(layer, lease))
                    changed = True

        await together([one(place, layer) for place, layer in reversed(list(enumerate(image.layers)))])
        config = Blob(image.id, await self._threads.run(self._store.content.size, image.id))
        if await self._repository.has_blob(config.digest) is None:
            await Upload(self._repository, self._store.content, self._threads, config, lambda _: None).send()
        return sent if changed else []

    async def _unpacked_layer(self, layer: Layer, lease: Lease) -> Blob:
        """Packs a layer that lies plain in the store and sends it; what it became."""
        known = self._packed.get(layer.diff_id)
        if known is not None and await self._repository.has_blob(known.digest) is not None:
            self._listener(progress.step("Layer already exists", layer.diff_id))
            return known
        packed = await self._threads.run(self._pack, layer, lease)
        self._packed[layer.diff_id] = packed
        await self._layer(layer, packed, ())
        return packed

    def _pack(self, layer: Layer, lease: Lease) -> Blob:
        with self._store.content.open(layer.digest) as file:
            return self._store.content.ingest(_Gzipped(file), lease)

    async def _layer(self, layer: Layer, blob: Blob, mounts: Sequence[str]) -> None:
        if await self._repository.has_blob(blob.digest) is not None:
            self._listener(progress.step("Layer already exists", layer.diff_id))
            return
        for source in mounts:
            if await self._repository.mount(blob.digest, source) is None:
                self._listener(progress.step(f"Mounted from {source}", layer.diff_id))
                return
        told = progress.Throttle(self._listener, time.monotonic, "Pushing", layer.diff_id, blob.size)
        await Upload(self._repository, self._store.content, self._threads, blob, told.at).send()
        self._listener(progress.step("Pushed", layer.diff_id))


class _Gzipped:
    """A stream packed: the same input is always the same output, on every node (zlib, level 6, no name, no time)."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._packer: Any = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._ended = False

    def read(self, n: int = -1, /) -> bytes:
        while not self._ended:
            data = self._stream.read(CHUNK)
            if data:
                packed: bytes = self._packer.compress(data)
            else:
                self._ended, packed = True, self._packer.flush()
            if packed:
                return packed
        return b""


def _keeps_manifest(image: Image) -> bool:
    """Whether its manifest came from a registry as it is: then it goes back so, though its layers be plain."""
    return any(reference.parse(name).digest == image.manifest_digest for name in image.repo_digests)


def _with_layers(original: bytes, sent: Sequence[tuple[str, Blob]]) -> bytes:
    """The manifest with the layers that were sent."""
    document = manifests.load(original, "manifest")
    described = [
        {**layer, "mediaType": media_type, "digest": blob.digest, "size": blob.size}
        for layer, (media_type, blob) in zip(document["layers"], sent, strict=True)
    ]
    return json.dumps({**document, "layers": described}, separators=(",", ":")).encode()


def _check_platform(image: Image, wanted: str) -> None:
    """``wanted`` is the API's JSON platform, or empty."""
    if not wanted:
        return
    try:
        document = json.loads(wanted)
        asked = platforms.Platform(*(str(document.get(name) or "") for name in ("os", "architecture", "variant")))
    except (ValueError, AttributeError):
        raise InvalidArgument('invalid platform: give JSON as {"os":"linux","architecture":"amd64"}') from None
    own = replace(platform_of(""), os=image.os or "linux", architecture=image.architecture, variant=image.variant)
    if own.normal not in (asked.normal, *platforms.served_by(asked)):
        raise NotFound(f"image does not provide the specified platform: wanted {asked}, actual: {own}")
