"""What this node has sent and received of blobs, counted by digest, so that nobody has to guess. Bounded; nothing is stored.

It decides nothing. Downloads count from their threads, uploads from the event loop.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

#: So many digests are remembered, those of the latest transfers.
DIGESTS = 4096


class Tally:
    """One direction: whole blobs and bytes by digest, and in all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_digest: OrderedDict[str, list[int]] = OrderedDict()
        self._total = [0, 0]

    def add(self, digest: str, *, size: int = 0, blobs: int = 0) -> None:
        """``size`` bytes more; ``blobs``: 1 when with them the blob is whole at the other end."""
        with self._lock:
            mine = self._by_digest.setdefault(digest, [0, 0])
            self._by_digest.move_to_end(digest)
            for held in (mine, self._total):
                held[0] += blobs
                held[1] += size
            while len(self._by_digest) > DIGESTS:
                self._by_digest.popitem(last=False)

    def show(self) -> dict[str, Any]:
        """For people and tests."""
        with self._lock:
            return {"Blobs": self._total[0], "Bytes": self._total[1], "ByDigest": dict(_named(self._by_digest))}


def _named(held: OrderedDict[str, list[int]]) -> Iterator[tuple[str, dict[str, int]]]:
    for digest, (blobs, size) in held.items():
        yield digest, {"Blobs": blobs, "Bytes": size}


class Traffic:
    """Both directions; ``relayed`` is what went out for managers to pass on."""

    def __init__(self) -> None:
        self.sent = Tally()
        self.relayed = Tally()
        self.received = Tally()

    def show(self) -> dict[str, Any]:
        """As ``GET /covey/blobs`` answers."""
        return {"Sent": self.sent.show(), "Relayed": self.relayed.show(), "Received": self.received.show()}
