"""The tables of an image store: which images there are, under which names, and what a word that a user types means.

Decides identity and names only; in memory. Knows no disk beyond the rows worker.images.index keeps, no lock (its owner,
worker.images.store, holds one) and no containers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from covey.errors import NotFound
from worker.images import index, reference
from worker.images.image import Image
from worker.images.reference import Reference
from worker.images.save import Chosen


@dataclass(slots=True)
class Kept:
    """One image in the tables; ``image`` carries no names. ``used_at``: when a container was last made of it."""

    image: Image
    names: set[Reference] = field(default_factory=set)
    removed: bool = False
    pinned: bool = False
    used_at: float = 0.0

    def named(self) -> Image:
        """The image with its names."""
        tags = sorted(name.familiar for name in self.names if name.tag)
        digests = sorted(name.familiar for name in self.names if name.digest)
        return replace(self.image, repo_tags=tuple(tags), repo_digests=tuple(digests))

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
        )


def restored(image: Image, row: index.Row) -> Kept:
    """The image that ``row`` is of, read again from its manifest. InvalidArgument when a name in the row is none."""
    names = {reference.parse(name) for name in row.names}
    image = replace(image, size=row.size, stored_at=row.stored_at, tagged_at=row.tagged_at)
    return Kept(image, names, row.removed, row.pinned, row.used_at)


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
        other._kept = {each: replace(kept, names=set(kept.names)) for each, kept in self._kept.items()}
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

    def restore(self, kept: Kept) -> None:
        """Put back what was written."""
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

    def needed(self) -> tuple[Collection[str], Collection[str]]:
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
