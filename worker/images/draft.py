"""An image in the making: a base, and on it one layer or config change after the other, each an image by itself.

Pure: decides what the config document of each says, hence its id. The documents are Docker's (history, empty_layer). Where
layers come from and what is stored is ``commit``'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from worker.images import image
from worker.images.image import Image, Layer

_KEPT = ("architecture", "os", "variant", "os.version", "os.features", "author")


@dataclass(frozen=True)
class Draft:
    """``document`` is the whole config JSON but for ``rootfs``, which ``layers`` tell. ``image``: the stored one that it is."""

    document: Mapping[str, Any]
    layers: tuple[Layer, ...] = ()
    image: Image | None = None

    @cached_property
    def encoded(self) -> bytes:
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]}
        return json.dumps({**self.document, "rootfs": rootfs}, separators=(",", ":"), sort_keys=True).encode()

    @cached_property
    def id(self) -> str:
        if self.image is not None:
            return self.image.id
        return "sha256:" + hashlib.sha256(self.encoded).hexdigest()

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the container part."""
        copied: dict[str, Any] = json.loads(json.dumps(self.document.get("config") or {}))
        return copied

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        return self.document.get("history") or ()

    def as_image(self) -> Image:
        """As the engine sees images; its manifest is perhaps not written yet."""
        if self.image is not None:
            return self.image
        return Image(self.id, "", 0, image.MANIFEST_TYPE, json.loads(self.encoded), self.layers)


def scratch(architecture: str, variant: str = "") -> Draft:
    """Nothing at all."""
    return Draft({"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {}), "config": {}})


def begin(base: Image) -> Draft:
    """A draft that is ``base``."""
    return Draft({key: value for key, value in base.document.items() if key != "rootfs"}, base.layers, base)


def follow(
    draft: Draft,
    config: Mapping[str, Any],
    created: str,
    created_by: str,
    *,
    layer: Layer | None = None,
    author: str = "",
    comment: str = "",
) -> Draft:
    """The draft after one more step; without ``layer`` only its config changed."""
    step: dict[str, Any] = {"created": created, "created_by": created_by}
    writer = author or str(draft.document.get("author") or "")
    step |= {key: value for key, value in (("author", writer), ("comment", comment)) if value}
    if layer is None:
        step["empty_layer"] = True
    document = {key: draft.document[key] for key in _KEPT if key in draft.document}
    document |= {"created": created, "config": dict(config), "history": [*draft.history, step]}
    if writer:
        document["author"] = writer
    return Draft(document, (*draft.layers, layer) if layer else draft.layers)


def inherit(draft: Draft, candidate: Image, config: Mapping[str, Any], created_by: str) -> Draft | None:
    """The draft after a step that ``candidate`` (``--cache-from``) has made on the same image; None when it has not."""
    told = candidate.document.get("history") or []
    place = len(draft.history)
    if len(told) <= place or told[place].get("created_by") != created_by:
        return None
    same = all(
        (one.get("created_by"), bool(one.get("empty_layer"))) == (other.get("created_by"), bool(other.get("empty_layer")))
        for one, other in zip(told, draft.history)
    )
    depth = len(draft.layers)
    if not same or candidate.layers[:depth] != draft.layers:
        return None
    empty = bool(told[place].get("empty_layer"))
    if not empty and len(candidate.layers) <= depth:
        return None
    layer = None if empty else candidate.layers[depth]
    return follow(draft, config, str(told[place].get("created") or ""), created_by, layer=layer)
