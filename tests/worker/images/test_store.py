"""The image store: what is loaded is there under its names, survives a restart, and goes when nothing needs it."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from covey.errors import Conflict, InvalidArgument, NotFound
from covey.testing import images as made
from worker.images import reference, sealed, views
from worker.images.content import BadDigest, ContentStore
from worker.images.disk import DiskFull
from worker.images.store import ImageStore
from worker.kernel import syscalls, trees

Layer = Callable[..., bytes]


class Node:
    """A store and who uses its images."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.users: dict[str, list[str]] = {}
        self.running: set[str] = set()
        self.store = self.opened()

    def opened(self) -> ImageStore:
        clock = iter(range(1_700_000_000, 1_800_000_000))
        return ImageStore(
            self.data / "images", in_use=lambda: self.users, running=lambda: self.running, now=lambda: float(next(clock))
        )

    def load(self, archive: bytes) -> tuple[str, ...]:
        return tuple(name for loaded in self.store.load_archive(io.BytesIO(archive)) for name in loaded.names)

    def files(self) -> set[str]:
        """Everything on disk but the tables."""
        found = {str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file()}
        return found - {"images/index.json", "images/index.copy.json", "images/oci-layout"}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "data")


def repack(archive: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """The same archive with its files changed or (None) left out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old.getmembers():
            content = old.extractfile(member)
            assert content is not None
            changed = change(member.name, content.read())
            if changed:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                new.addfile(info, io.BytesIO(changed[1]))
    return out.getvalue()


def oci_archive(layer: bytes, name: str, config: Mapping[str, Any], **platform: str) -> bytes:
    """What a newer ``docker save`` writes: an OCI layout and a manifest.json, here with an index in the index."""
    packed = gzip.compress(layer, mtime=0)
    document = {
        "architecture": platform.get("architecture", made.architecture()),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    blobs: dict[str, bytes] = {}

    def put(media_type: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": put("application/vnd.oci.image.config.v1+json", json.dumps(document).encode()),
        "layers": [put("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
    }
    described = put(manifest_type, json.dumps(manifest).encode())
    described["platform"] = {"architecture": document["architecture"], "os": "linux"}
    foreign = {
        "mediaType": manifest_type, "digest": "sha256:" + "0" * 64, "size": 7,
        "platform": {"architecture": "s390x", "os": "linux"},
    }  # fmt: skip
    index_type = "application/vnd.oci.image.index.v1+json"
    inner = put(index_type, json.dumps({"schemaVersion": 2, "manifests": [foreign, described]}).encode())
    inner["annotations"] = {"io.containerd.image.name": name}
    top = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
    members = [*blobs.items(), ("index.json", top), ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
    return made.tar([(path, 0o644, data) for path, data in members])


def test_load_resolve_restart(node: Node, layer: Layer) -> None:
    archive = made.docker_archive("hello:1", [layer("a"), layer("b")], {"Cmd": ["x"], "Labels": {"k": "v"}})
    assert node.load(archive) == ("hello:1",)
    image = node.store.resolve("hello:1")
    for name in ("hello:1", "docker.io/library/hello:1", image.id, image.id[7:], image.short_id, image.id[:15]):
        assert node.store.resolve(name) == image, name
    assert [directory.parent.parent for directory in node.store.layer_dirs(image)] == [node.data / "rootfs/layers"] * 2
    assert [os.listdir(directory) for directory in node.store.layer_dirs(image)] == [["b"], ["a"]], "topmost first"
    assert (image.config["Cmd"], image.size, image.platform_warning) == (["x"], 2, None)
    again = node.opened().resolve("hello:1")
    assert again == image


def test_missing_in_docker_words(node: Node) -> None:
    for name, shown in (("nope", "nope:latest"), ("r.example/x:2", "r.example/x:2"), ("f" * 64, "f" * 64)):
        with pytest.raises(NotFound) as missing:
            node.store.resolve(name)
        assert missing.value.message == f"No such image: {shown}"
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        node.store.resolve("No Good")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_compressed_layers_and_archives(node: Node, layer: Layer, pack: Callable[[bytes], bytes]) -> None:
    archive = made.docker_archive("p:1", [layer(("f", {}, os.urandom(5000)))])
    inner = repack(archive, lambda name, data: (name, pack(data) if name.endswith("layer.tar") else data))
    assert node.load(pack(inner)) == ("p:1",)
    assert os.listdir(node.store.layer_dirs(node.store.resolve("p:1"))[0]) == ["f"]


def test_oci_layout_keeps_its_manifest(node: Node, layer: Layer) -> None:
    assert node.load(oci_archive(layer("f"), "docker.io/library/new:3", {"Cmd": ["y"]})) == ("new:3",)
    image = node.store.resolve("new:3")
    assert image.config["Cmd"] == ["y"]
    assert image.layers[0].media_type.endswith("+gzip")
    assert node.store.content.read(image.manifest_digest)


def test_another_platform_is_stored_with_a_warning(node: Node, layer: Layer, caplog: pytest.LogCaptureFixture) -> None:
    node.load(oci_archive(layer("f"), "other:1", {}, architecture="s390x"))
    warning = node.store.resolve("other:1").platform_warning
    assert warning is not None
    assert "linux/s390x" in warning
    assert "linux/s390x" in caplog.text


def test_layers_are_shared_and_unpacked_once(node: Node, layer: Layer) -> None:
    base = layer(("big", {}, b"x" * 10_000))
    node.load(made.docker_archive("a:1", [base, layer("a")]))
    inode = os.stat(node.store.layer_dirs(node.store.resolve("a:1"))[-1]).st_ino
    node.load(made.docker_archive("b:1", [base, layer("b")]))
    assert os.stat(node.store.layer_dirs(node.store.resolve("b:1"))[-1]).st_ino == inode
    assert node.store.shared_size(node.store.resolve("b:1")) == 10_000
    assert node.store.layers_size() == 10_002
    node.store.remove("a:1")
    assert os.listdir(node.store.layer_dirs(node.store.resolve("b:1"))[0]) == ["b"]
    assert len(os.listdir(node.data / "rootfs/layers")) == 3, "a's own layer is gone, tmp and two others stay"


def test_remove_leaves_nothing(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    image = node.store.resolve("a:1")
    done = node.store.remove("a:1")
    assert done.untagged == ("a:1",)
    assert done.deleted == (image.id, image.layers[0].chain_id)
    assert done.freed > 0
    assert node.files() == set()


def test_tags_move_and_leave_dangling_images(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    old = node.store.resolve("a:1")
    node.store.tag("a:1", reference.parse("other/name"))
    assert node.store.resolve("a:1").repo_tags == ("a:1", "other/name:latest")
    node.store.remove("other/name")
    node.load(made.docker_archive("a:1", [layer("changed")]))
    assert node.store.resolve(old.id).repo_tags == ()
    assert [image.id for image in node.store.list({"dangling": ["true"]})] == [old.id]
    pruned = node.store.prune()
    assert pruned.deleted[0] == old.id
    assert [image.repo_tags for image in node.store.list()] == [("a:1",)]
    with pytest.raises(InvalidArgument, match="digest"):
        node.store.tag("a:1", reference.parse("x@" + old.id))


def test_removed_under_a_stopped_container(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    image = node.store.resolve("a:1")
    node.users[image.id] = ["web"]
    with pytest.raises(Conflict, match="container web is using"):
        node.store.remove("a:1")
    node.running.add("web")
    assert node.store.remove("a:1", force=True).deleted == ()
    assert node.store.resolve(image.id).repo_tags == ()
    with pytest.raises(Conflict, match="cannot be forced"):
        node.store.remove(image.id, force=True)
    node.running.clear()
    assert node.store.remove(image.id, force=True).deleted == (image.id,)
    assert node.store.list() == []
    assert node.store.layer_dirs(image)[0].is_dir()
    node.store = node.opened()
    assert node.store.layer_dirs(node.store.get(image.id))[0].is_dir(), "a restart keeps what the container stands on"
    node.users.clear()
    assert node.store.collect() > 0
    assert node.files() == set()


def test_import(node: Node, layer: Layer) -> None:
    image = node.store.import_rootfs(io.BytesIO(gzip.compress(layer("f"))), "imp", ['CMD ["sh"]', "EXPOSE 80"])
    assert image.repo_tags == ("imp:latest",)
    assert image.config == {"Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}}
    assert views.history(image, node.store.layer_sizes(image))[0]["Comment"] == "Imported from -"
    unnamed = node.store.import_rootfs(io.BytesIO(layer("g")))
    assert unnamed.repo_tags == ()
    for stream, changes, words in ((b"", [], "empty"), (b"x" * 2000, [], "tar"), (layer("f"), ["RUN x"], "RUN")):
        before = node.files()
        with pytest.raises(InvalidArgument, match=words):
            node.store.import_rootfs(io.BytesIO(stream), "bad", changes)
        assert node.files() == before


BROKEN: dict[str, Callable[[str, bytes], tuple[str, bytes] | None]] = {
    "no manifest": lambda name, data: None if name == "manifest.json" else (name, data),
    "no layer": lambda name, data: None if name.endswith("layer.tar") else (name, data),
    "no config": lambda name, data: None if name.endswith(".json") and name != "manifest.json" else (name, data),
    "other layer": lambda name, data: (name, made.tar([])) if name.endswith("layer.tar") else (name, data),
    "manifest is no list": lambda name, data: (name, b"{}" if name == "manifest.json" else data),
    "manifest is noise": lambda name, data: (name, b"[[" * 9 if name == "manifest.json" else data),
    "bad name": lambda name, data: (name, data.replace(b"bad:1", b"BAD:1") if name == "manifest.json" else data),
    "config is a list": lambda name, data: (name, b"[]" if "layer" not in name and name != "manifest.json" else data),
    "diff ids missing": lambda name, data: (name, data.replace(b"diff_ids", b"diff_xxx")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives_change_nothing(node: Node, layer: Layer, case: str) -> None:
    archive = made.docker_archive("bad:1", [layer("f")])
    with pytest.raises(InvalidArgument):
        node.load(repack(archive, BROKEN[case]))
    assert node.store.list() == []
    assert node.files() == set()


def test_content_refuses_a_wrong_digest_and_a_full_disk(tmp_path: Path) -> None:
    content = ContentStore(tmp_path)

    class Full:
        def read(self, n: int = -1, /) -> bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with content.lease() as lease:
        with pytest.raises(BadDigest):
            content.ingest(io.BytesIO(b"x"), lease, expected="sha256:" + "0" * 64)
        with pytest.raises(InvalidArgument):
            content.ingest(io.BytesIO(b"x"), lease, expected="sha256:../../x")
        with pytest.raises(DiskFull, match=str(tmp_path)):
            content.ingest(Full(), lease)
        with pytest.raises(InvalidArgument, match="larger"):
            content.ingest(io.BytesIO(b"x" * 100), lease, limit=10)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        kept = content.put(b"kept", lease)
        assert content.collect(()) == 0, "leased blobs stay"
    assert content.read(kept.digest) == b"kept"
    content.path(kept.digest).write_bytes(b"bent")
    with pytest.raises(BadDigest):
        content.read(kept.digest)
    assert content.collect(()) == 4


def test_tables_that_cannot_be_written_stay_as_they_were(node: Node, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    before, files = node.store.list(), node.files()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(trees, "write_atomically", full)
        for attempt in (
            lambda: node.store.tag("a:1", reference.parse("b")),
            lambda: node.store.remove("a:1"),
            lambda: node.load(made.docker_archive("a:1", [layer("other")])),
        ):
            with pytest.raises(DiskFull, match=str(node.data)):
                attempt()
    assert node.store.list() == before
    assert node.opened().list() == before
    assert node.files() == files


@pytest.mark.root
def test_a_full_disk_leaves_room_for_the_next(tmp_path: Path, layer: Layer) -> None:
    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount("tmpfs", str(small), "tmpfs", 0, "size=3m")
    try:
        node = Node(small / "data")
        # Fits as a blob, but not unpacked beside it.
        with pytest.raises(DiskFull, match=f"cannot write under {small}.*no space left"):
            node.load(made.docker_archive("big:1", [layer(("f", {}, os.urandom(2_000_000)))]))
        assert node.files() == set()
        assert node.load(made.docker_archive("small:1", [layer(("f", {}, os.urandom(200_000)))])) == ("small:1",)
    finally:
        syscalls.umount2(str(small))


def test_a_crash_leaves_no_halves(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    before = node.files()
    (node.data / "images/ingest/half").write_bytes(b"x")
    (node.data / "images/blobs/sha256" / ("e" * 64)).write_bytes(b"never recorded")
    half = node.data / "rootfs/layers/tmp/half/diff"
    half.mkdir(parents=True)
    (half / "file").write_text("x")
    (node.data / "rootfs/layers" / ("d" * 64)).mkdir()
    node.store = node.opened()
    assert node.files() == before
    assert os.listdir(node.data / "rootfs/layers/tmp") == []
    assert not (node.data / "rootfs/layers" / ("d" * 64)).exists()


def test_layers_of_an_earlier_boot_are_unpacked_again(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a")]))
    image = node.store.resolve("a:1")
    directory = node.store.layer_dirs(image)[0]
    record = directory.parent / "layer.json"
    record.write_bytes(sealed.seal({**sealed.unseal(record.read_bytes()), "boot": "an earlier one"}))
    (directory / "a").write_text("lost in the crash")
    node.store = node.opened()
    assert (directory / "a").read_text() == "a"
    assert node.store.settle() == 1
    record.write_bytes(sealed.seal({**sealed.unseal(record.read_bytes()), "boot": "an earlier one"}))
    assert node.opened().layers.has(image.layers[0].chain_id), "a settled layer survives a reboot"


def test_a_damaged_image_stops_collection_until_loaded_again(node: Node, layer: Layer) -> None:
    archive = made.docker_archive("a:1", [layer("a")])
    node.load(archive)
    image = node.store.resolve("a:1")
    config = node.store.content.path(image.id)
    good = config.read_bytes()
    config.write_bytes(b"{}")
    node.store = node.opened()
    with pytest.raises(NotFound):
        node.store.resolve("a:1")
    node.store.collect()
    assert node.store.layers.has(image.layers[0].chain_id)
    config.write_bytes(good)
    node.load(archive)
    assert node.store.resolve("a:1").id == image.id


def test_loads_at_the_same_time(node: Node, layer: Layer) -> None:
    base = layer(*[(f"f{i}", {}, b"x" * 2000) for i in range(50)])
    archives = [made.docker_archive(f"t:{i}", [base, layer(f"own{i}")]) for i in range(4)]
    failures: list[BaseException] = []

    def load(archive: bytes) -> None:
        try:
            node.load(archive)
            node.store.collect()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=(archive,)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(node.store.list()) == 4
    for image in node.store.list():
        assert all(directory.is_dir() for directory in node.store.layer_dirs(image))
    assert node.store.statistics() == {
        "images": 4, "names": 4, "removed_in_use": 0, "layers_unpacked": 5
    }  # fmt: skip


def test_filters(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("team/a:1", [layer("a")], {"Labels": {"tier": "web"}}))
    node.store.import_rootfs(io.BytesIO(layer("b")), "b:2")

    def names(**filters: list[str]) -> list[str]:
        return [image.repo_tags[0] for image in node.store.list(filters)]

    assert names() == ["b:2", "team/a:1"]
    assert names(label=["tier=web"]) == ["team/a:1"]
    assert names(label=["tier=db"]) == []
    assert names(reference=["team/*"]) == ["team/a:1"]
    assert names(reference=["*"]) == ["b:2"]
    assert names(reference=["b:[0-9]"]) == ["b:2"]
    assert names(before=["b:2"]) == ["team/a:1"]
    assert names(since=["team/a:1"]) == ["b:2"]
    assert names(until=["2000-01-01"]) == ["team/a:1"]
    with pytest.raises(InvalidArgument, match="colour"):
        names(colour=["red"])


def test_views_have_the_fields_the_api_requires(node: Node, layer: Layer) -> None:
    node.load(made.docker_archive("a:1", [layer("a"), layer("b")], {"Env": ["A=1"]}))
    image = node.store.resolve("a:1")
    summary = views.image_summary(image, containers=2)
    assert set(summary) == {
        "Id", "ParentId", "RepoTags", "RepoDigests", "Created", "Size", "SharedSize", "Labels", "Containers"
    }  # fmt: skip
    assert (summary["RepoTags"], summary["Size"], summary["Containers"]) == (["a:1"], 2, 2)
    inspected = views.image_inspect(image, node.store.layer_dirs(image))
    assert inspected["Config"]["Env"] == ["A=1"]
    assert inspected["RootFS"] == {"Type": "layers", "Layers": [each.diff_id for each in image.layers]}
    assert inspected["GraphDriver"]["Data"]["LowerDir"].endswith("/diff")
    json.dumps([summary, inspected])
    steps = views.history(image, node.store.layer_sizes(image))
    assert [(step["Id"] == image.id, step["Size"]) for step in steps] == [(True, 1), (False, 1)]
