"""The build cache: steps are found again, also by the next daemon, and keep their layers until they are pruned."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from covey.testing import images
from worker.images import commit, disk, draft, steps
from worker.images.draft import Draft
from worker.images.image import Layer
from worker.images.retention import Disk, Policy
from worker.images.steps import StepCache
from worker.images.store import ImageStore

GOLDEN = Path(__file__).parent / "golden"
LAYER = Layer("sha256:" + "a" * 64, "sha256:" + "b" * 64, "sha256:" + "c" * 64, 10, "application/vnd.oci.image.layer.v1.tar")
DRAFT = Draft({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]}, "history": [{"created_by": "y"}]}, (LAYER,))


def test_the_bytes_of_this_release(tmp_path: Path) -> None:
    cache = StepCache(tmp_path, now=lambda: 1700000000.5)
    cache.keep("sha256:" + "1" * 64, "RUN x", DRAFT)
    (written,) = tmp_path.iterdir()
    assert written.read_bytes() == (GOLDEN / "step-1.json").read_bytes()


def test_golden_bytes_are_read(tmp_path: Path) -> None:
    StepCache(tmp_path).keep("sha256:" + "1" * 64, "RUN x", DRAFT)
    (written,) = tmp_path.iterdir()
    shutil.copy(GOLDEN / "step-1.json", written)
    found = StepCache(tmp_path).find("sha256:" + "1" * 64, "RUN x")
    assert found == DRAFT
    assert found.id == DRAFT.id
    assert StepCache(tmp_path).find("sha256:" + "2" * 64, "RUN x") is None
    assert StepCache(tmp_path).find("sha256:" + "1" * 64, "RUN y") is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1}', b"\xff"])
def test_a_damaged_step_is_a_miss(tmp_path: Path, damage: bytes) -> None:
    StepCache(tmp_path).keep("p", "k", DRAFT)
    (written,) = tmp_path.iterdir()
    written.write_bytes(damage)
    assert StepCache(tmp_path).find("p", "k") is None
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LIMIT", 3)
    ticks = iter(range(100))
    cache = StepCache(tmp_path, now=lambda: float(next(ticks)))
    for key in "abc":
        cache.keep("p", key, DRAFT)
    assert cache.find("p", "a")
    cache.keep("p", "d", DRAFT)
    assert [key for key in "abcd" if cache.find("p", key)] == ["a", "c", "d"]
    assert len(cache.prune(0.0)) == 0
    assert len(cache.prune()) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_layers_stay_for_the_cache_alone(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    with store.content.lease() as lease:
        nothing = draft.scratch("amd64")
        layer = commit.add_layer(store, (), io.BytesIO(images.tar([("f", 0o644, b"x")])), lease)
        made = draft.follow(nothing, {}, "2026-01-01T00:00:00Z", "COPY", layer=layer)
        store.steps.keep(nothing.id, "k", made)
    assert store.collect() == 0
    again = ImageStore(tmp_path / "images")
    found = again.steps.find(nothing.id, "k")
    assert found is not None
    assert [path.name for path in again.layer_dirs(found.as_image())[0].iterdir()] == ["f"]
    again.steps.prune()
    assert again.collect() > 0
    assert list((tmp_path / "images" / "blobs" / "sha256").iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("policy", "used", "after", "stays"),
    [
        (Policy(), 50, 10**6, True),
        (Policy(age=100.0), 50, 99, True),
        (Policy(age=100.0), 50, 101, False),
        (Policy(grace=60.0), 95, 59, True),
        (Policy(grace=60.0), 95, 61, False),
        (Policy(high=0), 95, 10**6, True),
    ],
)
def test_what_was_not_used_for_long_goes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy, used: int, after: float, stays: bool
) -> None:
    clock = [1700000000.0]
    monkeypatch.setattr(disk, "usage", lambda path: Disk(used, 100))
    store = ImageStore(tmp_path / "images", now=lambda: clock[0])
    with store.content.lease() as lease:
        nothing = draft.scratch("amd64")
        layer = commit.add_layer(store, (), io.BytesIO(images.tar([("f", 0o644, b"x")])), lease)
        store.steps.keep(nothing.id, "k", draft.follow(nothing, {}, "2026-01-01T00:00:00Z", "COPY", layer=layer))
    clock[0] += after
    done = store.reclaim(policy, ())
    assert (done.freed == 0) == stays
    assert bool(list((tmp_path / "images" / "blobs" / "sha256").iterdir())) == stays
    assert (store.steps.find(nothing.id, "k") is not None) == stays
