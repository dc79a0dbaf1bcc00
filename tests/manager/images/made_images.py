"""Images as nodes announce them: digests that are numbers."""

from __future__ import annotations

from covey.wire.messages import HeldImage

MANIFEST = "sha256:" + "0" * 64


def blob(number: int) -> str:
    return f"sha256:{number:064x}"


def image(blobs: int, manifest: str = MANIFEST, *names: str, tagged_at: float = 1.0) -> HeldImage:
    digests = tuple(blob(number + 1) for number in range(blobs))
    return HeldImage(manifest=manifest, size=100, names=names or ("docker.io/x/y:1",), blobs=digests, tagged_at=tagged_at)
