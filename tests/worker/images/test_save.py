"""What is saved can be loaded again, here and elsewhere, bit for bit; the same images give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from covey.errors import NotFound
from covey.testing import images as made
from worker.images import reference
from worker.images.content import BadDigest
from worker.images.store import ImageStore

Layer = Callable[..., bytes]


def saved(store: ImageStore, *names: str) -> bytes:
    return b"".join(store.save_archive(store.choose(names)))


def load(store: ImageStore, archive: bytes) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.image.id, one.names) for one in store.load_archive(io.BytesIO(archive))]


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "one" / "images")


@pytest.fixture
def other(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "other" / "images")


def test_round_trip(store: ImageStore, other: ImageStore, layer: Layer) -> None:
    base = layer(("f", {}, os.urandom(300_000)))
    for name, top in (("team/a:1", "a"), ("b:2", "b")):
        load(store, made.docker_archive(name, [base, layer(top)], {"Env": ["A=1"]}))
    store.tag("b:2", reference.parse("b:3"))
    archive = saved(store, "team/a:1", "b")
    assert saved(store, "team/a:1", "b") == archive, "the same images give the same bytes"
    a, b = store.resolve("team/a:1"), store.resolve("b:2")
    assert load(other, archive) == [(a.id, ("team/a:1",)), (b.id, ("b:2", "b:3"))]
    assert other.resolve("b:3").layers == b.layers
    assert other.resolve("team/a:1").manifest_digest == a.manifest_digest
    assert saved(other, "team/a:1", "b") == archive
    files = members(archive)
    assert [one for one in files if one.startswith("blobs/")] == sorted(one for one in files if one.startswith("blobs/"))
    for path, data in files.items():
        if path.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == path.rpartition("/")[2]
    assert sum(hashlib.sha256(data).digest() == hashlib.sha256(base).digest() for data in files.values()) == 1
    described = json.loads(files["manifest.json"])
    assert [one["RepoTags"] for one in described] == [["team/a:1"], ["b:2", "b:3"]]
    notes = [one["annotations"] for one in json.loads(files["index.json"])["manifests"]]
    assert notes[0] == {"io.containerd.image.name": "docker.io/team/a:1", "org.opencontainers.image.ref.name": "1"}


def test_by_id_it_has_no_name(store: ImageStore, other: ImageStore, layer: Layer) -> None:
    load(store, made.docker_archive("a:1", [layer("a")]))
    image = store.resolve("a:1")
    assert load(other, saved(store, image.short_id)) == [(image.id, ())]
    assert load(other, saved(store, image.id, "a:1")) == [(image.id, ("a:1",))]


def test_readers_without_zstd_find_a_plain_layer(store: ImageStore, other: ImageStore, layer: Layer) -> None:
    plain = layer(("f", {}, b"text " * 1000))
    packed = zstandard.compress(plain)
    archive = made.docker_archive("z:1", [plain])
    files = {name: packed if name.endswith("layer.tar") else data for name, data in members(archive).items()}
    load(store, made.tar([(name, 0o644, data) for name, data in files.items()]))
    out = saved(store, "z:1")
    described = json.loads(members(out)["manifest.json"])[0]
    assert members(out)[described["Layers"][0]] == plain
    load(other, out)
    assert other.resolve("z:1").layers == store.resolve("z:1").layers, "the layout still has the layer as it came"


def test_what_is_wrong_is_said_at_once(store: ImageStore, layer: Layer) -> None:
    load(store, made.docker_archive("a:1", [layer("a")]))
    image = store.resolve("a:1")
    for name in ("nope", "a:2", "f" * 12):
        with pytest.raises(NotFound, match="No such image"):
            store.choose([name])
    with pytest.raises(NotFound, match="not for linux/s390x"):
        store.choose(["a:1"], "linux/s390x")
    path = store.content.path(image.layers[0].digest)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(BadDigest, match=image.layers[0].digest):
        saved(store, "a:1")
    path.unlink()
    with pytest.raises(NotFound, match="No such blob"):
        next(store.save_archive(store.choose(["a:1"])))


def test_what_is_being_saved_stays(store: ImageStore, other: ImageStore, layer: Layer) -> None:
    load(store, made.docker_archive("a:1", [layer(("f", {}, os.urandom(3_000_000)))]))
    image_id = store.resolve("a:1").id
    pieces = store.save_archive(store.choose(["a:1"]))
    first = next(pieces)
    store.remove("a:1")
    assert load(other, first + b"".join(pieces))[0][0] == image_id
    store.collect()
    assert not any(path.is_file() for path in (store.root / "blobs").rglob("*"))
