"""The image store's table of contents on disk: ``index.json`` and ``oci-layout``, an OCI image layout with our notes.

One descriptor a name (annotation ``org.opencontainers.image.ref.name``), or one without a name for a dangling image.
``index.copy.json`` holds the same bytes: it is read where the first is damaged. Decides only how rows look on disk;
what they mean is worker.images.store's.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import Internal
from worker.images import disk, sealed
from worker.images.image import MANIFEST_TYPE, descriptor
from worker.kernel import trees

VERSION = "2"
_UNSEALED = "1"
"""What release 0.1 wrote: without a checksum."""
INDEX, COPY, LAYOUT = "index.json", "index.copy.json", "oci-layout"
LAYOUT_BYTES = b'{"imageLayoutVersion": "1.0.0"}'
_NAME = "org.opencontainers.image.ref.name"
_VERSION = "covey.version"
_SIZE = "covey.image.size"
_STORED = "covey.image.stored"
_TAGGED = "covey.image.tagged"
_REMOVED = "covey.image.removed"
_PINNED = "covey.image.pinned"
_USED = "covey.image.used"
_SERVICE = "covey.image.service."

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its manifest, full names (``docker.io/library/x:tag`` or ``…@sha256:…``), sizes and times.

    ``removed``: no longer listed, kept only for the containers that still stand on its layers. ``pinned``: no collection
    takes it. ``used_at``: when a container was last made of it, 0 when never; ``services``: when for each service.
    """

    manifest_digest: str
    manifest_size: int
    manifest_type: str
    names: tuple[str, ...]
    size: int
    stored_at: float
    tagged_at: float
    removed: bool
    pinned: bool = False
    used_at: float = 0.0
    services: tuple[tuple[str, float], ...] = ()


def encoded(rows: Iterable[Row]) -> bytes:
    """The bytes of ``index.json``."""
    manifests: list[dict[str, Any]] = []
    for row in rows:
        notes = {_SIZE: str(row.size), _STORED: repr(row.stored_at), _TAGGED: repr(row.tagged_at)}
        notes |= {_REMOVED: "true"} if row.removed else {}
        notes |= {_PINNED: "true"} if row.pinned else {}
        notes |= {_USED: repr(row.used_at)} if row.used_at else {}
        notes |= {f"{_SERVICE}{service}": repr(used_at) for service, used_at in row.services}
        base = descriptor(row.manifest_type, row.manifest_digest, row.manifest_size)
        for name in row.names or ("",):
            manifests.append({**base, "annotations": {**notes, **({_NAME: name} if name else {})}})
    return sealed.seal({"schemaVersion": 2, "manifests": manifests, "annotations": {_VERSION: VERSION}})


def write(root: Path, rows: Iterable[Row]) -> None:
    """Replace the index atomically, then its copy."""
    data = encoded(rows)
    with disk.naming_full_disk(root):
        if not (root / LAYOUT).exists():
            trees.write_atomically(root / LAYOUT, LAYOUT_BYTES)
        _replace_index(root, data)
    try:
        trees.write_atomically(root / COPY, data)
    except OSError as error:
        # The index itself stands: an older copy only matters once that is damaged.
        _log.warning("cannot write %s: %s", root / COPY, error.strerror)


def _replace_index(root: Path, data: bytes) -> None:
    try:
        trees.write_atomically(root / INDEX, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not (root / COPY).exists():
            raise
        # Images must be removable on a full disk: the copy makes room for what it would be a copy of.
        (root / COPY).unlink()
        trees.write_atomically(root / INDEX, data)


def read(root: Path) -> list[Row]:
    """The rows on disk; none on a fresh disk. Internal when index and copy are damaged or another release's.

    What a crash in the middle of writing left is removed.
    """
    for name in (INDEX, COPY, LAYOUT):
        trees.clear_unfinished(root / name)
    try:
        return decoded(root / INDEX)
    except FileNotFoundError:
        return decoded(root / COPY) if (root / COPY).exists() else []
    except Internal as error:
        if not (root / COPY).exists():
            raise
        rows = decoded(root / COPY)
        _log.error("%s; its copy %s is used instead", error.message, root / COPY)
        return rows


def decoded(path: Path) -> list[Row]:
    """The rows of one file. Internal when it is damaged or another release's, FileNotFoundError."""
    data = path.read_bytes()
    try:
        document = sealed.parse(data)
        version = document["annotations"][_VERSION]
        if version != _UNSEALED or sealed.is_sealed(document):
            document = sealed.unseal(data)
        rows: dict[str, Row] = {}
        for entry in document["manifests"] if version in (VERSION, _UNSEALED) else ():
            rows[entry["digest"]] = _row(entry, rows.get(entry["digest"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Internal(f"image index {path} is damaged ({error}); move it away and load the images again") from error
    if version not in (VERSION, _UNSEALED):
        raise Internal(f"image index {path} has version {version}, this release reads {_UNSEALED} and {VERSION}")
    return list(rows.values())


def _row(entry: dict[str, Any], before: Row | None) -> Row:
    notes = entry.get("annotations") or {}
    return Row(
        manifest_digest=entry["digest"],
        manifest_size=entry["size"],
        manifest_type=entry.get("mediaType") or MANIFEST_TYPE,
        names=(before.names if before else ()) + ((notes[_NAME],) if notes.get(_NAME) else ()),
        size=int(notes.get(_SIZE, "0")),
        stored_at=float(notes.get(_STORED, "0")),
        tagged_at=float(notes.get(_TAGGED, "0")),
        removed=notes.get(_REMOVED) == "true",
        pinned=notes.get(_PINNED) == "true",
        used_at=float(notes.get(_USED, "0")),
        services=tuple((key.removeprefix(_SERVICE), float(notes[key])) for key in sorted(notes) if key.startswith(_SERVICE)),
    )
