"""Reads image manifests and indexes, OCI's and Docker's schema 2, as strictly as bytes of strangers deserve.

Pure. It decides what a document is, that it is only one thing, and which entry of an index serves a platform. What two
readers could take for two things is refused: a key given twice, manifests beside layers, a media type that disagrees
with the one the registry declared (CVE-2021-41190). Knows no store and no registry; digests of the document itself are
its caller's to check, as is how many indexes may lie in one another (``INDEX_DEPTH``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.errors import InvalidArgument, NotFound
from worker.images import platforms, reference
from worker.images.platforms import Platform

SIZE_LIMIT = 4 << 20
INDEX_DEPTH = 4
NESTING_LIMIT = 32
LAYERS_LIMIT = 1000
ENTRIES_LIMIT = 1000
LARGEST_SIZE = 1 << 62

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
ACCEPTED = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)
"""What a client asks for, in this order."""

_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
#: Content types of servers that do not know what they serve: no claim to hold against the document.
_NO_CLAIM = frozenset({"", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream"})
#: Besides the two right ones, what Docker 1.10 and Google's registry wrote for an image's config.
_CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", "application/json", "text/html", ""})
_LAYER_TYPES = frozenset(
    {
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    }
)
_FOREIGN_TYPES = frozenset(
    {
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    }
)
_DOCUMENT_FIELDS = ("schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "subject", "artifactType")
_DESCRIPTOR_FIELDS = ("mediaType", "digest", "size", "urls", "annotations", "platform", "data", "artifactType")
_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")


class BadManifest(InvalidArgument):
    """The document is no manifest that may be used."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one blob is said to be. ``urls``: where a foreign layer lies besides; nobody here goes there."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @property
    def is_foreign(self) -> bool:
        """Whether the layer's maker does not let registries hand it on."""
        return self.media_type in _FOREIGN_TYPES

    @property
    def is_attestation(self) -> bool:
        """Whether it describes another image instead of being one."""
        key, value = _ATTESTATION
        unknown = self.platform is not None and "unknown" in (self.platform.os, self.platform.architecture)
        return unknown or self.annotations.get(key) == value


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image, or an artifact that looks like one (``require_image``). Layers are lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """What it is made of: config and layers."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Index:
    """Images of several platforms under one name."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None


def parse(data: bytes, declared: str | None) -> Manifest | Index:
    """The document in ``data``; ``declared`` is the media type of who handed it over (an HTTP header, a descriptor), or None.

    BadManifest, which says what is wrong, for anything that is not clearly one manifest or one index.
    """
    document = load(data, "manifest")
    _refuse_schema_1(document, _plain_type(declared))
    _refuse_other_spellings(document, _DOCUMENT_FIELDS, "manifest")
    media_type = _media_type(document, _plain_type(declared))
    version = document.get("schemaVersion")
    if isinstance(version, bool) or version != 2:
        raise BadManifest(f"manifest has schemaVersion {version!r:.20}, not 2")
    notes = _strings(document.get("annotations"), "annotations")
    subject = _descriptor(document["subject"], "subject") if document.get("subject") is not None else None
    if media_type in INDEX_TYPES:
        entries = _list(document, "manifests", ENTRIES_LIMIT)
        found = tuple(_descriptor(one, f"manifests[{place}]") for place, one in enumerate(entries))
        return Index(media_type, found, notes, subject)
    layers = _list(document, "layers", LAYERS_LIMIT)
    return Manifest(
        media_type,
        _descriptor(document.get("config"), "config"),
        tuple(_descriptor(one, f"layers[{place}]") for place, one in enumerate(layers)),
        notes,
        subject,
    )


def image_of(data: bytes, digest: str, declared: str | None = None) -> Manifest:
    """The manifest of one image in ``data``, whose ``digest`` names it in the error when it is anything else."""
    found = parse(data, declared)
    if isinstance(found, Index):
        raise BadManifest(f"{digest} is an index, not the manifest of one image: name one platform's")
    require_image(found)
    return found


def require_image(manifest: Manifest) -> None:
    """BadManifest when it is an artifact (a chart, a signature, an attestation) and no image to run."""
    if manifest.config.media_type not in _CONFIG_TYPES:
        raise BadManifest(f"not an image but an artifact: its config is {manifest.config.media_type}")
    for layer in manifest.layers:
        if layer.media_type not in _LAYER_TYPES and not layer.is_foreign:
            raise BadManifest(f"layer {layer.digest} has media type {layer.media_type!r}, which is no image layer's")


def choose(index: Index, platform: Platform) -> Descriptor:
    """The entry that serves ``platform`` best; one that names none serves where no other does. NotFound names what there is."""
    offered = [entry for entry in index.manifests if not entry.is_attestation]
    for candidate in platforms.served_by(platform):
        for entry in offered:
            if entry.platform is not None and entry.platform.normal == candidate:
                return entry
    unnamed = [entry for entry in offered if entry.platform is None]
    if unnamed:
        return unnamed[0]
    there = ", ".join(dict.fromkeys(str(entry.platform) for entry in offered)) or "none"
    raise NotFound(f"no matching manifest for {platform} in the manifest list entries; the image is there for: {there}")


def load(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of a stranger: of bounded size and nesting, each key once. BadManifest names ``what`` it was to be."""
    if len(data) > SIZE_LIMIT:
        raise BadManifest(f"{what} is larger than the {SIZE_LIMIT} bytes it may have")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise BadManifest(f"{what} has the key {twice!r:.80} twice in one object")
        return found

    def no_number(text: str) -> Any:
        raise BadManifest(f"{what} has {text}, which is not JSON")

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)
    except RecursionError:
        raise BadManifest(f"{what} is nested deeper than {NESTING_LIMIT} levels") from None
    except ValueError:
        raise BadManifest(f"{what} is not JSON") from None
    if not isinstance(document, dict):
        raise BadManifest(f"{what} is not a JSON object")
    _bound_nesting(document, what)
    return document


def _bound_nesting(document: Any, what: str) -> None:
    level: list[Any] = [document]
    for _ in range(NESTING_LIMIT):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise BadManifest(f"{what} is nested deeper than {NESTING_LIMIT} levels")


def _plain_type(declared: str | None) -> str:
    """A Content-Type without its parameters; "" for one that claims nothing."""
    kind = (declared or "").partition(";")[0].strip().lower()
    return "" if kind in _NO_CLAIM else kind


def _refuse_schema_1(document: Mapping[str, Any], declared: str) -> None:
    version = document.get("schemaVersion")
    old = version == 1 and version is not True
    if old or declared in _SCHEMA_1 or document.get("mediaType") in _SCHEMA_1:
        raise BadManifest(
            "manifest is of schema 1, which has been out of use since 2017 and cannot be verified: "
            "push the image again with a current client"
        )


def _refuse_other_spellings(found: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    """Some readers take ``Layers`` for ``layers``: what they see must be what we see."""
    known = {name.lower(): name for name in fields}
    for key in found:
        if known.get(key.lower(), key) != key:
            raise BadManifest(f"{where} has {key!r}, which some read as {known[key.lower()]!r}")


def _media_type(document: Mapping[str, Any], declared: str) -> str:
    own = document.get("mediaType")
    if own is not None and (not isinstance(own, str) or own not in ACCEPTED):
        raise BadManifest(f"unsupported manifest media type {own!r:.100}")
    if declared and declared not in ACCEPTED:
        raise BadManifest(f"unsupported manifest media type {declared!r:.100}")
    if own and declared and own != declared:
        raise BadManifest(f"manifest says it is {own}, but was handed over as {declared}")
    is_index = document.get("manifests") is not None
    is_manifest = document.get("layers") is not None or document.get("config") is not None
    if is_index and is_manifest:
        raise BadManifest("manifest is ambiguous: it has manifests beside layers or a config")
    media_type = own or declared or (OCI_INDEX if is_index else OCI_MANIFEST)
    if own is None and media_type in (DOCKER_MANIFEST, DOCKER_INDEX):
        raise BadManifest(f"manifest does not repeat its media type {media_type}")
    if (media_type in INDEX_TYPES) != is_index:
        raise BadManifest(f"manifest says it is {media_type}, but has {'manifests' if is_index else 'no manifests'}")
    return media_type


def _list(document: Mapping[str, Any], name: str, limit: int) -> list[Any]:
    found = document.get(name)
    if not isinstance(found, list):
        raise BadManifest(f"manifest has no list of {name}")
    if len(found) > limit:
        raise BadManifest(f"manifest has {len(found)} {name}, more than {limit}")
    return found


def _descriptor(value: Any, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise BadManifest(f"manifest's {where} is not a descriptor: {value!r:.80}")
    _refuse_other_spellings(value, _DESCRIPTOR_FIELDS, f"manifest's {where}")
    media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise BadManifest(f"manifest's {where} has no media type or digest: {value!r:.80}")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < LARGEST_SIZE:
        raise BadManifest(f"manifest's {where} has size {size!r:.40}")
    try:
        reference.check_digest(digest)
    except InvalidArgument as error:
        raise BadManifest(f"manifest's {where}: {error.message}") from None
    urls = value.get("urls") or []
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise BadManifest(f"manifest's {where} has urls that are no list of strings")
    artifact = value.get("artifactType") or ""
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        platform=_platform(value.get("platform"), where),
        urls=tuple(urls),
        annotations=_strings(value.get("annotations"), f"{where}.annotations"),
        artifact_type=artifact if isinstance(artifact, str) else "",
    )


def _platform(value: Any, where: str) -> Platform | None:
    if value is None:
        return None
    parts = [value.get(name) or "" for name in ("os", "architecture", "variant")] if isinstance(value, dict) else [None]
    if not all(isinstance(part, str) for part in parts):
        raise BadManifest(f"manifest's {where} has a malformed platform: {value!r:.80}")
    return Platform(*parts) if any(parts) else None


def _strings(value: Any, where: str) -> dict[str, str]:
    found = value or {}
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise BadManifest(f"manifest's {where} is no map of strings")
    return found
