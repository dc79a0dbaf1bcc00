"""The formats images arrive in: docker-archive and OCI-layout tars (``docker save``), and root file system tars.

Decides which manifests an archive holds and stores their blobs; naming and unpacking are the store's. Every member
becomes a blob as it streams by, because ``manifest.json`` stands last; what no image needs is collected afterwards.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.clock import rfc3339
from covey.errors import InvalidArgument
from worker.images import compression, image, manifests, reference
from worker.images.compression import Peeked, Readable
from worker.images.content import Blob, ContentStore, Lease
from worker.images.image import Image
from worker.images.layers import LayerStore
from worker.images.manifests import Descriptor, Index, Manifest
from worker.images.reference import Reference
from worker.images.tar_stream import BadArchive, Limits, TarReader

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class Found:
    """An image of an archive, its blobs stored: the manifest and the names the archive gives it."""

    manifest: Blob
    names: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image now in the store and the familiar names it was loaded under (none: say its id)."""

    image: Image
    names: tuple[str, ...]


def read(stream: Readable, content: ContentStore, lease: Lease, limits: Limits | None = None) -> list[Found]:
    """Store the blobs of an archive and say which images it holds. BadArchive when it is none."""
    members = _Members(content)
    members.ingest(TarReader(compression.plain(stream), limits), lease)
    described = members.json("manifest.json") if "manifest.json" in members else None
    if "index.json" in members:
        found = _from_layout(members, content, lease, described)
        if found:
            return found
    if described is None:
        raise BadArchive("not an image archive: it has neither manifest.json nor index.json with an image in it")
    if not isinstance(described, list) or not described:
        raise BadArchive("image archive: manifest.json is not a list of images")
    return [_from_docker(item, members, content, lease) for item in described]


def store_layer(stream: Readable, content: ContentStore, lease: Lease) -> tuple[Blob, str]:
    """Store a layer as it comes, or decompressed where its compression has no media type; (blob, media type)."""
    peeked = Peeked(stream, 8)
    kind = compression.kind(peeked.head)
    if kind in (None, "gzip", "zstd"):
        return content.ingest(peeked, lease), image.layer_media_type(kind)
    return content.ingest(compression.plain(peeked), lease), image.layer_media_type(None)


def read_rootfs(stream: Readable, document: dict[str, Any], content: ContentStore, layers: LayerStore, lease: Lease) -> Blob:
    """Store a root file system tar as an image of one layer with the config ``document``; its manifest."""
    blob, media_type = store_layer(stream, content, lease)
    if not blob.size:
        raise InvalidArgument("cannot import: the archive is empty")
    with content.open(blob.digest) as file:
        base = layers.unpack_base(file)
    lease.pin(base.chain_id)
    rootfs = {"type": "layers", "diff_ids": [base.diff_id]}
    config = content.put(json.dumps({**document, "rootfs": rootfs}).encode(), lease)
    manifest = image.manifest_document(
        image.descriptor(image.CONFIG_TYPE, config.digest, config.size),
        [image.descriptor(media_type, blob.digest, blob.size)],
    )
    return content.put(json.dumps(manifest).encode(), lease)


def import_document(changes: Sequence[str], message: str, platform: str, now: float) -> dict[str, Any]:
    """The config of an imported image, all but its rootfs. ``platform`` is ``os[/arch[/variant]]`` or empty."""
    from worker.dockerfile import config as dockerfile

    words = platform.split("/") if platform else []
    if len(words) > 3 or not all(words):
        raise InvalidArgument(f"invalid platform {platform!r}: expected os[/architecture[/variant]]")
    created = rfc3339(now)
    document: dict[str, Any] = {
        "architecture": words[1] if len(words) > 1 else image.host_architecture(),
        "os": words[0] if words else "linux",
        "created": created,
        "config": dockerfile.changed({}, changes),
        "history": [{"created": created, "comment": message or "Imported from -"}],
    }
    if len(words) > 2:
        document["variant"] = words[2]
    return document


class _Members:
    """The files of an archive by name, links followed."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._blobs: dict[str, Blob] = {}
        self._links: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def ingest(self, reader: TarReader, lease: Lease) -> None:
        for entry in reader:
            name = posixpath.normpath(entry.name)
            if entry.kind == "file" and entry.sparse is None:
                self._blobs[name] = self._content.ingest(reader, lease)
            elif entry.kind == "symlink":
                self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.link))
            elif entry.kind == "hardlink":
                self._links[name] = posixpath.normpath(entry.link)

    def find(self, name: str) -> Blob | None:
        name = posixpath.normpath(name)
        for _ in range(8):
            if name in self._blobs:
                return self._blobs[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def get(self, name: str) -> Blob:
        found = self.find(name)
        if found is None:
            raise BadArchive(f"image archive: {name!r} is missing; save the image again")
        return found

    def read(self, name: str) -> bytes:
        return self._content.read(self.get(name).digest, manifests.SIZE_LIMIT)

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError):
            raise BadArchive(f"image archive: {name!r} is not JSON") from None


def _from_docker(item: Any, members: _Members, content: ContentStore, lease: Lease) -> Found:
    sound = isinstance(item, dict) and isinstance(item.get("Config"), str) and isinstance(item.get("Layers"), list)
    if not sound:
        raise BadArchive("image archive: manifest.json has an entry without Config and Layers")
    config = members.get(item["Config"])
    layers = []
    for path in item["Layers"]:
        member = members.get(str(path))
        with content.open(member.digest) as file:
            kind = compression.kind(file.read(8))
            if kind in (None, "gzip", "zstd"):
                layers.append(image.descriptor(image.layer_media_type(kind), member.digest, member.size))
                continue
            file.seek(0)
            blob, media_type = store_layer(file, content, lease)
            layers.append(image.descriptor(media_type, blob.digest, blob.size))
    manifest = image.manifest_document(image.descriptor(image.CONFIG_TYPE, config.digest, config.size), layers)
    stored = content.put(json.dumps(manifest).encode(), lease)
    return Found(stored, _tags(item))


def _tags(item: Mapping[str, Any]) -> tuple[Reference, ...]:
    return tuple(reference.parse_tagged(str(tag)) for tag in item.get("RepoTags") or [])


def _from_layout(members: _Members, content: ContentStore, lease: Lease, described: Any) -> list[Found]:
    """The images of ``index.json`` whose blobs are all there, with the names of both index and ``manifest.json``."""
    names_by_config: dict[str, tuple[Reference, ...]] = {}
    for item in described if isinstance(described, list) else []:
        config = members.find(str(item.get("Config"))) if isinstance(item, dict) else None
        if config:
            names_by_config[config.digest] = _tags(item)
    found: dict[str, Found] = {}
    for entry in _index(members).manifests:
        chosen = _choose(content, entry, manifests.INDEX_DEPTH)
        if chosen is None:
            continue
        digest, manifest = chosen
        names = set(names_by_config.get(manifest.config.digest, ()))
        if not names:
            names = set(_annotated(entry))
        before = found.get(digest)
        names |= set(before.names) if before else set()
        found[digest] = Found(Blob(digest, content.size(digest)), tuple(sorted(names, key=str)))
    return list(found.values())


def _index(members: _Members) -> Index:
    found = manifests.parse(members.read("index.json"), manifests.OCI_INDEX)
    assert isinstance(found, Index)
    return found


def _choose(content: ContentStore, entry: Descriptor, depth: int) -> tuple[str, Manifest] | None:
    """The manifest an index entry means on this machine: itself, or of an index the one of our platform, else any."""
    digest = entry.digest
    if depth == 0 or not content.has(digest):
        return None
    document = manifests.parse(content.read(digest, manifests.SIZE_LIMIT), entry.media_type or None)
    if isinstance(document, Manifest):
        return (digest, document) if all(content.has(blob.digest) for blob in document.blobs) else None
    offered = [candidate for candidate in document.manifests if not candidate.is_attestation]
    for candidate in sorted(offered, key=_is_foreign):
        if chosen := _choose(content, candidate, depth - 1):
            return chosen
    return None


def _is_foreign(entry: Descriptor) -> bool:
    return entry.platform is not None and entry.platform.normal.architecture != image.host_architecture()


def _annotated(entry: Descriptor) -> list[Reference]:
    for key in _NAMES:
        text = entry.annotations.get(key, "")
        if "/" in text or ":" in text:
            return [reference.parse_tagged(text)]
    return []
