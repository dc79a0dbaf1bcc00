"""One image on its way to this node: its blobs, each read from whichever sources the manager names, one after the other.

It decides nothing about sources. A blob goes on where the last source left off; the content store verifies it at its end. Runs
in threads, one a blob; ``stop`` ends them soon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from covey.errors import Unavailable
from covey.wire.messages import BlobEnded, BlobSource, BlobWanted
from worker.blobs.download import Body, Fault, Wanted
from worker.blobs.traffic import Tally
from worker.images.content import BadDigest, Blob, ContentStore, Lease

#: So often a blob is fetched anew when its bytes came from several sources and are not what its digest says.
ATTEMPTS = 3


class Desk(Protocol):
    """The session's side, called from the haul's threads."""

    def next_source(self, wanted: BlobWanted, ended: BlobEnded | None, stopped: Callable[[], bool]) -> BlobSource:
        """Waits for a source, until ``stopped``; ``ended`` is how the last one ended. Raises NotFound or Unavailable."""

    def connect(self, source: BlobSource, wanted: Wanted) -> Body:
        """Raises Fault."""

    def ended(self, ended: BlobEnded) -> None:
        """Says how a transfer ended, without waiting for another."""


class Haul:
    """``total`` is set once the manifest is known; ``current`` counts bytes that came."""

    def __init__(self, content: ContentStore, desk: Desk, received: Tally) -> None:
        self._content = content
        self._desk = desk
        self._received = received
        self._lock = threading.Lock()
        self._bodies: set[Body] = set()
        self.stopped = False
        self.current = 0
        self.total = 0

    def stop(self) -> None:
        """What is under way fails soon."""
        with self._lock:
            self.stopped = True
            for body in self._bodies:
                body.close()

    def fetch(self, blob: Blob, lease: Lease) -> None:
        """The blob is in the content store, pinned under ``lease``. Raises what ended it otherwise."""
        for attempt in range(1, ATTEMPTS + 1):
            stream = Stream(self, blob)
            try:
                self._content.ingest(stream, lease, blob.digest, blob.size)
            except BadDigest:
                stream.close()
                if attempt == ATTEMPTS:
                    self._desk.ended(BlobEnded(digest=blob.digest, fault="stopped"))
                    raise
                stream.blame()
                continue
            except BaseException:
                stream.close()
                self._desk.ended(BlobEnded(digest=blob.digest, fault="stopped"))
                raise
            stream.close()
            self._received.add(blob.digest, blobs=1)
            self._desk.ended(BlobEnded(digest=blob.digest, node_id=stream.source))
            return

    def held_elsewhere(self, blob: Blob, offset: int) -> Stream:
        """The blob's bytes from ``offset`` on, as long as a node that can be reached has them. Not verified."""
        return Stream(self, blob, offset, only_held=True)

    def open(self, source: BlobSource, wanted: Wanted) -> Body:
        """A connection that ``stop`` closes. Raises Fault, Unavailable when stopped."""
        body = self._desk.connect(source, wanted)
        with self._lock:
            if self.stopped:
                body.close()
                raise Unavailable("the image is no longer waited for")
            self._bodies.add(body)
        return body

    def close(self, body: Body) -> None:
        with self._lock:
            self._bodies.discard(body)
        body.close()

    def came(self, digest: str, size: int) -> None:
        self._received.add(digest, size=size)
        with self._lock:
            self.current += size

    def next_source(self, wanted: BlobWanted, ended: BlobEnded | None) -> BlobSource:
        if self.stopped:
            raise Unavailable("the image is no longer waited for")
        return self._desk.next_source(wanted, ended, lambda: self.stopped)

    def lost(self, size: int) -> None:
        """Bytes that came and are of no use."""
        with self._lock:
            self.current -= size

    def say(self, ended: BlobEnded) -> None:
        self._desk.ended(ended)


class Stream:
    """A blob as a file to read, over as many sources as it takes. ``source`` is the last one; ``only_held``: see BlobWanted."""

    def __init__(self, haul: Haul, blob: Blob, offset: int = 0, *, only_held: bool = False) -> None:
        self._haul = haul
        self._blob = blob
        self._offset = offset
        self._wanted = BlobWanted(digest=blob.digest, size=blob.size, only_held=only_held)
        self._body: Body | None = None
        self._held = b""
        self._ended: BlobEnded | None = None
        self._came = 0
        self._givers: list[str] = []
        self.source = ""

    def read(self, size: int = -1, /) -> bytes:
        """As a file's; ``size`` bytes at most."""
        while not self._held:
            if self._offset >= self._blob.size:
                return b""
            if self._haul.stopped:
                raise Unavailable("the image is no longer waited for")
            self._held = self._receive()
        data, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        return data

    def close(self) -> None:
        """End the connection, if one is open."""
        if self._body is not None:
            body, self._body = self._body, None
            self._haul.close(body)

    def blame(self) -> None:
        """The bytes were wrong: if all came of one source, it has another blob than it says."""
        self._haul.lost(self._offset)
        if len(set(self._givers)) == 1:
            words = f"node {self.source} sent another blob than {self._blob.digest}"
            self._haul.say(BlobEnded(digest=self._blob.digest, node_id=self.source, fault="corrupt", words=words))
        else:
            self._haul.say(BlobEnded(digest=self._blob.digest, node_id=self.source, fault="broken", words="wrong bytes"))

    def _receive(self) -> bytes:
        """Some bytes of a source, b"" when it failed and another is to be tried."""
        try:
            if self._body is None:
                source = self._haul.next_source(self._wanted, self._ended)
                self._ended, self.source, self._came = None, source.node_id, 0
                self._body = self._haul.open(source, Wanted(self._blob.digest, self._blob.size, source.node_id, self._offset))
            data = self._body.read()
            if not data:
                raise Fault("broken", "the blob ended early")
        except Fault as fault:
            self.close()
            self._ended = BlobEnded(
                digest=self._blob.digest, node_id=self.source, fault=fault.kind, words=str(fault), came=self._came
            )
            return b""
        if not self._givers or self._givers[-1] != self.source:
            self._givers.append(self.source)
        self._offset += len(data)
        self._came += len(data)
        self._haul.came(self._blob.digest, len(data))
        return data
