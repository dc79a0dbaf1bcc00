"""The tables of an image store: which images there are, under which names, and what a word that a user types means.

Decides identity and names only; in memory. Knows no disk beyond the rows worker.images.index keeps, no lock (its owner,
worker.images.store, holds one) and no containers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from covey.errors import CoveyError, NotFound
from worker.images import index, reference, retention
from worker.images.image import Image
from worker.images.reference import Reference
from worker.images.save import Chosen

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Kept:
    """One image in the tables; ``image`` carries no names. ``used_at``: when a container was last made of it; ``services``:
    when one was made for each service."""

    image: Image
    names: set[Reference] = field(default_factory=set)
    removed: bool = False
    pinned: bool = False
    used_at: float = 0.0
    services: dict[str, float] = field(default_factory=dict)

    def named(self) -> Image:
        """The image with its names."""
        tags = sorted(name.familiar for name in self.names if name.tag)
        digests = sorted(name.familiar for name in self.names if name.digest)
        return replace(self.image, repo_tags=tuple(tags), repo_digests=tuple(digests))

    @property
    def is_as_at_registry(self) -> bool:
        """Whether its manifest is, byte for byte, one that a registry has."""
        return any(name.digest == self.image.manifest_digest for name in self.names)

    def candidate(self, in_use: bool, layer_size: Callable[[str], int | None]) -> retention.Candidate:
        """The image as collection looks at it. ``layer_size``: bytes of an unpacked layer by its chain id."""
        of = self.image
        blobs = {layer.digest: layer.blob_size for layer in of.layers} | {of.manifest_digest: of.manifest_size}
        unpacked = {f"unpacked {layer.chain_id}": layer_size(layer.chain_id) or 0 for layer in of.layers}
        return retention.Candidate(
            id=of.id,
            parts=blobs | unpacked,
            used_at=max(self.used_at, of.stored_at, of.tagged_at),
            in_use=in_use,
            pinned=self.pinned,
            can_be_fetched=not self.names or any(name.digest for name in self.names),
            services=self.services,
        )

    def row(self) -> index.Row:
        """What is written of it."""
        return index.Row(
            manifest_digest=self.image.manifest_digest,
            manifest_size=self.image.manifest_size,
            manifest_type=self.image.manifest_type,
            names=tuple(sorted(str(name) for name in self.names)),
            size=self.image.size,
            stored_at=self.image.stored_at,
            tagged_at=self.image.tagged_at,
            removed=self.removed,
            pinned=self.pinned,
            used_at=self.used_at,
            services=tuple(sorted(self.services.items())),
        )


def _restored(image: Image, row: index.Row) -> Kept:
    names = {reference.parse(name) for name in row.names}
    image = replace(image, size=row.size, stored_at=row.stored_at, tagged_at=row.tagged_at)
    return Kept(image, names, row.removed, row.pinned, row.used_at, dict(row.services))


class Catalogue:
    """``unreadable``: rows whose image could not be read when the store was opened; they are written on as they are."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self.unreadable: list[index.Row] = []

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept.values()))

    def __len__(self) -> int:
        return len(self._kept)

    def copy(self) -> Catalogue:
        """A copy that later changes do not reach."""
        other = Catalogue()
        other._kept = {
            each: replace(kept, names=set(kept.names), services=dict(kept.services)) for each, kept in self._kept.items()
        }
        other.unreadable = list(self.unreadable)
        return other

    def get(self, image_id: str) -> Kept | None:
        """The image with exactly this id."""
        return self._kept.get(image_id)

    def put(self, kept: Kept) -> Kept:
        """``kept``, or what was there already under its id: then not removed any more."""
        found = self._kept.setdefault(kept.image.id, kept)
        found.removed = False
        self.unreadable = [row for row in self.unreadable if row.manifest_digest != kept.image.manifest_digest]
        return found

    def restore(self, rows: Iterable[index.Row], read: Callable[[str, int], Image]) -> None:
        """Take in what was written. ``read``: the image of a manifest's digest and size."""
        for row in rows:
            try:
                kept = _restored(read(row.manifest_digest, row.manifest_size), row)
            except CoveyError as error:
                _log.warning(
                    "image %s (%s) is left out, and nothing is collected until it is loaded again: %s",
                    row.manifest_digest,
                    ", ".join(row.names),
                    error.message,
                )
                self.unreadable.append(row)
            else:
                self._kept[kept.image.id] = kept

    def drop(self, image_id: str) -> None:
        self._kept.pop(image_id, None)

    def claim(self, kept: Kept, name: Reference, now: float) -> None:
        """Give it ``name``, and take the name from whoever has it."""
        for other in self._kept.values():
            if other is not kept:
                other.names.discard(name)
        kept.names.add(name)
        kept.image = replace(kept.image, tagged_at=now)

    def find(self, name: str) -> Kept:
        """What a name, a name with digest, an id or a unique id prefix means; NotFound in Docker's words."""
        if name.startswith("sha256:") or (reference.id_prefix(name) and len(name) == 64):
            return self._by_prefix(name) or missing(name)
        named = reference.parse(name)
        wanted = named.tagged() if not named.digest else Reference(named.domain, named.path, None, named.digest)
        for kept in self._kept.values():
            if wanted in kept.names:
                return kept
        if named.digest:
            return missing(named.familiar)
        return self._by_prefix(name) or missing(named.tagged().familiar)

    def select(self, name: str) -> list[Chosen]:
        """What ``docker save name`` takes: a tag under that tag, a bare name with all its tags, an id without a name."""
        named = None if reference.id_prefix(name) and (name.startswith("sha256:") or len(name) == 64) else reference.parse(name)
        if named is not None and not named.digest:
            found = []
            for kept in self._kept.values():
                tags = [each for each in kept.names if each.tag and each.name == named.name and named.tag in (None, each.tag)]
                if tags:
                    found.append(Chosen(kept.image, tuple(sorted(tags, key=str))))
            if found:
                return found
        return [Chosen(self.find(name).image, ())]

    def needed(self) -> tuple[set[str], set[str]]:
        """(digests of blobs, chain ids of layers) that the images need."""
        images = [kept.image for kept in self._kept.values()]
        blobs = {digest for each in images for digest in each.blobs}
        return blobs, {layer.chain_id for each in images for layer in each.layers}

    def rows(self) -> list[index.Row]:
        """What is written of all."""
        return [*(kept.row() for kept in self._kept.values()), *self.unreadable]

    def _by_prefix(self, name: str) -> Kept | None:
        prefix = reference.id_prefix(name)
        if prefix is None:
            return None
        full = [kept for key, kept in self._kept.items() if key.startswith(f"sha256:{prefix}") and not kept.removed]
        return full[0] if len(full) == 1 else None


def missing(name: str) -> Kept:
    """NotFound in Docker's words."""
    raise NotFound(f"No such image: {name}")
