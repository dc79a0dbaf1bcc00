"""What release 0.1 wrote to disk, kept as bytes: later releases must read it."""

from __future__ import annotations

import shutil
from pathlib import Path

from worker.rootfs.overlay import Overlay
from worker.rootfs.volumes import Volume, Volumes

GOLDEN = Path(__file__).parent / "golden"


def test_lowers(tmp_path: Path) -> None:
    place = tmp_path / "containers" / "c"
    place.mkdir(parents=True)
    shutil.copy(GOLDEN / "lowers-1.json", place / "lowers.json")
    assert Overlay(tmp_path).lowers("c") == [Path("/data/rootfs/layers/b/diff"), Path("/data/rootfs/layers/a/diff")]


def test_volume(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(GOLDEN / "volume-1.json", tmp_path / "data" / "volume.json")
    assert Volumes(tmp_path).get("data") == Volume(
        name="data",
        mountpoint=tmp_path / "data" / "_data",
        created_at=1700000000.5,
        labels={"a": "b"},
        options={"type": "tmpfs", "device": "tmpfs"},
    )
