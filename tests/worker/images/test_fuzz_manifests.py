"""Fuzzing of manifests: what the strict reader takes is sound and one thing only, what it refuses it refuses in words.

Documents that were sound before values, keys and letters of them were changed. Bounded and repeated as test_fuzz is.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from covey.errors import CoveyError
from worker.images import manifests, platforms, reference

from .test_fuzz import LONG_SECONDS, SECONDS, rounds

pytestmark = pytest.mark.suite

_DIGEST = "sha256:" + "a" * 64
_DESCRIPTOR = {"mediaType": manifests.OCI_CONFIG, "digest": _DIGEST, "size": 7}
_LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _DIGEST, "size": 9}
_ENTRY = {
    "mediaType": manifests.OCI_MANIFEST,
    "digest": _DIGEST,
    "size": 9,
    "platform": {"os": "linux", "architecture": "arm64"},
}
_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "config": _DESCRIPTOR, "layers": [_LAYER, _LAYER]},
    {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": [_ENTRY, {**_ENTRY, "annotations": {"a": "b"}}]},
    {"schemaVersion": 2, "mediaType": manifests.DOCKER_INDEX, "manifests": [_ENTRY]},
)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2, 1.5, 1 << 70, "", "x", _DIGEST, "sha256:", [], [[]], {}, {"a": {}}),
    *(_DESCRIPTOR, [_LAYER], [_ENTRY]),
    *manifests.ACCEPTED,
)
_KEYS = (
    *("schemaVersion", "mediaType", "config", "layers", "manifests", "Layers", "subject", "annotations", ""),
    *("urls", "digest", "size", "platform", "os", "variant"),
)


def _manifest(rng: random.Random) -> bytes:
    """A document that was sound before values, keys and letters of it were changed."""
    document = json.loads(json.dumps(rng.choice(_DOCUMENTS)))
    for _ in range(rng.randint(0, 3)):
        place: Any = document
        while rng.random() < 0.6 and (inner := [one for one in _inside(place) if isinstance(one, (dict, list)) and one]):
            place = rng.choice(inner)
        key = rng.choice([*place, *_KEYS]) if isinstance(place, dict) else rng.randrange(len(place))
        place[key] = json.loads(json.dumps(rng.choice(_VALUES)))
    text = bytearray(json.dumps(document).encode())
    for _ in range(rng.choice((0, 0, 0, 1, 4))):
        text[rng.randrange(len(text))] = rng.choice(b'{}[]",:0e\\\xff')
    return bytes(text)


def _inside(place: Any) -> list[Any]:
    return list(place.values()) if isinstance(place, dict) else place


def _manifests(seconds: float) -> None:
    read = 0
    for rng in rounds("manifests", seconds):
        for _ in range(100):
            data = _manifest(rng)
            try:
                found = manifests.parse(data, rng.choice((None, "", "text/plain; charset=utf-8", *manifests.ACCEPTED)))
                read += 1
                blobs = found.manifests if isinstance(found, manifests.Index) else (found.config, *found.layers)
                for blob in blobs:
                    assert reference.check_digest(blob.digest)
                    assert 0 <= blob.size < manifests.LARGEST_SIZE
                # What another reader sees must be the same kind of thing.
                assert (json.loads(data).get("manifests") is not None) == isinstance(found, manifests.Index)
                if isinstance(found, manifests.Index):
                    manifests.choose(found, platforms.Platform("linux", "amd64"))
                else:
                    manifests.require_image(found)
            except CoveyError as refusal:
                words = refusal.message
            else:
                words = found.media_type
            assert words
    print(f"fuzz manifests: {read} were read")
    assert read


def test_manifests() -> None:
    _manifests(min(SECONDS, 2))


@pytest.mark.long
def test_manifests_for_long() -> None:
    _manifests(min(LONG_SECONDS, 60))
