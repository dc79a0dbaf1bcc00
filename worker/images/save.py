"""The archive that ``docker save`` writes since release 25: an OCI layout that is a docker-archive too, as a stream.

Decides what is in it: every blob as the store has it, so that digests survive a round trip; ``index.json`` with the
manifests; ``manifest.json`` for readers that know no OCI. The same images give the same bytes. A layer compressed with
zstd, which such readers may not know, lies in it a second time, as a plain tar. Nothing is written to disk. Which images,
and that their blobs stay while they are read, is the caller's.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.images import compression, image
from worker.images.compression import CHUNK, Readable
from worker.images.content import BadDigest, ContentStore
from worker.images.image import Image
from worker.images.index import LAYOUT_BYTES
from worker.images.reference import Reference

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_CONTAINERD_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_BLOBS = "blobs/sha256/"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image to save and the tags to save it under (none: it is loaded without a name)."""

    image: Image
    names: tuple[Reference, ...]


def merged(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Each image once, under all names it was chosen by."""
    names: dict[str, dict[Reference, None]] = {}
    for each in chosen:
        names.setdefault(each.image.id, {}).update(dict.fromkeys(each.names))
    images = {each.image.id: each.image for each in chosen}
    return [Chosen(images[each], tuple(names[each])) for each in images]


@dataclass(frozen=True, slots=True)
class _File:
    """A blob in the archive, and the stored one it is read from: ``plain``, decompressed."""

    digest: str
    size: int
    source: str
    plain: bool = False

    @property
    def path(self) -> str:
        return _path(self.digest)


def write(chosen: Sequence[Chosen], content: ContentStore) -> Iterator[bytes]:
    """The archive, in pieces. NotFound before the first piece when a blob is missing; BadDigest when one is damaged."""
    files: dict[str, _File] = {}
    described = []
    entries: list[dict[str, Any]] = []
    for each in chosen:
        layers = [_legacy_layer(layer, content) for layer in each.image.layers]
        for digest in each.image.blobs:
            files.setdefault(digest, _File(digest, content.size(digest), digest))
        files.update({layer.digest: layer for layer in layers})
        described.append(
            {
                "Config": _path(each.image.id),
                "RepoTags": [name.familiar for name in each.names],
                "Layers": [layer.path for layer in layers],
            }
        )
        entries += _descriptors(each)
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries}
    for directory in ("blobs/", _BLOBS):
        yield _header(directory, 0, tarfile.DIRTYPE)
    for _, file in sorted(files.items()):
        yield from _blob(file, content)
    yield from _member("index.json", json.dumps(index).encode())
    yield from _member("manifest.json", json.dumps(described).encode())
    yield from _member("oci-layout", LAYOUT_BYTES)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _path(digest: str) -> str:
    return _BLOBS + digest.removeprefix("sha256:")


def _descriptors(each: Chosen) -> list[dict[str, Any]]:
    """One entry of the index a name; one without notes where there is none."""
    base = image.descriptor(each.image.manifest_type, each.image.manifest_digest, each.image.manifest_size)
    notes: list[Mapping[str, str]] = [{_CONTAINERD_NAME: str(name), _REF_NAME: name.tag or ""} for name in each.names]
    return [{**base, "annotations": dict(one)} for one in notes] or [base]


def _legacy_layer(layer: image.Layer, content: ContentStore) -> _File:
    """The layer in a form that every reader of docker-archives takes: plain or gzip."""
    with content.open(layer.digest) as file:
        if compression.kind(file.read(8)) in (None, "gzip"):
            return _File(layer.digest, content.size(layer.digest), layer.digest)
        file.seek(0)
        plain = compression.plain(file)
        size = 0
        while data := plain.read(CHUNK):
            size += len(data)
    return _File(layer.diff_id, size, layer.digest, plain=True)


def _blob(file: _File, content: ContentStore) -> Iterator[bytes]:
    yield _header(file.path, file.size)
    hasher, left = hashlib.sha256(), file.size
    with content.open(file.source) as stored:
        stream: Readable = compression.plain(stored) if file.plain else stored
        while data := stream.read(CHUNK):
            hasher.update(data)
            left -= len(data)
            yield data
    if left or "sha256:" + hasher.hexdigest() != file.digest:
        raise BadDigest(f"blob {file.digest} is damaged on disk: load or pull its image again")
    yield bytes(-file.size % tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.size, info.type, info.mode = size, kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)
