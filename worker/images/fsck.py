"""Finds what is not as it was written: every flipped bit in blobs, in unpacked layers and in the store's own tables.

Reads the disk only, and takes no lock: it may run beside a store that is in use, and on one that no daemon has open. Each
fault names a path, what is wrong and what to do; what can be done at once is worker.images.repair's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import CoveyError, Internal
from worker.images import index, layers, reference, tree_record
from worker.images.index import Row

BLOB, LAYER, TABLE = "blob", "layer", "table"
_HEX64 = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_REPAIR = "run `cluster image fsck --repair`"


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind`` BLOB, LAYER or TABLE; ``key`` its digest, chain id or file name; ``step`` what the user can do."""

    kind: str
    key: str
    path: Path
    what: str
    step: str


def check(root: Path, layers_root: Path) -> Iterator[Fault]:
    """Every fault of the store with its tables and blobs in ``root`` and its unpacked layers in ``layers_root``."""
    yield from _tables(root)
    rows = _rows(root)
    needed: dict[str, set[str]] = {}
    for row in rows:
        for digest in _blobs(root, row):
            needed.setdefault(digest, set()).update(row.names or (row.manifest_digest,))
    yield from _blob_faults(root, needed)
    yield from _layer_faults(layers_root)


def _tables(root: Path) -> Iterator[Fault]:
    broken = {name: error.message for name in (index.INDEX, index.COPY) if (error := _unreadable(root / name))}
    steps = _REPAIR if len(broken) < 2 else "move both away and load or pull the images again; their blobs are kept until then"
    for name in broken:
        yield Fault(TABLE, name, root / name, "is damaged: it is not what its checksum says", steps)
    layout = root / index.LAYOUT
    if layout.exists() and layout.read_bytes() != index.LAYOUT_BYTES:
        yield Fault(TABLE, index.LAYOUT, layout, "is damaged", _REPAIR)


def _unreadable(path: Path) -> Internal | None:
    try:
        index.decoded(path)
    except FileNotFoundError:
        return None
    except Internal as error:
        return error
    return None


def _rows(root: Path) -> list[Row]:
    for name in (index.INDEX, index.COPY):
        try:
            return index.decoded(root / name)
        except (OSError, Internal):
            continue
    return []


def _blobs(root: Path, row: Row) -> Iterator[str]:
    """The digests an image needs, as far as its manifest can be read."""
    yield row.manifest_digest
    try:
        data = (root / "blobs" / "sha256" / row.manifest_digest.removeprefix("sha256:")).read_bytes()
        manifest = json.loads(data) if _digest(data) == row.manifest_digest else {}
        for blob in (manifest["config"], *manifest["layers"]):
            yield reference.check_digest(blob["digest"])
    except (OSError, ValueError, KeyError, TypeError, CoveyError):
        return


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _blob_faults(root: Path, needed: Mapping[str, set[str]]) -> Iterator[Fault]:
    directory = root / "blobs" / "sha256"
    present = sorted(os.listdir(directory)) if directory.is_dir() else []
    for name in present:
        path, digest = directory / name, f"sha256:{name}"
        if not _HEX64.fullmatch(name):
            yield Fault(BLOB, digest, path, "is no blob", "remove it")
            continue
        found = _hash(path)
        if found not in (None, digest):
            yield Fault(BLOB, digest, path, f"is damaged: its digest is {found}", _fetch(needed.get(digest, set())))
    for digest, names in needed.items():
        path = directory / digest.removeprefix("sha256:")
        if path.name not in present and not path.exists() and digest.startswith("sha256:"):
            yield Fault(BLOB, digest, path, "is missing", _fetch(names))


def _hash(path: Path) -> str | None:
    """The digest of a file; None when it went away meanwhile."""
    hasher = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_PIECE):
                hasher.update(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"not known, it cannot be read ({error.strerror})"
    return "sha256:" + hasher.hexdigest()


def _fetch(names: set[str]) -> str:
    if not names:
        return f"no image needs it: {_REPAIR}, which removes it"
    return f"{_REPAIR}, which removes it, then pull or load {', '.join(sorted(names))} again"


def _layer_faults(root: Path) -> Iterator[Fault]:
    for name in sorted(os.listdir(root)) if root.is_dir() else []:
        place = root / name
        if not _HEX64.fullmatch(name):
            continue
        try:
            before = place.stat().st_ino
            faults = list(_one_layer(place))
            # A layer that was removed or replaced while it was looked at says nothing.
            if place.stat().st_ino == before:
                yield from faults
        except FileNotFoundError:
            continue


def _one_layer(place: Path) -> Iterator[Fault]:
    chain = f"sha256:{place.name}"

    def fault(path: Path, what: str) -> Fault:
        return Fault(LAYER, chain, path, what, f"{_REPAIR}, which unpacks the layer again from its blob")

    record: dict[str, Any] = {}
    try:
        record = layers.read_record(place / layers.RECORD)
        if record["chain_id"] != chain:
            yield fault(place / layers.RECORD, f"is that of another layer, {record['chain_id']}")
    except FileNotFoundError:
        yield fault(place / layers.RECORD, "is missing")
    except ValueError as error:
        yield fault(place / layers.RECORD, f"is damaged: {error}")
    else:
        if "tree" not in record:
            yield fault(place, "cannot be verified: an older release unpacked it and kept no record")
            return
    yield from (fault(path, what) for path, what in _tree_faults(place, record.get("tree")))


def _tree_faults(place: Path, digest: str | None) -> Iterator[tuple[Path, str]]:
    path = place / layers.TREE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        yield path, "is missing"
        return
    doubt, found = "", tree_record.checksum(data)
    if found is None or digest not in (None, found):
        yield path, "is damaged: it is not what its checksum says"
        doubt = f" (as {path.name} has it, which is damaged itself)"
    root_fd = os.open(place / layers.DIFF, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for difference in tree_record.compare(data.splitlines(), root_fd):
            yield place / layers.DIFF / difference.path, difference.what + doubt
    finally:
        os.close(root_fd)
