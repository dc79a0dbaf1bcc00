"""Layers and images made on this node: from a tar stream to an unpacked layer, from a draft to an image of the store.

Decides that an empty tar is no layer. Knows no containers: a layer comes as a stream, and lies unpacked afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.images import image, layers
from worker.images.compression import Readable
from worker.images.content import Lease
from worker.images.draft import Draft
from worker.images.image import Image, Layer
from worker.images.reference import Reference
from worker.images.store import ImageStore

EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
"""The diff id of a tar without entries (two blocks of zeros): no layer, as Docker has it."""


def add_layer(store: ImageStore, below: Sequence[Layer], stream: Readable, lease: Lease) -> Layer | None:
    """Store a layer on top of ``below`` and unpack it; None when the tar is empty."""
    blob = store.content.ingest(stream, lease)
    if blob.digest == EMPTY_LAYER:
        return None
    diff_ids = [*(layer.diff_id for layer in below), blob.digest]
    chain = layers.chain_ids(diff_ids)[-1]
    lease.pin(chain)
    with store.content.open(blob.digest) as file:
        store.layers.ensure(diff_ids, file)
    return Layer(blob.digest, chain, blob.digest, blob.size, image.LAYER_TYPE)


def store(images: ImageStore, draft: Draft, names: Sequence[Reference], lease: Lease) -> Image:
    """Make the draft an image of the store, called ``names``."""
    if draft.image is not None:
        return [images.tag(draft.id, name) for name in names][-1] if names else draft.image
    config = images.content.put(draft.encoded, lease)
    manifest = image.manifest_document(
        image.descriptor(image.CONFIG_TYPE, config.digest, config.size),
        [image.descriptor(layer.media_type, layer.digest, layer.blob_size) for layer in draft.layers],
    )
    blob = images.content.put(json.dumps(manifest, separators=(",", ":")).encode(), lease)
    return images.add(blob, names, lease)
