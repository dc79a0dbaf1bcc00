"""fsck names every flipped bit, and what can be mended is mended."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images as made
from worker.images import fsck
from worker.images.store import ImageStore

Layer = Callable[..., bytes]
FLIPS = 200


class Node:
    """A store with two images that share a layer; ``running``: containers of the first."""

    def __init__(self, data: Path, layer: Layer) -> None:
        self.data = data
        self.running: list[str] = []
        rng = random.Random(7)
        base = layer(
            ("usr", {"type": b"5", "mode": 0o755}, b""),
            *[(f"usr/f{n}", {}, rng.randbytes(rng.randrange(20_000))) for n in range(20)],
            ("link", {"type": b"2", "linkname": "usr/f1"}, b""),
            ("empty", {}, b""),
        )
        self.archives = [
            made.docker_archive("a:1", [base, layer(("a", {}, b"a" * 999))], {"Env": ["A=1"]}),
            made.docker_archive("b:1", [base, layer("usr/b")]),
        ]
        self.store = self.opened()
        for archive in self.archives:
            self.store.load_archive(io.BytesIO(archive))
        self.first = self.store.resolve("a:1")

    def opened(self) -> ImageStore:
        return ImageStore(self.data / "images", in_use=lambda: {self.first.id: self.running}, running=lambda: self.running)

    def faults(self) -> list[fsck.Fault]:
        return [finding.fault for finding in self.store.fsck()]

    def files(self) -> list[Path]:
        return sorted(path for path in self.data.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture
def node(tmp_path: Path, layer: Layer) -> Node:
    return Node(tmp_path / "data", layer)


def flip(path: Path, bit: int) -> None:
    """Turn one bit, and leave all else of the file as it was."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_sound_store_has_no_fault(node: Node) -> None:
    assert node.faults() == []
    assert node.opened().fsck(True) is not None
    assert node.faults() == []


def test_every_flipped_bit_is_found(node: Node) -> None:
    """Alone: each flip is found by the path it hit, and gone when the bit is turned back."""
    rng = random.Random(20_261_127)
    files = [path for path in node.files() if path.stat().st_size]
    kinds = {path.relative_to(node.data).parts[0] for path in files}
    assert kinds == {"images", "rootfs"}
    for _ in range(FLIPS):
        path = rng.choice(files)
        bit = rng.randrange(path.stat().st_size * 8)
        flip(path, bit)
        found = node.faults()
        assert path in {fault.path for fault in found}, f"bit {bit} of {path} was not found: {found}"
        assert all(fault.what and fault.step for fault in found)
        flip(path, bit)
    assert node.faults() == []


def test_many_at_once_are_each_found_and_mended(node: Node) -> None:
    """Every file of the store is hit at once: nothing hides behind another fault; then all is mended, with a load again."""
    rng = random.Random(3)
    files = [path for path in node.files() if path.stat().st_size]
    for path in files:
        flip(path, rng.randrange(path.stat().st_size * 8))
    hit = set(files)
    found = {fault.path for fault in node.faults()}
    assert hit - found == set()
    list(node.store.fsck(repair=True))
    for archive in node.archives:
        node.store.load_archive(io.BytesIO(archive))
    findings = list(node.store.fsck(repair=True))
    assert all(finding.mended for finding in findings), findings
    assert node.faults() == []
    assert node.opened().resolve("b:1").repo_tags == ("b:1",)


CHANGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "mode": (lambda root: os.chmod(root / "usr/f1", 0o600), "usr/f1", "its mode changed"),
    "time": (lambda root: os.utime(root / "usr/f1", (1, 1)), "usr/f1", "its time changed"),
    "missing": (lambda root: (root / "empty").unlink(), "empty", "is missing"),
    "added": (lambda root: (root / "usr/more").write_text("x"), "usr/more", "is not of the layer"),
    "link": (lambda root: ((root / "link").unlink(), (root / "link").symlink_to("x")), "link", "content"),
    "kind": (lambda root: ((root / "empty").unlink(), (root / "empty").mkdir()), "empty", "kind"),
    "attribute": (lambda root: os.setxattr(root / "usr/f2", "user.x", b"1"), "usr/f2", "its attributes changed"),
    "a tree": (lambda root: shutil.rmtree(root / "usr"), "usr", "is missing"),
    "the root": (lambda root: os.chmod(root, 0o700), "", "its mode changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_are_no_bits(node: Node, change: str) -> None:
    work, path, words = CHANGES[change]
    root = node.store.layer_dirs(node.first)[-1]
    work(root)
    found = {fault.path: fault for fault in node.faults()}
    assert words in found[root / path].what
    assert "fsck --repair" in found[root / path].step
    assert all(finding.mended for finding in node.store.fsck(repair=True))
    assert node.faults() == []
    assert (root / "usr/f1").stat().st_size > 0


def test_a_blob_is_brought_again(node: Node) -> None:
    path = node.store.content.path(node.first.layers[1].digest)
    flip(path, 77)
    (fault,) = node.faults()
    assert fault.step.endswith("then pull or load docker.io/library/a:1 again")
    (finding,) = node.store.fsck(repair=True)
    assert (finding.done, finding.mended, path.exists()) == ("removed", False, False)
    (missing,) = node.faults()
    assert (missing.path, missing.what) == (path, "is missing")
    node.store.load_archive(io.BytesIO(node.archives[0]))
    assert node.faults() == []


def test_no_layer_goes_from_under_a_running_container(node: Node) -> None:
    root = node.store.layer_dirs(node.first)[0]
    (root / "a").write_bytes(b"b" * 999)
    inode = (root / "a").stat().st_ino
    node.running.append("web")
    (finding,) = node.store.fsck(repair=True)
    assert not finding.mended
    assert "running container" in finding.done
    assert (root / "a").stat().st_ino == inode
    node.running.clear()
    (finding,) = node.store.fsck(repair=True)
    assert (finding.done, (root / "a").read_bytes()) == ("unpacked again", b"a" * 999)


def test_a_start_with_damaged_tables(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit in the index or in a layer's record stops no node from starting."""
    images = node.store.list()
    flip(node.data / "images/index.json", 1234)
    record = node.store.layer_dirs(node.first)[0].parent / "layer.json"
    flip(record, 99)
    node.store = node.opened()
    assert node.store.list() == images
    assert "index.copy.json is used instead" in caplog.text
    assert (node.store.layer_dirs(node.first)[0] / "a").read_bytes() == b"a" * 999
    assert [fault.path.name for fault in node.faults()] == ["index.json"]
    assert [finding.done for finding in node.store.fsck(repair=True)] == ["written again"]
    assert node.faults() == []


def test_layers_of_an_older_release_are_told(node: Node) -> None:
    place = node.store.layer_dirs(node.first)[0].parent
    golden = (Path(__file__).parent / "golden/layer-1.json").read_text().replace("d" * 64, place.name)
    (place / "layer.json").write_text(golden)
    (place / "tree.jsonl").unlink()
    (fault,) = node.faults()
    assert "older release" in fault.what
    assert [finding.mended for finding in node.store.fsck(repair=True)] == [True]
    assert node.faults() == []
