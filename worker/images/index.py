"""The image store's table of contents on disk: ``index.json`` and ``oci-layout``, an OCI image layout with our notes.

One descriptor a name (annotation ``org.opencontainers.image.ref.name``), or one without a name for a dangling image.
Decides only how rows look on disk; what they mean is worker.images.store's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import Internal
from worker.images import disk
from worker.images.image import MANIFEST_TYPE, descriptor
from worker.kernel import trees

VERSION = "1"
_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
_NAME = "org.opencontainers.image.ref.name"
_VERSION = "covey.version"
_SIZE = "covey.image.size"
_STORED = "covey.image.stored"
_TAGGED = "covey.image.tagged"
_REMOVED = "covey.image.removed"


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its manifest, full names (``docker.io/library/x:tag`` or ``…@sha256:…``), sizes and times.

    ``removed``: no longer listed, kept only for the containers that still stand on its layers.
    """

    manifest_digest: str
    manifest_size: int
    manifest_type: str
    names: tuple[str, ...]
    size: int
    stored_at: float
    tagged_at: float
    removed: bool


def write(root: Path, rows: Iterable[Row]) -> None:
    """Replace the index atomically."""
    manifests: list[dict[str, Any]] = []
    for row in rows:
        notes = {_SIZE: str(row.size), _STORED: repr(row.stored_at), _TAGGED: repr(row.tagged_at)}
        if row.removed:
            notes[_REMOVED] = "true"
        base = descriptor(row.manifest_type, row.manifest_digest, row.manifest_size)
        for name in row.names or ("",):
            manifests.append({**base, "annotations": {**notes, **({_NAME: name} if name else {})}})
    document = {"schemaVersion": 2, "manifests": manifests, "annotations": {_VERSION: VERSION}}
    with disk.naming_full_disk(root):
        if not (root / "oci-layout").exists():
            trees.write_atomically(root / "oci-layout", _LAYOUT)
        trees.write_atomically(root / "index.json", json.dumps(document, indent=1).encode())


def read(root: Path) -> list[Row]:
    """The rows on disk; none on a fresh disk. Internal when the file is damaged or another release's."""
    path = root / "index.json"
    try:
        document = json.loads(path.read_bytes())
        version = document["annotations"][_VERSION]
        manifests = document["manifests"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(f"image index {path} is damaged ({error}); move it away and load the images again") from error
    if version != VERSION:
        raise Internal(f"image index {path} has version {version}, this release reads {VERSION}")
    rows: dict[str, Row] = {}
    for entry in manifests:
        digest, notes = entry["digest"], entry.get("annotations") or {}
        names = (notes[_NAME],) if notes.get(_NAME) else ()
        before = rows.get(digest)
        rows[digest] = Row(
            manifest_digest=digest,
            manifest_size=entry["size"],
            manifest_type=entry.get("mediaType") or MANIFEST_TYPE,
            names=(before.names if before else ()) + names,
            size=int(notes.get(_SIZE, "0")),
            stored_at=float(notes.get(_STORED, "0")),
            tagged_at=float(notes.get(_TAGGED, "0")),
            removed=notes.get(_REMOVED) == "true",
        )
    return list(rows.values())
