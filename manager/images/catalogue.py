"""Which node holds which image and which blob, as the nodes say. Pure: announcements in, answers out.

It decides which manifest a name means when nodes differ (the one named last) and believes no node about another. It lives in
the manager's memory with the sessions; it must not know sessions, the store or how bytes travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from covey.wire.messages import HeldImage, ImagesHeld

_NOBODY: frozenset[str] = frozenset()


class _Holding:
    """What one node holds: images by manifest, blobs it received beside them, and what was missed there."""

    __slots__ = ("blobs", "images", "missed", "received")

    def __init__(self) -> None:
        self.images: dict[str, HeldImage] = {}
        self.received: set[str] = set()
        self.missed: set[str] = set()
        self.blobs: set[str] = set()


class Catalogue:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Holding] = {}
        self._holders: dict[str, set[str]] = {}
        #: What an image may be asked by → (node, manifest) → the image.
        self._known_as: dict[str, dict[tuple[str, str], HeldImage]] = {}

    def announce(self, node_id: str, message: ImagesHeld) -> None:
        """A node says what it holds; a complete word replaces all before it."""
        held = self._nodes.setdefault(node_id, _Holding())
        if message.complete:
            self._forget(node_id, held, list(held.images))
            held.received, held.missed = set(), set()
        self._forget(node_id, held, [*message.gone, *(image.manifest for image in message.images)])
        for image in message.images:
            held.images[image.manifest] = image
            for key in _keys(image):
                self._known_as.setdefault(key, {})[(node_id, image.manifest)] = image
            # From now on the image keeps them on the node, and they go with it.
            held.received.difference_update(_blobs(image))
            held.missed.difference_update(_blobs(image))
        self._count(node_id, held)

    def received(self, node_id: str, digest: str) -> None:
        """A node has received a blob, whose image it does not hold yet."""
        held = self._nodes.setdefault(node_id, _Holding())
        held.received.add(digest)
        held.missed.discard(digest)
        self._count(node_id, held)

    def missed(self, node_id: str, digest: str) -> None:
        """The blob was not there, or was not what its digest says."""
        if (held := self._nodes.get(node_id)) is not None:
            held.received.discard(digest)
            held.missed.add(digest)
            self._count(node_id, held)

    def leave(self, node_id: str) -> None:
        """Nothing more is known of the node."""
        if (held := self._nodes.pop(node_id, None)) is not None:
            self._forget(node_id, held, list(held.images))
            self._drop(node_id, held.blobs)

    def holders(self, digest: str) -> frozenset[str] | set[str]:
        """The nodes that hold a blob; to be read, not kept."""
        return self._holders.get(digest, _NOBODY)

    def find(self, wanted: str, architecture: str = "", image_id: str = "") -> HeldImage | None:
        """The image that ``wanted`` means: of several, the one that was named last.

        ``wanted`` is a full name with tag, one with digest, or a digest of a manifest or config. ``architecture`` and
        ``image_id``: only such a one.
        """
        _, at, digest = wanted.partition("@")
        fitting = [
            image
            for image in self._known_as.get(digest if at else wanted, {}).values()
            if (not architecture or image.architecture in ("", architecture)) and (not image_id or image.id == image_id)
        ]
        return max(fitting, key=lambda image: (image.tagged_at, image.manifest), default=None)

    def images(self) -> Iterator[tuple[str, HeldImage]]:
        """Every (node, image)."""
        for node_id, held in self._nodes.items():
            for image in held.images.values():
                yield node_id, image

    def counts(self) -> Mapping[str, int]:
        """For people."""
        images = {image.manifest for _, image in self.images()}
        return MappingProxyType({"nodes": len(self._nodes), "images": len(images), "blobs": len(self._holders)})

    def _forget(self, node_id: str, held: _Holding, manifests: Iterable[str]) -> None:
        """The node does not hold these images (any more)."""
        for manifest in manifests:
            if (gone := held.images.pop(manifest, None)) is None:
                continue
            held.received.difference_update(_blobs(gone))
            for key in _keys(gone):
                known = self._known_as[key]
                del known[(node_id, manifest)]
                if not known:
                    del self._known_as[key]

    def _count(self, node_id: str, held: _Holding) -> None:
        now = {digest for image in held.images.values() for digest in _blobs(image)}
        now = (now | held.received) - held.missed
        self._drop(node_id, held.blobs - now)
        for digest in now - held.blobs:
            self._holders.setdefault(digest, set()).add(node_id)
        held.blobs = now

    def _drop(self, node_id: str, digests: set[str]) -> None:
        for digest in digests:
            holders = self._holders[digest]
            holders.discard(node_id)
            if not holders:
                del self._holders[digest]


def spellings(name: str) -> tuple[str, ...]:
    """The full names that a person may mean by ``name``: with the default tag, registry and library."""
    last = name.rpartition("/")[2]
    tagged = name if ":" in last or "@" in last else f"{name}:latest"
    return tagged, f"docker.io/{tagged}", f"docker.io/library/{tagged}"


def _blobs(image: HeldImage) -> Iterator[str]:
    yield image.manifest
    yield from image.blobs


def _keys(image: HeldImage) -> set[str]:
    return {image.manifest, image.id, *image.names} - {""}
