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
from pathlib import Path
from typing import Any

import msgspec

from worker.images import disk
from worker.images.draft import Draft
from worker.images.image import Layer
from worker.kernel import trees

_log = logging.getLogger(__name__)
VERSION = 1
LIMIT = 5000
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


class StepCache:
    """``root`` is the directory; what it holds is read once, here."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self._root, self._now = root, now
        self._lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in root.glob("*.json"):
            kept = _read(path)
            if kept is not None:
                self._kept[path.stem] = kept

    def find(self, parent: str, key: str) -> Draft | None:
        """The image that step ``key`` on ``parent`` (an image id, "" for nothing) led to last time."""
        with self._lock:
            kept = self._kept.get(_name(parent, key))
            if kept is None:
                return None
            kept.used = self._now()
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
            self._kept[name] = kept
            for surplus in sorted(self._kept, key=lambda each: self._kept[each].used)[: max(0, len(self._kept) - LIMIT)]:
                self._drop(surplus)

    def prune(self, unused_since: float | None = None) -> list[str]:
        """Forget steps, or only those not used since then; the ids of their images. The store's ``collect`` frees the bytes."""
        with self._lock:
            gone = [name for name, kept in self._kept.items() if unused_since is None or kept.used < unused_since]
            ids = [self._kept[name].draft.id for name in gone]
            for name in gone:
                self._drop(name)
        return ids

    def needed(self) -> tuple[set[str], set[str]]:
        """(blobs, chain ids) of all its layers."""
        with self._lock:
            layers = [layer for kept in self._kept.values() for layer in kept.layers]
        return {layer.digest for layer in layers}, {layer.chain_id for layer in layers}

    def kept(self) -> list[Kept]:
        """All steps, the oldest first."""
        with self._lock:
            return sorted(self._kept.values(), key=lambda each: each.created)

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, name: str) -> None:
        (self._root / f"{name}.json").unlink(missing_ok=True)
        self._kept.pop(name, None)


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
