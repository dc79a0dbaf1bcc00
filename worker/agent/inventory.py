"""What a node tells its manager of its images: the whole at first, then what changed. Pure: images in, messages out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from covey.wire.messages import HeldImage, ImagesHeld
from worker.images import reference
from worker.images.image import Image

Held = Mapping[str, HeldImage]


def held(images: Iterable[Image]) -> dict[str, HeldImage]:
    """The images by manifest, as the cluster knows them."""
    return {image.manifest_digest: _held(image) for image in images}


def _held(image: Image) -> HeldImage:
    names = sorted(str(reference.parse(name)) for name in (*image.repo_tags, *image.repo_digests))
    return HeldImage(
        manifest=image.manifest_digest,
        size=image.manifest_size,
        id=image.id,
        architecture=image.architecture,
        names=tuple(names),
        blobs=(image.id, *dict.fromkeys(layer.digest for layer in image.layers)),
        tagged_at=image.tagged_at,
    )


def complete(now: Held) -> ImagesHeld:
    """All of it."""
    return ImagesHeld(complete=True, images=tuple(now.values()))


def change(before: Held, now: Held) -> ImagesHeld | None:
    """What became of ``before``; None when nothing did."""
    images = tuple(image for manifest, image in now.items() if before.get(manifest) != image)
    gone = tuple(manifest for manifest in before if manifest not in now)
    return ImagesHeld(complete=False, images=images, gone=gone) if images or gone else None
