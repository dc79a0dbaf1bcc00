"""The tracker alone: who gets which blob from whom, whatever dies, is slow or cannot be reached.

The model below is a network of nodes that do what the tracker says: transfers take as long as they take, nodes die in the
middle and come back, sessions break under transfers that go on, ports are closed or lie. Each history is drawn from a seed;
what must hold is checked at every step.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

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

MANIFEST = "sha256:" + "0" * 64


def blob(number: int) -> str:
    return f"sha256:{number:064x}"


def image(blobs: int, manifest: str = MANIFEST, *names: str, tagged_at: float = 1.0) -> HeldImage:
    digests = tuple(blob(number + 1) for number in range(blobs))
    return HeldImage(manifest=manifest, size=100, names=names or ("docker.io/x/y:1",), blobs=digests, tagged_at=tagged_at)


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


# -- single decisions --------------------------------------------------------------------------------------------------


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


# -- histories ---------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A node of the model: what it has (in bytes), and whether it lives. ``direct``: whom it can reach."""

    name: str
    port: bool
    alive: bool = True
    whole: bool = False
    speed: float = 1.0
    got: dict[str, float] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)


@dataclass
class Sending:
    """``known``: the tracker has not forgotten it with a session."""

    source: str
    relayed: bool
    known: bool = True
    came: int = 0


class Network:
    """Runs one history. ``calm``: nothing dies and every port is open, so that the bounds are the strict ones."""

    SIZE = 10.0

    def __init__(self, seed: int, *, calm: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.calm = calm
        self.now = 0.0
        self.tracker = Tracker()
        self.blobs = [blob(number + 1) for number in range(rng.randint(1, 5))]
        count = rng.randint(2, 24)
        self.nodes = {
            f"n{number}": Node(f"n{number}", calm or rng.random() < 0.8, speed=rng.choice((0.2, 1.0, 1.0, 5.0)))
            for number in range(count)
        }
        self.cut = set() if calm else {pair for pair in self.pairs() if rng.random() < 0.15}
        self.sendings: dict[tuple[str, str], Sending] = {}
        self.sent: dict[str, Counter[str]] = defaultdict(Counter)
        self.received: dict[str, Counter[str]] = defaultdict(Counter)
        self.relayed = 0
        self.deaths = 0
        self.flaps = 0
        #: Nobody kills the last node that has everything.
        for node in list(self.nodes.values())[: rng.randint(1, 2)]:
            node.whole = True

    def pairs(self) -> list[tuple[str, str]]:
        return [(one, other) for one in self.nodes for other in self.nodes if one != other]

    def open_session(self, node: Node) -> None:
        self.flaps += node.alive and self.now > 0
        node.alive = True
        under_way = {digest for name, digest in self.sendings if name == node.name}
        for digest in under_way:
            self.sendings[(node.name, digest)].known = False
        node.asked = set(under_way)
        self.obey(self.tracker.join(node.name, f"{node.name}:1" if node.port else ""))
        images = (image(len(self.blobs)),) if node.whole else ()
        self.obey(self.tracker.held(node.name, ImagesHeld(complete=True, images=images), self.now))
        if not node.whole:
            for digest in self.blobs:
                if node.got.get(digest, 0.0) >= self.SIZE:
                    self.obey(self.tracker.ended(node.name, BlobEnded(digest=digest), self.now))
                elif digest not in under_way:
                    self.want(node, digest)

    def want(self, node: Node, digest: str) -> None:
        node.asked.add(digest)
        self.obey(self.tracker.blob_wanted(node.name, BlobWanted(digest=digest, size=10), self.now))

    def obey(self, told: list[Tell]) -> None:
        for name, message in told:
            assert isinstance(message, BlobSource)
            assert not message.error, f"{name} was given up: {message.error}"
            node = self.nodes[name]
            assert node.alive
            assert message.digest in node.asked, f"{name} is told of a blob that it has"
            assert (name, message.digest) not in self.sendings, "one blob is sent to a node twice at once"
            assert message.node_id != name
            self.sendings[(name, message.digest)] = Sending(message.node_id, not message.address)
            self.check_bounds(message)

    def check_bounds(self, message: BlobSource) -> None:
        known = {key: one for key, one in self.sendings.items() if one.known}
        under_way = Counter(one.source for (_, digest), one in known.items() if digest == message.digest)
        assert max(under_way.values()) <= rules.SENDS
        assert max(Counter(one.source for one in known.values()).values()) <= rules.UPLOADS
        assert sum(one.relayed for one in known.values()) <= rules.RELAYS
        if self.calm:
            assert message.address, "the manager carries a blob though all ports are open"

    def kill(self, node: Node) -> None:
        node.alive = False
        self.deaths += 1
        for key in [key for key in self.sendings if key[0] == node.name]:
            del self.sendings[key]
        self.obey(self.tracker.leave(node.name, self.now))

    def step(self) -> None:
        self.now += 0.5
        rng = self.rng
        if not self.calm and self.now < 60 and rng.random() < 0.15:
            victims = [node for node in self.nodes.values() if node.alive and not (node.whole and self.wholes() == 1)]
            if victims and rng.random() < 0.6:
                self.kill(rng.choice(victims))
            elif dead := [node for node in self.nodes.values() if not node.alive]:
                self.open_session(rng.choice(dead))
            elif living := [node for node in self.nodes.values() if node.alive]:
                self.open_session(rng.choice(living))
        for key in list(self.sendings):
            if key in self.sendings:
                self.move(key)
        self.obey(self.tracker.advance(self.now))

    def move(self, key: tuple[str, str]) -> None:
        (name, digest), sending = key, self.sendings[key]
        node, source = self.nodes[name], self.nodes[sending.source]
        has = source.whole or source.got.get(digest, 0.0) >= self.SIZE
        fault = ""
        if not sending.relayed and ((name, source.name) in self.cut or not source.alive):
            fault = "unreachable"
        elif sending.relayed and not source.alive:
            fault = "broken"
        elif not has:
            fault = "gone"
        elif not self.calm and self.rng.random() < 0.03:
            fault = "broken"
        else:
            sending.came += rules.PROGRESS
            node.got[digest] = min(self.SIZE, node.got.get(digest, 0.0) + min(node.speed, source.speed))
            if node.got[digest] < self.SIZE:
                return
            self.sent[source.name][digest] += 1
            self.received[name][digest] += 1
            self.relayed += sending.relayed
            node.asked.discard(digest)
        del self.sendings[key]
        self.obey(
            self.tracker.ended(name, BlobEnded(digest=digest, node_id=source.name, fault=fault, came=sending.came), self.now)
        )
        if fault and (name, digest) not in self.sendings:
            self.want(node, digest)
        if not fault and not node.asked and all(node.got.get(each, 0.0) >= self.SIZE for each in self.blobs):
            node.whole = True
            self.obey(self.tracker.held(name, ImagesHeld(complete=False, images=(image(len(self.blobs)),)), self.now))

    def wholes(self) -> int:
        return sum(node.whole and node.alive for node in self.nodes.values())

    def run(self) -> None:
        for node in self.nodes.values():
            self.open_session(node)
        while self.wholes() < sum(node.alive for node in self.nodes.values()) or (not self.calm and self.now < 60):
            self.step()
            assert self.now < 3000, f"no end: {self.tracker.statistics()}, waits for {self.sendings}"
        assert self.tracker.idle
        assert not self.tracker.statistics()["under_way"]
        for name, counts in self.received.items():
            assert max(counts.values()) == 1, f"{name} received a blob twice: {counts}"


def play(seeds: range, *, calm: bool) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        network = Network(seed, calm=calm)
        try:
            network.run()
            if calm:
                most = max((count for counts in network.sent.values() for count in counts.values()), default=0)
                assert most <= rules.SENDS, f"a source sent one blob {most} times"
                seen["sent twice"] += most == rules.SENDS
        except AssertionError as error:
            raise AssertionError(f"seed {seed} (calm: {calm}): {error}") from error
        seen.update(nodes=len(network.nodes), deaths=network.deaths, flaps=network.flaps, relayed=network.relayed, histories=1)
        seen["transfers"] += sum(sum(counts.values()) for counts in network.received.values())
    return seen


def test_in_quiet_every_node_receives_each_blob_once_and_no_source_sends_one_more_than_twice() -> None:
    seen = play(range(150), calm=True)
    print(dict(seen))
    assert seen["sent twice"] > 50
    assert seen["relayed"] == 0


def test_whatever_dies_or_cannot_be_reached_every_node_that_lives_has_the_image_in_the_end() -> None:
    seen = play(range(150), calm=False)
    print(dict(seen))
    assert seen["deaths"] > 300
    assert seen["flaps"] > 100
    assert seen["relayed"] > 80


@pytest.mark.long
def test_many_histories() -> None:
    print(dict(play(range(1000, 4000), calm=True)), dict(play(range(1000, 4000), calm=False)))
