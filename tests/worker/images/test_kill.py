"""kill -9 at every file operation of load, import, unpack, tag, remove, collect and repair: the next store is sound.

Each time: the store opens; fsck finds nothing; nothing half-done is there or counts; the operation can be done again.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images as made
from worker.images import reference
from worker.images.store import ImageStore

sys.path.insert(0, str(Path(__file__).parent))
import kill_points

SAMPLE = 40
Work = Callable[[Path], Any]
Names = frozenset[str]


def opened(data: Path) -> ImageStore:
    return ImageStore(data / "images")


def archive(name: str, *tops: str) -> bytes:
    """Two layers or more, the lowest shared; the first file of each is larger than a piece of reading."""
    who = {"uid": os.getuid(), "gid": os.getgid()}
    layers = [_layer({"usr/lib/shared": b"s" * 300_000, "etc/a": b"a"}, who)]
    layers += [_layer({f"usr/lib/{top}": top.encode() * 100, "etc/b": b"b"}, who) for top in tops]
    return gzip.compress(made.docker_archive(name, layers), 1)


def _layer(files: dict[str, bytes], who: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mtime = len(data), who["uid"], who["gid"], 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("link")
        info.type, info.linkname, info.uid, info.gid = tarfile.SYMTYPE, "etc/a", who["uid"], who["gid"]
        tar.addfile(info)
    return buffer.getvalue()


ONE, TWO = archive("one:1", "x", "y"), archive("two:1", "x", "z")


def load(data: Path) -> None:
    opened(data).load_archive(io.BytesIO(TWO))


def import_root(data: Path) -> None:
    opened(data).import_rootfs(io.BytesIO(_layer({"f": b"f" * 9000}, {"uid": os.getuid(), "gid": os.getgid()})), "imported:1")


def unpack(data: Path) -> None:
    store = opened(data)
    store.layer_dirs(store.resolve("one:1"))


def tag(data: Path) -> None:
    store = opened(data)
    store.tag("one:1", reference.parse("also:1"))
    store.settle()


def remove(data: Path) -> None:
    store = opened(data)
    if any("two:1" in image.repo_tags for image in store.list()):
        store.remove("two:1")


def repair(data: Path) -> None:
    assert all(finding.mended for finding in opened(data).fsck(repair=True))


@dataclass(frozen=True)
class Case:
    """``state``: what is there before; the names that may be there after a kill, and must be after the work is done again."""

    work: Work
    state: Callable[[Path], None]
    between: frozenset[Names]
    after: Names
    sound: bool = True


def _one(data: Path) -> None:
    opened(data).load_archive(io.BytesIO(ONE))


def _both(data: Path) -> None:
    _one(data)
    load(data)


def _not_unpacked(data: Path) -> None:
    _one(data)
    shutil.rmtree(data / "rootfs")


def _damaged(data: Path) -> None:
    _one(data)
    for directory in opened(data).layer_dirs(opened(data).resolve("one:1")):
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.write_bytes(b"damaged")
    index = data / "images/index.json"
    index.write_bytes(index.read_bytes().replace(b"one:1", b"oMe:1"))


B1, B2 = frozenset({"one:1"}), frozenset({"one:1", "two:1"})
CASES = {
    "load": Case(load, _one, frozenset({B1, B2}), B2),
    "import": Case(import_root, _one, frozenset({B1, B1 | {"imported:1"}}), B1 | {"imported:1"}),
    "unpack": Case(unpack, _not_unpacked, frozenset({B1}), B1),
    "tag": Case(tag, _one, frozenset({B1, B1 | {"also:1"}}), B1 | {"also:1"}),
    "remove": Case(remove, _both, frozenset({B1, B2}), B1),
    "repair": Case(repair, _damaged, frozenset({B1}), B1, sound=False),
}


def names(store: ImageStore) -> Names:
    return frozenset(name for image in store.list() for name in image.repo_tags)


def halves(data: Path) -> list[Path]:
    """What only a crash leaves: in scratch directories, and files that were about to be renamed."""
    scratch = [data / "images/ingest", data / "rootfs/layers/tmp"]
    return [path for place in scratch if place.exists() for path in place.iterdir()] + list(data.rglob(".*.tmp"))


def unneeded(store: ImageStore) -> set[str]:
    """Blobs on disk that no image has."""
    needed = {digest for image in store.list() for digest in image.blobs}
    return {f"sha256:{name}" for name in os.listdir(store.root / "blobs/sha256")} - needed


def examine(case: Case, data: Path, where: str) -> None:
    store = opened(data)
    assert names(store) in case.between, where
    assert halves(data) == [], where
    assert unneeded(store) == set(), where
    faults = list(store.fsck())
    if case.sound:
        assert faults == [], where
    for image in store.list():
        assert all((directory / "link").is_symlink() or (directory / "f").exists() for directory in store.layer_dirs(image))
        json.loads(store.content.read(image.id))
    case.work(data)
    store = opened(data)
    assert names(store) == case.after, where
    assert list(store.fsck()) == [], where
    assert halves(data) == [], where


def killed_everywhere(case: Case, tmp_path: Path, sample: int | None) -> None:
    before = tmp_path / "before"
    case.state(before)
    ended = 0
    for number, finished in kill_points.each(case.work, before, tmp_path / "data", sample):
        ended += finished
        examine(case, tmp_path / "data", f"killed at file operation {number}")
    assert ended <= 2, "the work was to be killed, and mostly it was not"


@pytest.mark.suite
@pytest.mark.parametrize("name", CASES)
def test_some(name: str, tmp_path: Path) -> None:
    killed_everywhere(CASES[name], tmp_path, SAMPLE)


@pytest.mark.suite
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_all(name: str, tmp_path: Path) -> None:
    killed_everywhere(CASES[name], tmp_path, None)
