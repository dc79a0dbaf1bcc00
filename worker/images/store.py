"""The images of one node: which there are, what they are called, and when their bytes may go.

Decides names, identity and lifetime. Blobs are worker.images.content's, unpacked layers worker.images.layers', the
formats images arrive in worker.images.archive's. Knows no HTTP and no containers: who uses an image it is told by the
callables it is given. Synchronous and thread-safe: one lock around the tables; copying and unpacking hold it not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from covey.errors import CoveyError, InvalidArgument, NotFound
from worker.images import archive, image, index, listing, reference, removal
from worker.images.compression import Readable
from worker.images.content import Blob, ContentStore, Lease
from worker.images.image import Image
from worker.images.layers import LayerStore
from worker.images.reference import Reference
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
CachedSteps = list[tuple[CachedStep, int]]


@dataclass(slots=True)
class _Kept:
    """One image in the tables; ``image`` carries no names."""

    image: Image
    names: set[Reference] = field(default_factory=set)
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """What one removal did: familiar names untagged, ids deleted (the image's, then its layers' chain ids),
    bytes freed of blobs and unpacked layers."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    freed: int = 0


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
        self._kept: dict[str, _Kept] = {}
        self._unreadable: list[index.Row] = []
        for row in index.read(root):
            self._restore(row)
        self._sweep()
        self._unpack_lost()

    def resolve(self, name: str) -> Image:
        """The image that a name, a name with digest, an id or a unique id prefix means.

        NotFound "No such image: …" in Docker's words; InvalidArgument when it is no reference at all.
        """
        with self._lock:
            return self._named(self._find(name))

    def get(self, image_id: str) -> Image:
        """The image with exactly this id, also one that was removed under its containers. NotFound otherwise."""
        with self._lock:
            kept = self._kept.get(image_id) or self._missing(image_id)
            return self._named(kept)

    def is_leftover(self, image_id: str) -> bool:
        """Whether it was removed under its containers, and ``collect`` may free it. Waits for nobody's lock."""
        kept = self._kept.get(image_id)
        return kept is None or kept.removed

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> Images:
        """Images, newest first. ``filters`` as ``GET /images/json`` takes them (worker.images.listing)."""
        with self._lock:
            images = [self._named(kept) for kept in self._kept.values() if not kept.removed]
        images.sort(key=lambda each: (each.created, each.stored_at), reverse=True)
        return listing.select(images, filters or {}, self.resolve, self._now())

    def layer_dirs(self, of: Image) -> Paths:
        """The image's unpacked layers, TOPMOST FIRST as overlayfs wants its lowers; missing ones are unpacked again."""
        with self.content.lease() as lease:
            self._unpack_all(of, lease)
        return [self.layers.diff_dir(layer.chain_id) for layer in reversed(of.layers)]

    def layer_sizes(self, of: Image) -> Sizes:
        """Bytes of each unpacked layer, lowest first (0 where it is not unpacked)."""
        return [self.layers.size(layer.chain_id) or 0 for layer in of.layers]

    def shared_size(self, of: Image) -> int:
        """Bytes of this image's layers that another image has too."""
        with self._lock:
            others = {layer.chain_id for kept in self._kept.values() if kept.image.id != of.id for layer in kept.image.layers}
        sizes = zip(of.layers, self.layer_sizes(of))
        return sum(size for layer, size in sizes if layer.chain_id in others)

    def layers_size(self) -> int:
        """Bytes of all unpacked layers, each counted once (``LayersSize`` of ``/system/df``)."""
        with self._lock:
            chains = {layer.chain_id for kept in self._kept.values() for layer in kept.image.layers}
        return sum(self.layers.size(chain) or 0 for chain in chains)

    def load_archive(self, stream: Readable) -> LoadedImages:
        """Load every image of a docker-archive or OCI-layout tar, however compressed."""
        with self._arriving() as lease:
            loaded = []
            for found in archive.read(stream, self.content, lease, self._limits):
                kept = self.add(found.manifest, found.names, lease)
                loaded.append(archive.Loaded(kept, tuple(name.familiar for name in found.names)))
        return loaded

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
        self._unpack_all(incoming, lease)
        size = sum(self.layer_sizes(incoming))
        with self._changing():
            kept = self._kept.setdefault(incoming.id, _Kept(replace(incoming, size=size, stored_at=self._now())))
            kept.removed = False
            self._unreadable = [row for row in self._unreadable if row.manifest_digest != incoming.manifest_digest]
            for name in names:
                self._claim(kept, name)
            return self._named(kept)

    def tag(self, source: str, name: Reference) -> Image:
        """Give the image ``source`` another name; a name it takes from another image leaves that one dangling."""
        if name.digest:
            raise InvalidArgument(f"refusing to create a tag with a digest reference: {name.familiar}")
        with self._changing():
            kept = self._find(source)
            self._claim(kept, name.tagged())
            return self._named(kept)

    def remove(self, name: str, force: bool = False) -> Removed:
        """Untag, and delete the image with its last name, by Docker's rules. Conflict or NotFound otherwise."""
        in_use, running = self._in_use(), set(self._running())
        with self._lock:
            kept = self._find(name)
            users = removal.users(in_use.get(kept.image.id, ()), running)
            plan = removal.decide(name, kept.image.id, sorted(kept.names, key=str), users, force=force)
            return self._carry_out(kept, plan, bool(users.stopped))

    def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> Removed:
        """Delete unused images: dangling ones, or with ``dangling=false`` all; ``until`` and ``label`` narrow it."""
        in_use = self._in_use()
        total = Removed()
        for each in listing.prunable(self.list(), filters or {}, self._now()):
            with self._lock:
                kept = self._kept.get(each.id)
                if kept is None or in_use.get(each.id):
                    continue
                plan = removal.Removal(tuple(sorted(kept.names, key=str)), delete=True)
                done = self._carry_out(kept, plan, False)
            total = Removed(total.untagged + done.untagged, total.deleted + done.deleted, total.freed + done.freed)
        return total

    def collect(self) -> int:
        """Free what nothing needs any more: images removed under their containers, leftover blobs. Bytes freed."""
        in_use = self._in_use()
        with self._lock:
            gone = [each for each, kept in self._kept.items() if kept.removed and not in_use.get(each)]
            if gone:
                with self._changing():
                    for each in gone:
                        del self._kept[each]
        return self._sweep()[1]

    def cached_steps(self) -> CachedSteps:
        """Steps of the build cache, each with the bytes of its own layer that nothing else needs."""
        with self._lock:
            seen = {layer.chain_id for kept in self._kept.values() for layer in kept.image.layers}
        found = []
        for step in self.steps.kept():
            own = step.layers[-1].chain_id if step.layers else ""
            found.append((step, 0 if own in seen else self.layers.size(own) or 0 if own else 0))
            seen.add(own)
        return found

    def settle(self) -> int:
        """Make unpacked layers durable (one disk sync). For quiet moments and shutdown; see worker.images.layers."""
        return self.layers.settle()

    def statistics(self) -> dict[str, int]:
        with self._lock:
            shown = [kept for kept in self._kept.values() if not kept.removed]
            return {
                "images": len(shown),
                "names": sum(len(kept.names) for kept in shown),
                "removed_in_use": len(self._kept) - len(shown),
            }

    @contextlib.contextmanager
    def _arriving(self) -> Iterator[Lease]:
        """A lease for what comes in; afterwards, also after a failure, what no image took is removed."""
        try:
            with self.content.lease() as lease:
                yield lease
        finally:
            self._sweep()

    def _restore(self, row: index.Row) -> None:
        try:
            restored = self._read(row.manifest_digest, row.manifest_size)
            names = {reference.parse(name) for name in row.names}
        except CoveyError as error:
            _log.warning(
                "image %s (%s) is left out, and nothing is collected until it is loaded again: %s",
                row.manifest_digest,
                ", ".join(row.names),
                error.message,
            )
            self._unreadable.append(row)
            return
        restored = replace(restored, size=row.size, stored_at=row.stored_at, tagged_at=row.tagged_at)
        self._kept[restored.id] = _Kept(restored, names, row.removed)

    def _unpack_lost(self) -> None:
        """Unpack again the layers a crash of the machine took: containers stand on them without asking the store."""
        for kept in self._kept.values():
            try:
                with self.content.lease() as lease:
                    self._unpack_all(kept.image, lease)
            except (CoveyError, OSError) as error:
                _log.warning("image %s: its layers cannot be unpacked: %s", kept.image.short_id, error)

    def _read(self, digest: str, size: int) -> Image:
        manifest = _json(self.content.read(digest), digest)
        config = manifest.get("config") if isinstance(manifest, dict) else None
        config_digest = config.get("digest") if isinstance(config, dict) else None
        if not isinstance(config_digest, str):
            raise InvalidArgument(f"manifest {digest} names no config")
        document = _json(self.content.read(config_digest), config_digest)
        return image.from_documents(digest, size, manifest, document)

    def _unpack_all(self, of: Image, lease: Lease) -> None:
        with self._lock:
            # Under the lock that a sweep holds: a layer seen below cannot be on its way out.
            for layer in of.layers:
                lease.pin(layer.chain_id)
                lease.pin(layer.digest)
        for count, layer in enumerate(of.layers, 1):
            if not self.layers.has(layer.chain_id):
                with self.content.open(layer.digest) as file:
                    self.layers.ensure([each.diff_id for each in of.layers[:count]], file)

    def _find(self, name: str) -> _Kept:
        if name.startswith("sha256:") or (reference.id_prefix(name) and len(name) == 64):
            return self._by_prefix(name) or self._missing(name)
        named = reference.parse(name)
        wanted = named.tagged() if not named.digest else Reference(named.domain, named.path, None, named.digest)
        for kept in self._kept.values():
            if wanted in kept.names:
                return kept
        if named.digest:
            return self._missing(named.familiar)
        return self._by_prefix(name) or self._missing(named.tagged().familiar)

    def _by_prefix(self, name: str) -> _Kept | None:
        prefix = reference.id_prefix(name)
        if prefix is None:
            return None
        full = [kept for key, kept in self._kept.items() if key.startswith(f"sha256:{prefix}") and not kept.removed]
        return full[0] if len(full) == 1 else None

    @staticmethod
    def _missing(name: str) -> _Kept:
        raise NotFound(f"No such image: {name}")

    def _claim(self, kept: _Kept, name: Reference) -> None:
        for other in self._kept.values():
            if other is not kept:
                other.names.discard(name)
        kept.names.add(name)
        kept.image = replace(kept.image, tagged_at=self._now())

    def _carry_out(self, kept: _Kept, plan: removal.Removal, stopped_users: bool) -> Removed:
        with self._changing():
            kept.names.difference_update(plan.untag)
            if plan.delete and stopped_users:
                kept.removed = True
            elif plan.delete:
                del self._kept[kept.image.id]
        untagged = tuple(name.familiar for name in plan.untag)
        if not plan.delete:
            return Removed(untagged)
        chains, freed = self._sweep()
        return Removed(untagged, (kept.image.id, *chains), freed)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the tables under the lock and write them; if either fails the tables are as before."""
        with self._lock:
            kept = {each: _Kept(old.image, set(old.names), old.removed) for each, old in self._kept.items()}
            unreadable = self._unreadable
            try:
                yield
                self._write()
            except BaseException:
                self._kept, self._unreadable = kept, unreadable
                raise

    def _sweep(self) -> Freed:
        """Drop layers and blobs no image needs; (chain ids, bytes freed).

        An image that could not be read may have containers standing on layers we cannot name: then nothing goes.
        """
        with self._lock:
            if self._unreadable:
                return [], 0
            images = [kept.image for kept in self._kept.values()]
            blobs = {digest for each in images for digest in _blobs(each)}
            chains = {layer.chain_id for each in images for layer in each.layers}
            cached_blobs, cached_chains = self.steps.needed()
            blobs, chains = blobs | cached_blobs, chains | cached_chains
            retired = self.layers.retire(chains, self.content.is_leased)
            freed = self.content.collect(blobs)
        self.layers.discard(retired)
        return [each.chain_id for each in retired], freed + sum(each.size for each in retired)

    def _named(self, kept: _Kept) -> Image:
        tags = sorted(name.familiar for name in kept.names if name.tag)
        digests = sorted(name.familiar for name in kept.names if name.digest)
        return replace(kept.image, repo_tags=tuple(tags), repo_digests=tuple(digests))

    def _write(self) -> None:
        rows = [
            index.Row(
                manifest_digest=kept.image.manifest_digest,
                manifest_size=kept.image.manifest_size,
                manifest_type=kept.image.manifest_type,
                names=tuple(sorted(str(name) for name in kept.names)),
                size=kept.image.size,
                stored_at=kept.image.stored_at,
                tagged_at=kept.image.tagged_at,
                removed=kept.removed,
            )
            for kept in self._kept.values()
        ]
        index.write(self.root, [*rows, *self._unreadable])


def _json(data: bytes, digest: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"blob {digest} is not JSON") from None


def _blobs(of: Image) -> list[str]:
    return [of.manifest_digest, of.id, *(layer.digest for layer in of.layers)]
