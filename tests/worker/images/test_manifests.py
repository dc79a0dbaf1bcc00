"""Manifests of strangers: one thing is read, two in one are refused, and an index serves each machine its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import CoveyError, InvalidArgument, NotFound
from worker.images import manifests, platforms
from worker.images.manifests import BadManifest, Index, Manifest
from worker.images.platforms import Platform

DIGEST = "sha256:" + "a" * 64
HOST = Platform("linux", "amd64")


def descriptor(**fields: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 7, **fields}


def manifest(**fields: Any) -> dict[str, Any]:
    config = descriptor(mediaType=manifests.OCI_CONFIG)
    whole = {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "config": config, "layers": [descriptor()], **fields}
    return {name: value for name, value in whole.items() if value is not ...}


def index(*platform_names: str, **fields: Any) -> dict[str, Any]:
    entries = []
    for number, name in enumerate(platform_names):
        entry = descriptor(mediaType=manifests.OCI_MANIFEST, digest=f"sha256:{number:064x}")
        if name:
            parts = dict(zip(("os", "architecture", "variant"), name.split("/")))
            entry["platform"] = parts
        entries.append(entry)
    whole = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries, **fields}
    return {name: value for name, value in whole.items() if value is not ...}


def parsed(document: Any, declared: str | None = None) -> Manifest | Index:
    return manifests.parse(document if isinstance(document, bytes) else json.dumps(document).encode(), declared)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"x": inner}
    return manifest(extra=inner)


@pytest.mark.parametrize(
    "declared", [None, "", manifests.OCI_MANIFEST, f"{manifests.OCI_MANIFEST}; charset=utf-8", "text/plain"]
)
def test_a_manifest_is_read(declared: str | None) -> None:
    found = parsed(manifest(), declared)
    assert isinstance(found, Manifest)
    assert (found.config.media_type, found.layers[0].digest, found.layers[0].size) == (manifests.OCI_CONFIG, DIGEST, 7)
    manifests.require_image(found)


def test_what_does_not_say_what_it_is_is_known_by_its_shape() -> None:
    assert isinstance(parsed(manifest(mediaType=...)), Manifest)
    assert isinstance(parsed(index("linux/amd64", mediaType=...)), Index)


def test_dockers_own_kinds_are_read() -> None:
    assert isinstance(parsed(manifest(mediaType=manifests.DOCKER_MANIFEST), manifests.DOCKER_MANIFEST), Manifest)
    assert isinstance(parsed(index("linux/amd64", mediaType=manifests.DOCKER_INDEX), manifests.DOCKER_INDEX), Index)


REFUSED: list[tuple[str, Any, str | None, str]] = [
    ("no JSON", b"{", None, "is not JSON"),
    ("not UTF-8", json.dumps(manifest()).encode("utf-16"), None, "is not JSON"),
    ("no object", [], None, "is not a JSON object"),
    ("too large", b" " * (manifests.SIZE_LIMIT + 1), None, "larger than the 4194304 bytes"),
    ("a key twice", b'{"schemaVersion": 2, "layers": [], "layers": []}', None, "has the key 'layers' twice"),
    ("a key twice below", json.dumps(manifest()).replace('"size": 7', '"size": 7, "size": 8').encode(), None, "'size' twice"),
    ("another spelling", manifest(Layers=[]), None, "'Layers', which some read as 'layers'"),
    ("another spelling below", manifest(layers=[descriptor(Digest=DIGEST)]), None, "'Digest', which some read as 'digest'"),
    ("manifests beside layers", {**manifest(), "manifests": []}, None, "ambiguous"),
    ("manifests beside a config", index("linux/amd64", config=descriptor()), None, "ambiguous"),
    ("an index called a manifest", index("linux/amd64", mediaType=manifests.OCI_MANIFEST), None, "but has manifests"),
    ("a manifest called an index", manifest(mediaType=manifests.OCI_INDEX), None, "but has no manifests"),
    ("handed over as an index", manifest(mediaType=...), manifests.OCI_INDEX, "but has no manifests"),
    ("handed over as another", manifest(), manifests.DOCKER_MANIFEST, "was handed over as"),
    ("Docker's without its type", manifest(mediaType=...), manifests.DOCKER_MANIFEST, "does not repeat its media type"),
    ("an unknown type", manifest(mediaType="application/zip"), None, "unsupported manifest media type 'application/zip'"),
    ("an unknown declared type", manifest(), "text/html", "unsupported manifest media type 'text/html'"),
    ("schema 1", {"schemaVersion": 1, "fsLayers": []}, None, "schema 1"),
    ("schema 1 declared", {}, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
    ("schema 3", manifest(schemaVersion=3), None, "schemaVersion 3"),
    ("schema true", manifest(schemaVersion=True), None, "schemaVersion True"),
    ("no config", manifest(config=...), None, "config is not a descriptor"),
    ("no layers", manifest(layers=...), None, "no list of layers"),
    ("layers of text", manifest(layers=["x"]), None, "layers[0] is not a descriptor"),
    ("a bad digest", manifest(layers=[descriptor(digest="sha256:../../x")]), None, "invalid checksum digest"),
    ("an unknown digest", manifest(layers=[descriptor(digest="md5:" + "a" * 32)]), None, "unsupported digest algorithm"),
    ("a negative size", manifest(layers=[descriptor(size=-1)]), None, "has size -1"),
    ("a huge size", manifest(layers=[descriptor(size=1 << 63)]), None, "has size"),
    ("a size of text", manifest(layers=[descriptor(size="7")]), None, "has size '7'"),
    ("a true size", manifest(layers=[descriptor(size=True)]), None, "has size True"),
    ("many layers", manifest(layers=[descriptor()] * 1001), None, "1001 layers"),
    ("many entries", index(*["linux/amd64"] * 1001), None, "1001 manifests"),
    ("annotations of numbers", manifest(annotations={"a": 1}), None, "no map of strings"),
    ("a platform of text", index("", manifests=[descriptor(platform="linux")]), None, "malformed platform"),
    ("urls of numbers", manifest(layers=[descriptor(urls=[1])]), None, "urls"),
    ("no number", b'{"schemaVersion": NaN}', None, "NaN"),
    ("deep", nested(40), None, "nested deeper than 32 levels"),
    ("very deep", b'{"x":' * 200_000 + b"1" + b"}" * 200_000, None, "nested deeper than 32 levels"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "declared", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_clearly_one_thing_is_refused(document: Any, declared: str | None, words: str) -> None:
    with pytest.raises(BadManifest) as refused:
        parsed(document, declared)
    assert words in refused.value.message
    assert len(refused.value.message) < 400, "bytes of a stranger fill the message"


def test_depth_and_count_are_bounded_not_forbidden() -> None:
    parsed(nested(20))
    assert len(parsed(manifest(layers=[descriptor()] * 1000)).layers) == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": descriptor(mediaType="application/vnd.cncf.helm.config.v1+json")}, "artifact"),
        ({"layers": [descriptor(mediaType="application/vnd.in-toto+json")]}, "no image layer's"),
    ],
)
def test_an_artifact_is_no_image(changes: dict[str, Any], words: str) -> None:
    found = parsed(manifest(**changes))
    assert isinstance(found, Manifest)
    with pytest.raises(BadManifest, match=words):
        manifests.require_image(found)


CHOICES = [
    ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
    ("linux/x86_64", ["windows/amd64", "linux/amd64"], "linux/amd64"),
    ("linux/amd64", ["linux/386"], "linux/386"),
    ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], "linux/amd64/v2"),
    ("linux/amd64", ["linux/amd64/v2", "linux/386"], "linux/386"),
    ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
    ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
    ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
    ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
    ("linux/arm", ["linux/arm/v8", "linux/arm/v7"], "linux/arm/v7"),
    ("linux/armhf", ["linux/arm"], "linux/arm"),
    ("linux/amd64", ["", "linux/amd64"], "linux/amd64"),
    ("linux/amd64", ["", "linux/s390x"], ""),
]


@pytest.mark.parametrize(("wanted", "offered", "expected"), CHOICES)
def test_an_index_serves_each_machine_the_closest(wanted: str, offered: list[str], expected: str) -> None:
    found = parsed(index(*offered))
    assert isinstance(found, Index)
    chosen = manifests.choose(found, platforms.parse(wanted, HOST))
    assert str(chosen.platform or "") == expected


@pytest.mark.parametrize("offered", [["linux/arm/v6", "linux/s390x"], ["unknown/unknown"], []])
def test_a_machine_that_nothing_serves_is_told_what_there_is(offered: list[str]) -> None:
    found = parsed(index(*offered))
    assert isinstance(found, Index)
    with pytest.raises(NotFound) as refused:
        manifests.choose(found, HOST)
    there = ", ".join(name for name in offered if not name.startswith("unknown")) or "none"
    assert refused.value.message == (
        f"no matching manifest for linux/amd64 in the manifest list entries; the image is there for: {there}"
    )


def test_attestations_are_never_chosen() -> None:
    entry = descriptor(mediaType=manifests.OCI_MANIFEST, annotations={"vnd.docker.reference.type": "attestation-manifest"})
    found = parsed(index("", manifests=[entry]))
    assert isinstance(found, Index)
    with pytest.raises(NotFound):
        manifests.choose(found, HOST)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("linux/arm64/v8", "linux/arm64"), ("arm64", "linux/arm64"), ("windows", "windows/amd64"), ("Linux/AMD64", "linux/amd64"),
     ("armhf", "linux/arm/v7"), ("linux/arm/6", "linux/arm/v6")],
)  # fmt: skip
def test_a_platform_is_written_in_many_ways(text: str, expected: str) -> None:
    assert str(platforms.parse(text, HOST)) == expected


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/am d64", "x" * 100])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid platform"):
        platforms.parse(text, HOST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(DIGEST) | st.sampled_from(manifests.ACCEPTED),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform", "urls")
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(document=JSON | st.builds(lambda more: {**manifest(), **more}, st.dictionaries(st.text(max_size=9), JSON, max_size=2)))
def test_whatever_comes_is_a_manifest_or_refused(document: Any) -> None:
    try:
        found = parsed(document)
    except CoveyError:
        return
    assert isinstance(found, (Manifest, Index))
