"""Who gets which blob from whom. Pure: what nodes report and the time in, what to tell which node out.

It decides the tree of a fan-out. A node that has received a blob is a source of it at once. A source sends a blob to one node
at a time and twice in all, while anybody else can or soon will; of several the least burdened sends. A source that cannot be
reached is reached through a manager, one that fails is left for another; a node waits, for a while, for one to come back.
What a manager carries is a last resort: never while a source that can be reached directly has the blob or is receiving it, and
never for a node that can get the blob elsewhere.
An image that no node has is looked for elsewhere by one node; the others that want it wait for that one.
It must not know sessions, sockets, clocks or the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from covey.wire.messages import (
    BlobEnded,
    BlobSource,
    BlobWanted,
    ImageNews,
    ImageOffer,
    ImagesHeld,
    ImageSought,
    ImageWanted,
)
from manager.images.catalogue import Catalogue

#: How often a source sends one blob while others can.
SENDS = 2
#: So many transfers a source has under way at most.
UPLOADS = 6
#: A second node is served beside the first when that has taken so long (seconds): it may be a slow one.
OVERTAKE = 5.0
#: Transfers through this manager at once.
RELAYS = 4
#: How long an image that no node has may still be announced (a load and a service made right after it race).
ANNOUNCING = 1.0
#: How long a node waits for a blob that no node has any more: a source may be restarting.
ORPHANED = 30.0
#: So many faults of a direct connection make a source one that is reached through a manager; as many more, none at all.
FAULTS = 2
#: A transfer that brought so many bytes before it broke does not count as a fault: the next goes on from there.
PROGRESS = 64 * 1024


#: An image as it is looked for: name or digest, and architecture.
Sought = tuple[str, str]


class Tell(NamedTuple):
    """A message for a node."""

    node_id: str
    message: ImageNews


@dataclass(slots=True)
class _Question:
    """An image that no node has, yet; ``until`` then it may still be announced."""

    node_id: str
    message: ImageWanted
    until: float

    @property
    def image(self) -> Sought:
        return self.message.image, self.message.architecture


@dataclass(slots=True)
class _Wait:
    """A node that waits for a blob. ``indirect``: sources it cannot reach itself; ``refused``: those that are no use to it.

    Who has elsewhere to go is not ``patient``.
    """

    node_id: str
    digest: str
    size: int
    patient: bool = True
    lonely_since: float | None = None
    indirect: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)

    def forgive(self, source: str) -> None:
        """The source has come back: what was held against it is over."""
        self.indirect.discard(source)
        self.refused.discard(source)
        del self.faults[source]


@dataclass(slots=True)
class _Transfer:
    """A blob on its way."""

    wait: _Wait
    source: str
    relayed: bool
    since: float


class Tracker:
    """One a manager. Every method returns whom to tell what, in order."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self._ports: dict[str, str] = {}
        self._questions: list[_Question] = []
        #: Who looks for an image that no node has.
        self._seekers: dict[Sought, str] = {}
        #: By digest, then by the receiving node; both in order of asking.
        self._waits: dict[str, dict[str, _Wait]] = {}
        self._transfers: dict[str, dict[str, _Transfer]] = {}
        self._uploads: Counter[str] = Counter()
        self._sent: dict[str, Counter[str]] = {}
        self._relays = 0
        self._counts: Counter[str] = Counter()

    # -- what nodes report -----------------------------------------------------------------------------------------

    def join(self, node_id: str, port: str) -> list[Tell]:
        """A node has opened a session; ``port`` is its blob port's host:port, "" for none. What it asked before is over."""
        self._forget(node_id)
        self._ports[node_id] = port
        for waits in self._waits.values():
            for wait in waits.values():
                wait.forgive(node_id)
        return []

    def leave(self, node_id: str, now: float) -> list[Tell]:
        """The node's session has ended. Who receives from it goes on until it says otherwise."""
        self._forget(node_id)
        self.catalogue.leave(node_id)
        self._ports.pop(node_id, None)
        return self._assign(now)

    def held(self, node_id: str, message: ImagesHeld, now: float) -> list[Tell]:
        """The node says which images it holds."""
        self.catalogue.announce(node_id, message)
        if message.gone:
            self._prune()
        return [*self._answer_all(now), *self._assign(now)]

    def image_wanted(self, node_id: str, message: ImageWanted, now: float) -> list[Tell]:
        """The node needs an image: it is told of the manifest, now or when a node has announced it, or to look elsewhere."""
        return self._answer(_Question(node_id, message, now + ANNOUNCING), now)

    def image_sought(self, node_id: str, message: ImageSought, now: float) -> list[Tell]:
        """The node has looked elsewhere. If in vain, whoever waited for it tries for itself."""
        image = (message.image, message.architecture)
        if self._seekers.get(image) != node_id:
            return []
        del self._seekers[image]
        waiting = [each for each in self._questions if each.image == image]
        if message.error:
            self._questions = [each for each in self._questions if each.image != image]
            return [_nobody(each) for each in waiting]
        for each in waiting:
            each.until = now + ANNOUNCING
        return []

    def blob_wanted(self, node_id: str, message: BlobWanted, now: float) -> list[Tell]:
        """The node needs a blob; asking again while it waits changes nothing."""
        digest = message.digest
        if node_id not in self._transfers.get(digest, ()):
            self._waits.setdefault(digest, {}).setdefault(
                node_id, _Wait(node_id, digest, message.size, patient=not message.only_held)
            )
        return self._assign(now)

    def ended(self, node_id: str, message: BlobEnded, now: float) -> list[Tell]:
        """A transfer is over, well or not. Of one nobody knows (an earlier session's) only success counts."""
        transfer = self._transfers.get(message.digest, {}).get(node_id)
        if message.fault == "stopped":
            self._drop_wait(message.digest, node_id)
            if transfer is not None:
                self._end(transfer, sent=False)
        elif not message.fault:
            if transfer is not None:
                self._end(transfer, sent=transfer.source == message.node_id)
            self._drop_wait(message.digest, node_id)
            self.catalogue.received(node_id, message.digest)
        elif transfer is not None and transfer.source == message.node_id:
            self._fail(transfer, message)
        return self._assign(now)

    def advance(self, now: float) -> list[Tell]:
        """Time has passed."""
        return [*self._answer_all(now), *self._assign(now)]

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing waits, so that time changes nothing."""
        return not self._waits and not self._questions

    def reachable(self, node_id: str) -> bool:
        """Whether the node has a session here."""
        return node_id in self._ports

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and what there is now."""
        return {
            **self.catalogue.counts(),
            **{name: self._counts[name] for name in ("direct", "relayed", "failed", "given_up")},
            "waiting": sum(map(len, self._waits.values())),
            "under_way": sum(map(len, self._transfers.values())),
            "most_sent": max((count for sent in self._sent.values() for count in sent.values()), default=0),
        }

    # -- decisions: images -----------------------------------------------------------------------------------------

    def _answer_all(self, now: float) -> list[Tell]:
        questions, self._questions = self._questions, []
        return [tell for each in questions for tell in self._answer(each, now)]

    def _answer(self, question: _Question, now: float) -> list[Tell]:
        found = self.catalogue.find(*question.image)
        if found is not None:
            offer = ImageOffer(request=question.message.request, manifest=found.manifest, size=found.size)
            return [Tell(question.node_id, offer)]
        if now < question.until or self._seekers.get(question.image, question.node_id) != question.node_id:
            self._questions.append(question)
            return []
        self._seekers[question.image] = question.node_id
        return [_nobody(question)]

    # -- decisions: blobs ------------------------------------------------------------------------------------------

    def _assign(self, now: float) -> list[Tell]:
        """A source for every wait that can have one now; the end of those that have waited in vain."""
        told: list[Tell] = []
        for digest in list(self._waits):
            holders = self.catalogue.holders(digest)
            free = self._free(digest, now)
            for wait in list(self._waits[digest].values()):
                if holders and not free:
                    break
                tell = self._serve(wait, free, now)
                if tell is not None:
                    told.append(tell)
                    free = self._free(digest, now)
        return told

    def _free(self, digest: str, now: float) -> list[str]:
        """The holders of a blob that may send it next, the least burdened first."""
        under_way = self._transfers.get(digest, {}).values()
        sent = self._sent.get(digest, Counter())
        begun: dict[str, list[float]] = {}
        for transfer in under_way:
            begun.setdefault(transfer.source, []).append(transfer.since)
        free = [
            source
            for source in self.catalogue.holders(digest)
            if (sent[source] < SENDS or not under_way)
            and self._uploads[source] < UPLOADS
            and (source not in begun or (len(begun[source]) < SENDS and now - min(begun[source]) >= OVERTAKE))
        ]
        return sorted(free, key=lambda source: (sent[source], self._uploads[source], source))

    def _serve(self, wait: _Wait, free: Sequence[str], now: float) -> Tell | None:
        usable = self.catalogue.holders(wait.digest) - wait.refused - {wait.node_id}
        direct = {source for source in usable if self._ports.get(source) and source not in wait.indirect}
        coming = self._transfers.get(wait.digest, {})
        if usable or coming:
            wait.lonely_since = None
        if direct:
            source = self._choose(wait.digest, free, direct)
            return self._begin(wait, source, False, now) if source else None
        if any(self._ports.get(node_id) and node_id not in wait.indirect for node_id in coming):
            return None
        if not wait.patient:
            return self._give_up(wait)
        if usable and self._relays < RELAYS:
            source = self._choose(wait.digest, free, usable)
            return self._begin(wait, source, True, now) if source else None
        if not usable and not coming:
            return self._lonely(wait, now)
        return None

    def _choose(self, digest: str, free: Sequence[str], among: Set[str]) -> str:
        """The first of ``free`` that is one of ``among``; "" for none, or while one that has sent less is only busy."""
        sent = self._sent.get(digest, Counter())
        source = next((source for source in free if source in among), "")
        if source and sent[source] >= SENDS and any(sent[other] < SENDS for other in among):
            return ""
        return source

    def _begin(self, wait: _Wait, source: str, relayed: bool, now: float) -> Tell:
        self._drop_wait(wait.digest, wait.node_id)
        self._transfers.setdefault(wait.digest, {})[wait.node_id] = _Transfer(wait, source, relayed, now)
        self._uploads[source] += 1
        self._relays += relayed
        self._sent.setdefault(wait.digest, Counter())[source] += 1
        address = "" if relayed else self._ports[source]
        return Tell(wait.node_id, BlobSource(digest=wait.digest, node_id=source, address=address))

    def _lonely(self, wait: _Wait, now: float) -> Tell | None:
        if wait.lonely_since is None:
            wait.lonely_since = now
        return None if now - wait.lonely_since < ORPHANED else self._give_up(wait)

    def _give_up(self, wait: _Wait) -> Tell:
        self._drop_wait(wait.digest, wait.node_id)
        self._counts["given_up"] += 1
        return Tell(wait.node_id, BlobSource(digest=wait.digest, error=f"no node has the blob {wait.digest} any more"))

    def _fail(self, transfer: _Transfer, message: BlobEnded) -> None:
        """The receiver waits on, in its old place, for another way."""
        wait, source, fault = transfer.wait, transfer.source, message.fault
        self._end(transfer, sent=False)
        self._counts["failed"] += 1
        if fault in ("gone", "corrupt"):
            self.catalogue.missed(source, wait.digest)
        if fault in ("gone", "corrupt") or not wait.patient:
            wait.refused.add(source)
        elif fault == "unreachable" and not transfer.relayed:
            wait.indirect.add(source)
        elif message.came < PROGRESS:
            wait.faults[source] += 1
            if wait.faults[source] >= 2 * FAULTS:
                wait.refused.add(source)
            elif wait.faults[source] >= FAULTS:
                wait.indirect.add(source)
        self._waits[wait.digest] = {wait.node_id: wait, **self._waits.get(wait.digest, {})}

    def _end(self, transfer: _Transfer, *, sent: bool) -> None:
        digest, source = transfer.wait.digest, transfer.source
        under_way = self._transfers[digest]
        del under_way[transfer.wait.node_id]
        if not under_way:
            del self._transfers[digest]
        self._uploads[source] -= 1
        self._relays -= transfer.relayed
        if sent:
            self._counts["relayed" if transfer.relayed else "direct"] += 1
            return
        self._sent[digest][source] -= 1

    def _drop_wait(self, digest: str, node_id: str) -> None:
        waits = self._waits.get(digest, {})
        waits.pop(node_id, None)
        if not waits:
            self._waits.pop(digest, None)

    def _forget(self, node_id: str) -> None:
        """What the node asked for and what it was receiving is over."""
        self._questions = [each for each in self._questions if each.node_id != node_id]
        self._seekers = {image: seeker for image, seeker in self._seekers.items() if seeker != node_id}
        for digest in list(self._waits):
            self._drop_wait(digest, node_id)
        for digest in list(self._transfers):
            if (transfer := self._transfers[digest].get(node_id)) is not None:
                self._end(transfer, sent=False)
        self._prune()

    def _prune(self) -> None:
        """Who has sent what is of no matter once nobody has it."""
        for digest in [digest for digest in self._sent if not self.catalogue.holders(digest)]:
            if digest not in self._waits and digest not in self._transfers:
                del self._sent[digest]


def _nobody(question: _Question) -> Tell:
    error = f"no node has the image {question.message.image}"
    return Tell(question.node_id, ImageOffer(request=question.message.request, error=error))
