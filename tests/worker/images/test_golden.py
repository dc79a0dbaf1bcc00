"""What releases wrote to disk, kept as bytes: later ones must read it (version 1: release 0.1)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from covey.errors import Internal
from worker.images import index, tree_record
from worker.images.image import MANIFEST_TYPE
from worker.images.layers import LayerStore

GOLDEN = Path(__file__).parent / "golden"


ROWS = [
    index.Row(
        manifest_digest="sha256:" + "a" * 64,
        manifest_size=512,
        manifest_type=MANIFEST_TYPE,
        names=("docker.io/library/web:1", "r.example:5000/web@sha256:" + "b" * 64),
        size=1234,
        stored_at=1700000000.5,
        tagged_at=1700000001.0,
        removed=False,
    ),
    index.Row("sha256:" + "c" * 64, 99, MANIFEST_TYPE, (), 0, 1700000002.0, 0.0, True),
]
NEW_ROWS = [
    *ROWS,
    index.Row(
        "sha256:" + "e" * 64, 7, MANIFEST_TYPE, (), 3, 1700000003.0, 0.0, False, True, 1700000004.5, (("s1", 1700000004.5),)
    ),
]


@pytest.mark.parametrize(("version", "rows"), [(1, ROWS), (2, NEW_ROWS)])
def test_index(tmp_path: Path, version: int, rows: list[index.Row]) -> None:
    shutil.copy(GOLDEN / f"index-{version}.json", tmp_path / "index.json")
    assert index.read(tmp_path) == rows


def test_what_this_release_writes(tmp_path: Path) -> None:
    index.write(tmp_path, NEW_ROWS)
    for name in ("index.json", "index.copy.json"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / "index-2.json").read_bytes()


@pytest.mark.parametrize("version", [1, 2])
def test_layer_record(tmp_path: Path, version: int) -> None:
    layer = tmp_path / ("d" * 64)
    (layer / "diff").mkdir(parents=True)
    shutil.copy(GOLDEN / f"layer-{version}.json", layer / "layer.json")
    assert LayerStore(tmp_path).size("sha256:" + "d" * 64) == 77
    LayerStore(tmp_path).settle()
    assert LayerStore(tmp_path).size("sha256:" + "d" * 64) == 77


def test_tree_record(tmp_path: Path) -> None:
    """A tree as the golden record of release 0.2 has it, and one that differs in a file's time."""
    os.mkdir(tmp_path / "d", 0o750)
    (tmp_path / "d/f").write_bytes(b"hello")
    (tmp_path / "l").symlink_to("d/f")
    uid, gid = os.getuid(), os.getgid()
    golden = (GOLDEN / "tree-1.jsonl").read_bytes()
    assert tree_record.checksum(golden) is not None
    record = golden.replace(b"4242,4343", b"%d,%d" % (uid, gid))
    for path, mode in (("d/f", 0o640), ("d", 0o750), ("", 0o755)):
        os.chmod(tmp_path / path, mode)
    for path in ("d/f", "d", "l", ""):
        os.utime(tmp_path / path, ns=(5, 1_700_000_000_000_000_001), follow_symlinks=False)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert list(tree_record.compare(record.splitlines(), fd)) == []
        os.utime(tmp_path / "d/f", ns=(5, 6))
        assert list(tree_record.compare(record.splitlines(), fd)) == [("d/f", "its time changed")]
    finally:
        os.close(fd)


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"annotations": {"covey.version": "9"}, "manifests": []}'])
def test_a_foreign_index_is_one_clear_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "index.json").write_bytes(damage)
    with pytest.raises(Internal, match=r"index\.json"):
        index.read(tmp_path)
