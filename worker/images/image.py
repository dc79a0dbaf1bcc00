"""What an image is to the rest of the worker: a frozen view of its manifest, config and names.

Pure: built from parsed JSON; reads no disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.errors import InvalidArgument
from worker.images import layers, reference
from worker.images.manifests import Manifest

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_LAYER_SUFFIX = {None: "", "gzip": "+gzip", "zstd": "+zstd"}
_HOST_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}


def host_architecture() -> str:
    """This machine's architecture as images name it (GOARCH)."""
    machine = os.uname().machine
    return _HOST_ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: what it is (``diff_id``, ``chain_id``) and the blob that carries it."""

    diff_id: str
    chain_id: str
    digest: str
    blob_size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image.

    ``id`` is the digest of its config ("sha256:…"); ``document`` the whole config JSON, ``config`` its container
    part (Cmd, Entrypoint, Env, WorkingDir, User, ExposedPorts, Volumes, Labels, StopSignal, Healthcheck …; any may be
    missing). ``layers`` are lowest first. ``size``: bytes of the unpacked layers. ``created`` is RFC 3339 as the
    image says, perhaps "". ``repo_tags`` and ``repo_digests`` are familiar names. ``stored_at`` and ``tagged_at`` are
    seconds since the epoch, 0 when never.
    """

    id: str
    manifest_digest: str
    manifest_size: int
    manifest_type: str
    document: Mapping[str, Any]
    layers: tuple[Layer, ...]
    size: int = 0
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    stored_at: float = 0.0
    tagged_at: float = 0.0

    @property
    def config(self) -> Mapping[str, Any]:
        return self.document.get("config") or {}

    @property
    def labels(self) -> Mapping[str, str]:
        return self.config.get("Labels") or {}

    @property
    def created(self) -> str:
        return self.document.get("created") or ""

    @property
    def architecture(self) -> str:
        return self.document.get("architecture") or ""

    @property
    def os(self) -> str:
        return self.document.get("os") or ""

    @property
    def variant(self) -> str:
        return self.document.get("variant") or ""

    @property
    def platform(self) -> str:
        """``linux/arm64/v8``."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def platform_warning(self) -> str | None:
        """Docker's warning when the image is for another kind of machine than this one."""
        if self.os in ("", "linux") and self.architecture in ("", host_architecture()):
            return None
        return (
            f"The requested image's platform ({self.platform}) does not match the detected host platform "
            f"(linux/{host_architecture()}) and no specific platform was requested"
        )

    @property
    def short_id(self) -> str:
        return short(self.id)

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of all blobs it is made of: manifest, config, layers lowest first."""
        return (self.manifest_digest, self.id, *(layer.digest for layer in self.layers))


def short(image_id: str) -> str:
    """The 12 digits Docker prints."""
    return image_id.removeprefix("sha256:")[:12]


def layer_media_type(compression: str | None) -> str:
    """The OCI media type of a layer blob compressed as worker.images.compression names it."""
    if compression not in _LAYER_SUFFIX:
        raise InvalidArgument(f"layers compressed with {compression} have no media type; use gzip or zstd")
    return LAYER_TYPE + _LAYER_SUFFIX[compression]


def descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    """An OCI content descriptor."""
    return {"mediaType": media_type, "digest": digest, "size": size}


def manifest_document(config: Mapping[str, Any], layer_descriptors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An OCI image manifest over the given descriptors."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": dict(config),
        "layers": [dict(layer) for layer in layer_descriptors],
    }


def from_documents(manifest_digest: str, manifest_size: int, manifest: Manifest, document: Mapping[str, Any]) -> Image:
    """The image of a parsed manifest and config. InvalidArgument when the config is malformed or does not fit the manifest."""
    config, blobs = manifest.config, manifest.layers
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(diff_id, str) for diff_id in diff_ids):
        raise InvalidArgument(f"image config {config.digest} has no rootfs.diff_ids")
    if len(diff_ids) != len(blobs):
        raise InvalidArgument(f"image config {config.digest} names {len(diff_ids)} layers, its manifest has {len(blobs)}")
    for diff_id in diff_ids:
        reference.check_digest(diff_id)
    if not isinstance(document.get("config") or {}, dict):
        raise InvalidArgument(f"image config {config.digest} has a config that is not an object")
    return Image(
        id=config.digest,
        manifest_digest=manifest_digest,
        manifest_size=manifest_size,
        manifest_type=manifest.media_type,
        document=document,
        layers=tuple(
            Layer(diff_id, chain, blob.digest, blob.size, blob.media_type or LAYER_TYPE)
            for diff_id, chain, blob in zip(diff_ids, layers.chain_ids(diff_ids), blobs)
        ),
    )
