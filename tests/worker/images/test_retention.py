"""Which images go by themselves: never what is needed, oldest use first, and no more than the disk asks for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import InvalidArgument
from covey.testing import images as made
from worker.images import disk, reference, retention
from worker.images.content import Blob
from worker.images.retention import Candidate, Disk, Policy
from worker.images.store import ImageStore

NOW = 1_000_000.0
HOUR = 3600.0
FULL, EMPTY = Disk(95, 100), Disk(10, 100)


def image(name: str, hours: float, size: int = 5, **more: Any) -> Candidate:
    return Candidate(name, {name: size, "base": 20}, NOW - hours * HOUR, **more)


def gone(images: list[Candidate], where: Disk, policy: Policy, alive: tuple[str, ...] = ()) -> list[str]:
    return [verdict.id for verdict in retention.decide(images, alive, where, policy, NOW)]


def test_pressure_takes_the_least_recently_used_until_it_is_enough() -> None:
    images = [image("a", 2), image("b", 9), image("c", 5), image("d", 7)]
    assert gone(images, FULL, Policy()) == ["b", "d", "c"], "15 bytes over 80 %: three of 5"
    assert gone(images, EMPTY, Policy()) == []
    assert gone(images, Disk(90, 100), Policy()) == [], "only above the high mark"
    assert gone(images, FULL, Policy(high=0)) == []


def test_what_is_shared_is_freed_with_the_last_that_has_it() -> None:
    images = [image("a", 3), image("b", 2)]
    verdicts = retention.decide(images, (), Disk(100, 100), Policy(), NOW)
    assert [(one.id, one.frees) for one in verdicts] == [("a", 5), ("b", 25)]
    assert "100% full" in verdicts[0].why


def test_age() -> None:
    images = [image("a", 200), image("b", 100)]
    assert gone(images, EMPTY, Policy(age=150 * HOUR)) == ["a"]
    assert gone(images, EMPTY, Policy(age=50 * HOUR)) == ["a", "b"]


@pytest.mark.parametrize("keep", [{"in_use": True}, {"pinned": True}, {"can_be_fetched": False}, {"services": {"s": 1.0}}])
def test_what_is_needed_stays(keep: dict[str, Any]) -> None:
    assert gone([image("a", 1000, **keep)], FULL, Policy(age=HOUR), alive=("s",)) == []
    assert gone([image("a", 0.5)], FULL, Policy(age=60.0)) == [], "used within the grace"


def test_a_rollback_needs_the_image_before() -> None:
    images = [image(name, 100 - at, services={"s": float(at)}) for at, name in enumerate("abcd")]
    assert gone(images, FULL, Policy(age=HOUR), alive=("s",)) == ["a", "b"]
    assert gone(images, FULL, Policy(age=HOUR)) == ["a", "b", "c", "d"], "the service has left this node"


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.text("abcdef", min_size=1, max_size=3),
        parts=st.dictionaries(st.sampled_from("vwxyz"), st.integers(0, 40), max_size=4),
        used_at=st.floats(0, NOW),
        in_use=st.booleans(),
        pinned=st.booleans(),
        can_be_fetched=st.booleans(),
        services=st.dictionaries(st.sampled_from("st"), st.floats(0, NOW), max_size=2),
    ),
    unique_by=lambda one: one.id,
    max_size=8,
)


@given(CANDIDATES, st.integers(0, 100), st.floats(0, NOW))
def test_no_plan_takes_what_is_needed(images: list[Candidate], used: int, age: float) -> None:
    verdicts = retention.decide(images, ("s",), Disk(used, 100), Policy(age=age, grace=10), NOW)
    by_id = {one.id: one for one in images}
    taken = [by_id[verdict.id] for verdict in verdicts]
    assert len({one.id for one in taken}) == len(taken)
    assert not any(one.in_use or one.pinned or not one.can_be_fetched or NOW - one.used_at < 10 for one in taken)
    newest = sorted((one for one in images if "s" in one.services), key=lambda one: one.services["s"])[-2:]
    assert not any(one in newest for one in taken)
    left = {part for one in images if one not in taken for part in one.parts}
    freed = {part for one in taken for part in one.parts} - left
    assert {verdict.frees for verdict in verdicts if verdict.frees} <= set(range(161))
    assert freed or all(verdict.frees == 0 for verdict in verdicts)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy()),
        ("off", Policy(high=0, age=0)),
        ("high=70%,low=50,age=7d,grace=10m", Policy(0.7, 0.5, 7 * 86400, 600)),
        ("age=90", replace(Policy(), age=90.0)),
    ],
)
def test_words(text: str, policy: Policy) -> None:
    assert retention.parse(text) == policy


@pytest.mark.parametrize("text", ["high", "high=x", "low=95", "high=101", "age=-1", "colour=1", "age=1w"])
def test_words_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidArgument, match="image collection"):
        retention.parse(text)


def test_a_store_collects(tmp_path: Path, layer: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [NOW]
    users: dict[str, list[str]] = {}
    store = ImageStore(tmp_path / "images", in_use=lambda: users, now=lambda: clock[0])
    ids = {}
    for number, name in enumerate(("old", "used", "pinned", "running", "loaded", "served")):
        clock[0] = NOW + number
        store.load_archive(io.BytesIO(made.docker_archive(f"{name}:1", [layer("base"), layer(name)])))
        ids[name] = store.resolve(f"{name}:1").id
        if name != "loaded":
            # As a pull leaves it: with the registry's digest.
            found = store.resolve(f"{name}:1")
            with store.content.lease() as lease:
                digest = reference.parse(f"{name}@{found.manifest_digest}")
                lease.pin(found.manifest_digest)
                store.add(Blob(found.manifest_digest, found.manifest_size), [digest], lease)
    clock[0] = NOW + 100 * HOUR
    store.use(store.resolve("used:1"))
    store.use(store.resolve("served:1"), "service")
    store.pin("pinned:1")
    users[ids["running"]] = ["web"]
    store.settle()
    store = ImageStore(tmp_path / "images", in_use=lambda: users, now=lambda: clock[0])
    assert [one.id for one in store.pins()] == [ids["pinned"]]
    monkeypatch.setattr(disk, "usage", lambda path: Disk(10, 100))
    assert store.reclaim(Policy(), ["service"]).deleted == ()
    monkeypatch.setattr(disk, "usage", lambda path: Disk(99_000, 100_000))
    clock[0] += 2 * HOUR
    done = store.reclaim(Policy(), ["service"])
    assert [each for each in done.deleted if each in ids.values()] == [ids["old"], ids["used"]]
    assert done.freed > 0
    assert {one.id for one in store.list()} == {ids[name] for name in ("pinned", "running", "loaded", "served")}
    assert ids["pinned"] not in store.prune({"dangling": ["false"]}).deleted
    store.pin("pinned:1", False)
    assert ids["pinned"] in store.prune({"dangling": ["false"]}).deleted
    assert store.reclaim(retention.parse("off"), []).deleted == ()
    assert list(store.fsck()) == []
