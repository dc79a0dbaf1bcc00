"""What release 0.1 wrote to disk, kept as bytes: later releases must read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from covey.errors import Internal
from worker.images import index
from worker.images.image import MANIFEST_TYPE
from worker.images.layers import LayerStore

GOLDEN = Path(__file__).parent / "golden"


def test_index(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "index-1.json", tmp_path / "index.json")
    rows = index.read(tmp_path)
    assert rows == [
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
    index.write(tmp_path, rows)
    assert (tmp_path / "index.json").read_bytes() == (GOLDEN / "index-1.json").read_bytes()


def test_layer_record(tmp_path: Path) -> None:
    layer = tmp_path / ("d" * 64)
    (layer / "diff").mkdir(parents=True)
    shutil.copy(GOLDEN / "layer-1.json", layer / "layer.json")
    assert LayerStore(tmp_path).size("sha256:" + "d" * 64) == 77


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"annotations": {"covey.version": "9"}, "manifests": []}'])
def test_a_foreign_index_is_one_clear_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "index.json").write_bytes(damage)
    with pytest.raises(Internal, match=r"index\.json"):
        index.read(tmp_path)
