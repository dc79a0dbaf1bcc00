"""The tracker alone, one decision at a time: who gets which blob from whom. Whole histories are in test_histories.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from covey.wire.messages import (
    BlobEnded,
    BlobSource,
    BlobWanted,
    HeldImage,
    ImageOffer,
    ImagesHeld,
    ImageSought,
    ImageWanted,
)
from manager.images import tracker as rules
from manager.images.tracker import Tell, Tracker

sys.path.insert(0, str(Path(__file__).parent))

from made_images import MANIFEST, blob, image


def holding(tracker: Tracker, node: str, *images: HeldImage, port: str = "port", now: float = 0.0) -> list[Tell]:
    told = tracker.join(node, f"{node}:{port}" if port else "")
    return told + tracker.held(node, ImagesHeld(complete=True, images=images), now)


def sources(told: list[Tell]) -> dict[str, tuple[str, str]]:
    """Receiver → (source, address)."""
    return {node: (m.node_id, m.address) for node, m in told if isinstance(m, BlobSource) and not m.error}


def want(tracker: Tracker, node: str, number: int = 1, now: float = 0.0) -> list[Tell]:
    return tracker.blob_wanted(node, BlobWanted(digest=blob(number), size=10), now)


def end(tracker: Tracker, node: str, source: str, fault: str = "", number: int = 1, now: float = 0.0) -> list[Tell]:
    return tracker.ended(node, BlobEnded(digest=blob(number), node_id=source, fault=fault), now)


def test_the_first_node_gets_it_from_who_has_it_and_the_next_ones_from_a_tree() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    for node in "bcde":
        holding(tracker, node)
    assert sources(want(tracker, "b")) == {"b": ("a", "a:port")}
    assert not sources(want(tracker, "c") + want(tracker, "d") + want(tracker, "e")), "a source serves one at a time"
    assert sources(end(tracker, "b", "a")) == {"c": ("b", "b:port"), "d": ("a", "a:port")}
    assert sources(end(tracker, "c", "b")) == {"e": ("c", "c:port")}
    assert tracker.statistics()["most_sent"] == 2


def test_a_slow_receiver_is_overtaken() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    for node in "bc":
        holding(tracker, node)
        want(tracker, node)
    assert not tracker.advance(rules.OVERTAKE - 0.1)
    assert sources(tracker.advance(rules.OVERTAKE)) == {"c": ("a", "a:port")}


def test_when_all_have_done_their_part_the_least_burdened_does_more() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    for node in "bcd":
        holding(tracker, node)
        want(tracker, node)
        end(tracker, node, "a")
        tracker.leave(node, 0.0)
    holding(tracker, "e")
    assert sources(want(tracker, "e")) == {"e": ("a", "a:port")}


def test_an_unreachable_port_is_gone_round_through_the_manager_only_for_whom_it_is() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b")
    holding(tracker, "c")
    want(tracker, "b")
    assert sources(end(tracker, "b", "a", "unreachable")) == {"b": ("a", "")}
    end(tracker, "b", "a")
    assert sources(want(tracker, "c"))["c"][1] != ""
    assert tracker.statistics()["relayed"] == 1


def test_nothing_goes_through_the_manager_while_a_reachable_node_is_about_to_have_it() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1), port="")
    holding(tracker, "a2", image(1), port="")
    holding(tracker, "b")
    holding(tracker, "c")
    assert sources(want(tracker, "b")) == {"b": ("a", "")}
    assert not want(tracker, "c")
    assert sources(end(tracker, "b", "a")) == {"c": ("b", "b:port")}


def test_who_has_done_its_part_does_not_send_while_one_that_has_not_is_only_busy() -> None:
    tracker = Tracker()
    blobs = rules.UPLOADS + 1
    holding(tracker, "a", image(1))
    for node in "bc":
        holding(tracker, node)
        want(tracker, node)
        end(tracker, node, "a")
        tracker.leave(node, 0.0)
    holding(tracker, "d", image(blobs))
    holding(tracker, "e")
    holding(tracker, "f")
    for number in range(2, blobs + 1):
        assert sources(want(tracker, "e", number)) == {"e": ("d", "d:port")}
    assert not want(tracker, "f")
    assert sources(end(tracker, "e", "d", number=2)) == {"f": ("d", "d:port")}


@pytest.mark.parametrize("fault", ["gone", "corrupt"])
def test_who_has_not_what_it_says_is_asked_no_more(fault: str) -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b", image(1))
    for node in "cd":
        holding(tracker, node)
    [(first, _)] = sources(want(tracker, "c")).values()
    [(second, _)] = sources(end(tracker, "c", first, fault)).values()
    assert {first, second} == {"a", "b"}
    end(tracker, "c", second)
    want(tracker, "d")
    assert first not in tracker.catalogue.holders(blob(1))


def test_a_connection_that_breaks_is_tried_again_then_through_the_manager_then_not_at_all() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b")
    ways = list(sources(want(tracker, "b")).values())
    for _ in range(2 * rules.FAULTS - 1):
        ways += sources(end(tracker, "b", "a", "broken")).values()
    assert ways == [("a", "a:port")] * rules.FAULTS + [("a", "")] * rules.FAULTS
    assert not end(tracker, "b", "a", "broken")
    # It comes back: what was held against it is over.
    assert sources(holding(tracker, "a", image(1))) == {"b": ("a", "a:port")}


def test_a_blob_that_nobody_has_any_more_is_waited_for_and_then_given_up() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b")
    want(tracker, "b")
    tracker.leave("a", 10.0)
    assert not end(tracker, "b", "a", "broken", now=11.0)
    assert not tracker.advance(11.0 + rules.ORPHANED - 0.1)
    [(node, told)] = tracker.advance(11.0 + rules.ORPHANED)
    assert node == "b"
    assert isinstance(told, BlobSource)
    assert "no node has the blob" in told.error
    assert tracker.idle


def test_a_blob_that_was_lost_and_came_back_is_waited_for_anew_when_it_is_lost_again() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b")
    want(tracker, "b")
    tracker.leave("a", 0.0)
    end(tracker, "b", "a", "broken")
    assert sources(holding(tracker, "a", image(1), now=20.0)) == {"b": ("a", "a:port")}
    tracker.leave("a", 21.0)
    end(tracker, "b", "a", "broken", now=21.0)
    assert not tracker.advance(rules.ORPHANED + 1.0)
    assert tracker.advance(rules.ORPHANED + 21.0)


def test_an_image_is_found_by_name_digest_and_id_and_the_last_named_wins() -> None:
    tracker = Tracker()
    newer = image(2, "sha256:" + "9" * 64, "docker.io/x/y:1", tagged_at=2.0)
    holding(tracker, "a", image(1))
    holding(tracker, "b", newer)
    holding(tracker, "c")

    def ask(name: str) -> ImageOffer:
        [(_, offer)] = tracker.image_wanted("c", ImageWanted(request=1, image=name), 0.0)
        assert isinstance(offer, ImageOffer)
        return offer

    assert ask("docker.io/x/y:1").manifest == newer.manifest
    assert ask(f"docker.io/x/y@{MANIFEST}").manifest == MANIFEST
    assert ask(newer.manifest).manifest == newer.manifest


def test_an_image_nobody_has_yet_may_still_be_announced() -> None:
    tracker = Tracker()
    holding(tracker, "a")
    holding(tracker, "b")
    wanted = ImageWanted(request=7, image="docker.io/x/y:1")
    assert not tracker.image_wanted("b", wanted, 0.0)
    told = tracker.held("a", ImagesHeld(complete=False, images=(image(1),)), 0.5)
    assert told == [Tell("b", ImageOffer(request=7, manifest=MANIFEST, size=100))]
    other = ImageWanted(request=8, image="docker.io/x/z:1")
    assert not tracker.image_wanted("b", other, 1.0)
    [(_, offer)] = tracker.advance(1.0 + rules.ANNOUNCING)
    assert isinstance(offer, ImageOffer)
    assert "docker.io/x/z:1" in offer.error


def test_of_those_that_need_what_nobody_has_one_looks_elsewhere_and_the_others_wait_for_it() -> None:
    tracker = Tracker()
    for node in "abc":
        holding(tracker, node)
        assert not tracker.image_wanted(node, ImageWanted(request=1, image="docker.io/x/y:1"), 0.0)
    assert [node for node, _ in tracker.advance(rules.ANNOUNCING)] == ["a"]
    assert not tracker.advance(1000.0), "a pull may take long"
    assert not tracker.image_sought("b", ImageSought(image="docker.io/x/y:1", error="it does not look"), 1000.0)
    tracker.leave("a", 1001.0)
    assert [node for node, _ in tracker.advance(1002.0)] == ["b"], "the next takes over from one that is lost"
    assert not tracker.image_sought("b", ImageSought(image="docker.io/x/y:1"), 1003.0)
    assert not tracker.advance(1003.0), "what it has found is about to be announced"
    told = tracker.held("b", ImagesHeld(complete=False, images=(image(1),)), 1003.1)
    assert told == [Tell("c", ImageOffer(request=1, manifest=MANIFEST, size=100))]
    assert tracker.idle


def test_when_it_is_not_found_elsewhere_each_may_look_for_itself() -> None:
    tracker = Tracker()
    for node in "abc":
        holding(tracker, node)
        tracker.image_wanted(node, ImageWanted(request=1, image="docker.io/x/y:1"), 0.0)
    tracker.advance(rules.ANNOUNCING)
    told = tracker.image_sought("a", ImageSought(image="docker.io/x/y:1", error="no such repository"), 2.0)
    assert [node for node, _ in told] == ["b", "c"]
    assert tracker.idle


def test_an_image_for_another_kind_of_machine_does_not_count() -> None:
    tracker = Tracker()
    holding(tracker, "a", HeldImage(manifest=MANIFEST, size=1, names=("docker.io/x/y:1",), architecture="arm64"))
    assert not tracker.image_wanted("b", ImageWanted(request=1, image="docker.io/x/y:1", architecture="amd64"), 0.0)
    assert tracker.image_wanted("b", ImageWanted(request=1, image="docker.io/x/y:1", architecture="arm64"), 0.0)


def test_what_a_node_no_longer_holds_is_not_looked_for_there() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(2))
    assert tracker.catalogue.holders(blob(1)) == {"a"}
    tracker.held("a", ImagesHeld(complete=False, gone=(MANIFEST,)), 0.0)
    assert not tracker.catalogue.holders(blob(1))
    assert tracker.statistics()["blobs"] == 0
    assert tracker.catalogue.find("docker.io/x/y:1") is None


def test_an_image_that_is_renamed_is_known_by_its_new_name_only() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    renamed = image(1, MANIFEST, "docker.io/x/new:1")
    tracker.held("a", ImagesHeld(complete=False, images=(renamed,)), 0.0)
    assert tracker.catalogue.find("docker.io/x/y:1") is None
    assert tracker.catalogue.find("docker.io/x/new:1") == renamed
    assert tracker.catalogue.holders(blob(1)) == {"a"}
    tracker.leave("a", 0.0)
    assert tracker.catalogue.find(MANIFEST) is None
    holding(tracker, "a", image(1))
    holding(tracker, "a")
    assert tracker.catalogue.find(MANIFEST) is None


def held_only(tracker: Tracker, node: str, number: int = 1, now: float = 0.0) -> list[Tell]:
    return tracker.blob_wanted(node, BlobWanted(digest=blob(number), size=10, only_held=True), now)


def refusals(told: list[Tell]) -> dict[str, str]:
    return {node: m.error for node, m in told if isinstance(m, BlobSource) and m.error}


def test_who_can_get_it_elsewhere_is_told_at_once_that_nobody_has_it() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    holding(tracker, "b")
    assert refusals(held_only(tracker, "b", 7)) == {"b": f"no node has the blob {blob(7)} any more"}
    assert tracker.idle
    assert sources(held_only(tracker, "b")) == {"b": ("a", "a:port")}
    assert refusals(end(tracker, "b", "a", "broken")) == {"b": f"no node has the blob {blob(1)} any more"}, (
        "it is not tried twice"
    )
    assert tracker.idle


def test_who_can_get_it_elsewhere_waits_for_one_that_is_busy_and_has_nothing_carried() -> None:
    tracker = Tracker()
    holding(tracker, "a", image(1))
    for node in "bc":
        holding(tracker, node)
    want(tracker, "b")
    assert not held_only(tracker, "c"), "a serves b, and b will have it soon"
    assert sources(end(tracker, "b", "a")) == {"c": ("b", "b:port")}
    hidden = Tracker()
    holding(hidden, "a", image(1), port="")
    holding(hidden, "c")
    assert refusals(held_only(hidden, "c")), "only a manager could carry it"
    assert sources(want(hidden, "c")) == {"c": ("a", "")}
