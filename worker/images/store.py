"""The images of one node: which there are, what they are called, and when their bytes may go.

Decides lifetime; names and identity are worker.images.catalogue's. Blobs are worker.images.content's, unpacked layers
worker.images.layers', the formats images arrive in worker.images.archive's. Knows no HTTP and no containers: who uses an
image it is told by the callables it is given. Synchronous and thread-safe: one lock around the tables; copying and
unpacking hold it not.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from covey.errors import CoveyError, InvalidArgument, NotFound
from worker.images import archive, disk, fsck, image, index, listing, manifests, reference, removal, retention, save
from worker.images.catalogue import Catalogue, Kept, missing
from worker.images.compression import Readable
from worker.images.content import Blob, ContentStore, Lease
from worker.images.image import Image
from worker.images.layers import LayerStore
from worker.images.reference import Reference
from worker.images.removal import Removed
from worker.images.repair import Finding, Repairer
from worker.images.steps import Kept as CachedStep
from worker.images.steps import StepCache
from worker.images.tar_stream import Limits

_log = logging.getLogger(__name__)

# ImageStore has a method called list, so its annotations cannot say list[...].
Images = list[Image]
LoadedImages = list[archive.Loaded]
Paths = list[Path]
Sizes = list[int]
Freed = tuple[list[str], int]
Chosen = list[save.Chosen]
Findings = Iterator[Finding]
CachedSteps = list[tuple[CachedStep, int]]


class ImageStore:
    """``root`` is ``<data>/images``; ``layers_root`` defaults to ``<data>/rootfs/layers`` beside it.

    ``in_use`` gives, per image id, the names of the containers made from it (running or not); ``running`` the names
    of those that run. Both are called without the store's lock held.
    """

    def __init__(
        self,
        root: Path,
        layers_root: Path | None = None,
        *,
        in_use: Callable[[], Mapping[str, Sequence[str]]] = dict,
        running: Callable[[], Collection[str]] = tuple,
        now: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        self.root = root
        self.content = ContentStore(root)
        self.layers = LayerStore(layers_root or root.parent / "rootfs" / "layers", limits)
        self.steps = StepCache(root / "steps", now)
        self._in_use, self._running, self._now = in_use, running, now
        self._limits = limits
        self._lock = threading.RLock()
        self._images = Catalogue()
        self._unwritten = False
        self._images.restore(index.read(root), self._read)
        self._sweep()
        self._unpack_lost()

    def resolve(self, name: str) -> Image:
        """The image that a name, a name with digest, an id or a unique id prefix means.

        NotFound "No such image: …" in Docker's words; InvalidArgument when it is no reference at all.
        """
        with self._lock:
            return self._images.find(name).named()

    def get(self, image_id: str) -> Image:
        """The image with exactly this id, also one that was removed under its containers. NotFound otherwise."""
        with self._lock:
            return (self._images.get(image_id) or missing(image_id)).named()

    def is_leftover(self, image_id: str) -> bool:
        """Whether it was removed under its containers, and ``collect`` may free it. Waits for nobody's lock."""
        kept = self._images.get(image_id)
        return kept is None or kept.removed

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> Images:
        """Images, newest first. ``filters`` as ``GET /images/json`` takes them (worker.images.listing)."""
        with self._lock:
            images = [kept.named() for kept in self._images if not kept.removed]
        images.sort(key=lambda each: (each.created, each.stored_at), reverse=True)
        return listing.select(images, filters or {}, self.resolve, self._now())

    def layer_dirs(self, of: Image) -> Paths:
        """The image's unpacked layers, TOPMOST FIRST as overlayfs wants its lowers; missing ones are unpacked again."""
        with self.content.lease() as lease:
            self._unpack_all(of, lease)
        return [self.layers.diff_dir(layer.chain_id) for layer in reversed(of.layers)]

    def use(self, of: Image, service: str = "") -> Paths:
        """``layer_dirs`` for a container, which may be one of ``service``: remembered for ``reclaim``."""
        with self._lock:
            kept = self._images.get(of.id)
            if kept:
                # Written by the next change of the tables, or settle: a start shall not wait for the disk.
                kept.used_at = self._now()
                self._unwritten = True
                if service:
                    kept.services[service] = kept.used_at
        return self.layer_dirs(of)

    def layer_sizes(self, of: Image) -> Sizes:
        """Bytes of each unpacked layer, lowest first (0 where it is not unpacked)."""
        return [self.layers.size(layer.chain_id) or 0 for layer in of.layers]

    def shared_size(self, of: Image) -> int:
        """Bytes of this image's layers that another image has too."""
        with self._lock:
            others = {layer.chain_id for kept in self._images if kept.image.id != of.id for layer in kept.image.layers}
        sizes = zip(of.layers, self.layer_sizes(of))
        return sum(size for layer, size in sizes if layer.chain_id in others)

    def layers_size(self) -> int:
        """Bytes of all unpacked layers, each counted once (``LayersSize`` of ``/system/df``)."""
        with self._lock:
            chains = self._images.needed()[1]
        return sum(self.layers.size(chain) or 0 for chain in chains)

    def load_archive(self, stream: Readable) -> LoadedImages:
        """Load every image of a docker-archive or OCI-layout tar, however compressed."""
        with self._arriving() as lease:
            loaded = []
            for found in archive.read(stream, self.content, lease, self._limits):
                kept = self.add(found.manifest, found.names, lease)
                loaded.append(archive.Loaded(kept, tuple(name.familiar for name in found.names)))
        return loaded

    def choose(self, names: Sequence[str], platform: str = "") -> Chosen:
        """The images that ``docker save names`` takes; NotFound for one that is not there or not of ``platform``."""
        with self._lock:
            chosen = save.merged([each for name in names for each in self._images.select(name)])
        for each in chosen:
            if platform not in ("", each.image.platform):
                raise NotFound(f"image {each.image.short_id} is for {each.image.platform}, not for {platform}")
        return chosen

    def save_archive(self, chosen: Chosen) -> Iterator[bytes]:
        """An archive of images that ``load_archive`` and others read, in pieces (worker.images.save).

        NotFound before the first piece when a blob is missing.
        """
        with self.content.lease() as lease:
            with self._lock:
                for digest in (digest for each in chosen for digest in each.image.blobs):
                    lease.pin(digest)
            yield from save.write(chosen, self.content)

    def import_rootfs(
        self,
        stream: Readable,
        name: str | Reference | None = None,
        changes: Sequence[str] = (),
        *,
        message: str = "",
        platform: str = "",
    ) -> Image:
        """Make an image of one layer from a root file system tar, with Dockerfile ``changes`` (docker import -c)."""
        named = reference.parse_tagged(name) if isinstance(name, str) and name else name or None
        if isinstance(named, Reference) and named.digest:
            raise InvalidArgument(f"cannot import digest reference {named.familiar}; give a tag")
        with self._arriving() as lease:
            document = archive.import_document(changes, message, platform, self._now())
            manifest = archive.read_rootfs(stream, document, self.content, self.layers, lease)
            return self.add(manifest, [named] if isinstance(named, Reference) else [], lease)

    def add(self, manifest: Blob, names: Iterable[Reference], lease: Lease) -> Image:
        """Take in an image whose manifest, config and layer blobs are in the content store, leased.

        The door for load, pull and build: unpacks what is missing, verifies every diff id, records, names.
        """
        incoming = self._read(manifest.digest, manifest.size)
        if incoming.platform_warning:
            _log.warning("image %s: %s", incoming.short_id, incoming.platform_warning)
        names = list(names)
        self._unpack_all(incoming, lease)
        size = sum(self.layer_sizes(incoming))
        with self._changing():
            kept = self._images.put(Kept(replace(incoming, size=size, stored_at=self._now())))
            if any(name.digest for name in names) and not kept.is_as_at_registry:
                # What a registry has can go back as it came; what an archive held would become other bytes.
                kept.image = replace(incoming, size=size, stored_at=kept.image.stored_at, tagged_at=kept.image.tagged_at)
            for name in names:
                self._images.claim(kept, name, self._now())
            return kept.named()

    def pin(self, name: str, pinned: bool = True) -> Image:
        """Keep the image from ``reclaim`` and ``prune``, or no longer."""
        with self._changing():
            kept = self._images.find(name)
            kept.pinned = pinned
            return kept.named()

    def tag(self, source: str, name: Reference) -> Image:
        """Give the image ``source`` another name; a name it takes from another image leaves that one dangling."""
        if name.digest:
            raise InvalidArgument(f"refusing to create a tag with a digest reference: {name.familiar}")
        with self._changing():
            kept = self._images.find(source)
            self._images.claim(kept, name.tagged(), self._now())
            return kept.named()

    def remove(self, name: str, force: bool = False) -> Removed:
        """Untag, and delete the image with its last name, by Docker's rules. Conflict or NotFound otherwise."""
        in_use, running = self._in_use(), set(self._running())
        with self._lock:
            kept = self._images.find(name)
            users = removal.users(in_use.get(kept.image.id, ()), running)
            plan = removal.decide(name, kept.image.id, sorted(kept.names, key=str), users, force=force)
            return self._carry_out(kept, plan, bool(users.stopped))

    def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> Removed:
        """Delete unused images: dangling ones, or with ``dangling=false`` all; ``until`` and ``label`` narrow it."""
        in_use = self._in_use()
        total = Removed()
        for each in listing.prunable(self.list(), filters or {}, self._now()):
            with self._lock:
                kept = self._images.get(each.id)
                if kept is None or kept.pinned or in_use.get(each.id):
                    continue
                total = total.plus(self._delete(kept))
        return total

    def pins(self) -> Images:
        """The images that ``pin`` keeps."""
        with self._lock:
            return [kept.named() for kept in self._images if kept.pinned and not kept.removed]

    def reclaim(self, policy: retention.Policy, services: Collection[str]) -> Removed:
        """Delete what ``policy`` lets go (worker.images.retention). ``services``: ids of those that have containers here."""
        if policy.is_off:
            return Removed()
        idle = policy.idle(disk.usage(self.root))
        forgotten = self.steps.prune(self._now() - idle) if idle is not None else []
        total = Removed(freed=self.collect() if forgotten else 0)
        disk_now = disk.usage(self.root)
        in_use = self._in_use()
        with self._lock:
            candidates = [kept.candidate(bool(in_use.get(kept.image.id)), self.layers.size) for kept in self._images]
        for verdict in retention.decide(candidates, services, disk_now, policy, self._now()):
            in_use = self._in_use()
            with self._lock:
                kept = self._images.get(verdict.id)
                # A container may have been made of it while others were being deleted.
                if kept and not in_use.get(verdict.id) and self._now() - kept.used_at >= policy.grace:
                    _log.info("image %s (%s) goes: %s", kept.image.short_id, ", ".join(map(str, kept.names)), verdict.why)
                    total = total.plus(self._delete(kept))
        return total

    def _delete(self, kept: Kept) -> Removed:
        return self._carry_out(kept, removal.Removal(tuple(sorted(kept.names, key=str)), delete=True), False)

    def fsck(self, repair: bool = False) -> Findings:
        """Every fault on disk (worker.images.fsck), and with ``repair`` what was done about it (worker.images.repair)."""
        faults = fsck.check(self.root, self.layers.root)
        if not repair:
            return map(Finding, faults)
        with self._lock:
            images = [kept.named() for kept in self._images]
        return Repairer(self.content, self.layers, images, self._mounted, self._rewrite).mend(faults)

    def _mounted(self) -> set[str]:
        running, in_use = set(self._running()), self._in_use()
        with self._lock:
            images = [kept.image for kept in self._images if running.intersection(in_use.get(kept.image.id, ()))]
        return {layer.chain_id for each in images for layer in each.layers}

    def _rewrite(self) -> None:
        (self.root / index.LAYOUT).unlink(missing_ok=True)
        with self._changing():
            pass

    def collect(self) -> int:
        """Free what nothing needs any more: images removed under their containers, leftover blobs. Bytes freed."""
        in_use = self._in_use()
        with self._lock:
            gone = [kept.image.id for kept in self._images if kept.removed and not in_use.get(kept.image.id)]
            if gone:
                with self._changing():
                    for each in gone:
                        self._images.drop(each)
        return self._sweep()[1]

    def cached_steps(self) -> CachedSteps:
        """Steps of the build cache, each with the bytes of its own layer that nothing else needs."""
        with self._lock:
            seen = {*self._images.needed()[1]}
        found = []
        for step in self.steps.kept():
            own = step.layers[-1].chain_id if step.layers else ""
            found.append((step, 0 if own in seen else self.layers.size(own) or 0 if own else 0))
            seen.add(own)
        return found

    def settle(self) -> int:
        """Make unpacked layers durable (one disk sync), and write down which images were used. For quiet moments and
        shutdown; see worker.images.layers."""
        if self._unwritten:
            with self._changing():
                self._unwritten = False
        return self.layers.settle()

    def statistics(self) -> dict[str, int]:
        with self._lock:
            shown = [kept for kept in self._images if not kept.removed]
            return {
                "images": len(shown),
                "names": sum(len(kept.names) for kept in shown),
                "removed_in_use": len(self._images) - len(shown),
                "layers_unpacked": self.layers.unpacked,
            }

    @contextlib.contextmanager
    def _arriving(self) -> Iterator[Lease]:
        """A lease for what comes in; afterwards, also after a failure, what no image took is removed."""
        try:
            with self.content.lease() as lease:
                yield lease
        finally:
            self._sweep()

    def _unpack_lost(self) -> None:
        """Unpack again the layers a crash of the machine took: containers stand on them without asking the store."""
        for kept in self._images:
            try:
                with self.content.lease() as lease:
                    self._unpack_all(kept.image, lease)
            except (CoveyError, OSError) as error:
                _log.warning("image %s: its layers cannot be unpacked: %s", kept.image.short_id, error)

    def _read(self, digest: str, size: int) -> Image:
        manifest = manifests.image_of(self.content.read(digest, manifests.SIZE_LIMIT), digest)
        config = manifest.config.digest
        document = manifests.load(self.content.read(config, manifests.SIZE_LIMIT), f"config {config}")
        return image.from_documents(digest, size, manifest, document)

    def _unpack_all(self, of: Image, lease: Lease) -> None:
        with self._lock:
            # Under the lock that a sweep holds: a layer seen below cannot be on its way out.
            for layer in of.layers:
                lease.pin(layer.chain_id)
                lease.pin(layer.digest)
        self.layers.ensure_all(
            [layer.diff_id for layer in of.layers], lambda number: self.content.open(of.layers[number].digest)
        )

    def _carry_out(self, kept: Kept, plan: removal.Removal, stopped_users: bool) -> Removed:
        with self._changing():
            kept.names.difference_update(plan.untag)
            if plan.delete and stopped_users:
                kept.removed = True
            elif plan.delete:
                self._images.drop(kept.image.id)
        untagged = tuple(name.familiar for name in plan.untag)
        if not plan.delete:
            return Removed(untagged)
        chains, freed = self._sweep()
        return Removed(untagged, (kept.image.id, *chains), freed)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the tables under the lock and write them; if either fails the tables are as before."""
        with self._lock:
            before = self._images.copy()
            try:
                yield
                index.write(self.root, self._images.rows())
            except BaseException:
                self._images = before
                raise

    def _sweep(self) -> Freed:
        """Drop layers and blobs no image needs; (chain ids, bytes freed).

        An image that could not be read may have containers standing on layers we cannot name: then nothing goes.
        """
        with self._lock:
            if self._images.unreadable:
                return [], 0
            blobs, chains = (needed | cached for needed, cached in zip(self._images.needed(), self.steps.needed()))
            retired = self.layers.retire(chains, self.content.is_leased)
            freed = self.content.collect(blobs)
        self.layers.discard(retired)
        return [each.chain_id for each in retired], freed + sum(each.size for each in retired)
