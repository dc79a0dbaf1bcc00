"""The build cache: which image followed from which by which step, ``<images>/steps/<hex>.json``.

Decides that a step is found again by what it stood on and what it was; what makes two steps the same is told by the key.
It keeps the layers of its steps from being collected until they are pruned. Synchronous and thread-safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from worker.images import disk
from worker.images.draft import Draft
from worker.images.image import Layer
from worker.kernel import trees

_log = logging.getLogger(__name__)
VERSION = 1
LIMIT = 1000
"""Steps kept; the ones used longest ago go first."""


class Kept(msgspec.Struct, kw_only=True):
    """One step. ``document``: the config of the image it led to, all but ``rootfs``. Times: seconds since the epoch."""

    version: int
    parent: str
    key: str
    document: dict[str, Any]
    layers: list[Layer]
    created: float
    used: float

    @property
    def draft(self) -> Draft:
        return Draft(self.document, tuple(self.layers))


@dataclass(slots=True)
class _Held:
    """What of a step is in memory: documents of thousands would be megabytes."""

    layers: tuple[Layer, ...]
    used: float


class StepCache:
    """``root`` is the directory; which steps it holds is read once, here."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self._root, self._now = root, now
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._layers: dict[Layer, Layer] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in root.glob("*.json"):
            kept = _read(path)
            if kept is not None:
                self._hold(path.stem, kept)

    def find(self, parent: str, key: str) -> Draft | None:
        """The image that step ``key`` on ``parent`` (an image id) led to last time."""
        name = _name(parent, key)
        with self._lock:
            held = self._held.get(name)
            if held is None:
                return None
            held.used = self._now()
            kept = _read(self._root / f"{name}.json")
            if kept is None:
                del self._held[name]
                return None
            return kept.draft

    def keep(self, parent: str, key: str, draft: Draft) -> None:
        """Remember a step whose layers the caller has leased."""
        now = self._now()
        document = json.loads(json.dumps(dict(draft.document)))
        kept = Kept(
            version=VERSION, parent=parent, key=key, document=document, layers=list(draft.layers), created=now, used=now
        )
        name = _name(parent, key)
        with disk.naming_full_disk(self._root), self._lock:
            trees.write_atomically(self._root / f"{name}.json", msgspec.json.encode(kept))
            self._hold(name, kept)
            for surplus in sorted(self._held, key=lambda each: self._held[each].used)[: max(0, len(self._held) - LIMIT)]:
                self._drop(surplus)

    def prune(self, unused_since: float | None = None) -> list[str]:
        """Forget steps, or only those not used since then; the ids of their images. The store's ``collect`` frees the bytes."""
        with self._lock:
            gone = [name for name, held in self._held.items() if unused_since is None or held.used < unused_since]
            kept = [_read(self._root / f"{name}.json") for name in gone]
            for name in gone:
                self._drop(name)
            self._layers = {layer: layer for held in self._held.values() for layer in held.layers}
        return [each.draft.id for each in kept if each is not None]

    def needed(self) -> tuple[set[str], set[str]]:
        """(blobs, chain ids) of all its layers."""
        with self._lock:
            layers = {layer for held in self._held.values() for layer in held.layers}
        return {layer.digest for layer in layers}, {layer.chain_id for layer in layers}

    def kept(self) -> list[Kept]:
        """All steps, the oldest first."""
        with self._lock:
            used = {name: held.used for name, held in self._held.items()}
            found = [(name, _read(self._root / f"{name}.json")) for name in used]
        kept = [msgspec.structs.replace(each, used=used[name]) for name, each in found if each is not None]
        return sorted(kept, key=lambda each: each.created)

    def __len__(self) -> int:
        return len(self._held)

    def _hold(self, name: str, kept: Kept) -> None:
        # Steps of one build have most layers in common: each is kept once.
        layers = tuple(self._layers.setdefault(layer, layer) for layer in kept.layers)
        self._held[name] = _Held(layers, kept.used)

    def _drop(self, name: str) -> None:
        (self._root / f"{name}.json").unlink(missing_ok=True)
        self._held.pop(name, None)


def _name(parent: str, key: str) -> str:
    return hashlib.sha256(f"{parent}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> Kept | None:
    """A step on disk; one that cannot be read is only a miss, and goes."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("build step %s is dropped: %s", path.name, error)
        path.unlink(missing_ok=True)
        return None
    if kept.version != VERSION:
        path.unlink(missing_ok=True)
        return None
    return kept
