"""The seam to places that may have a blob besides its registry: other nodes, for one.

A source is tried before the registry. What it hands over is checked like everything else, so it need not be trusted.
"""

from __future__ import annotations

from typing import Protocol

from worker.images.manifests import Descriptor


class Sink(Protocol):
    """Takes a blob's bytes in order."""

    @property
    def offset(self) -> int:
        """How many have been taken: the next ``write`` continues here."""

    async def write(self, data: bytes) -> None:
        """Takes more; waits while the disk is behind. Raises when the blob is longer than its descriptor says."""


class BlobSource(Protocol):
    """``fetch`` hands over the blob from ``sink.offset`` on and says whether it is whole now.

    False, at any point, leaves the rest to the next source or the registry. It raises nothing for its own troubles.
    """

    async def fetch(self, descriptor: Descriptor, sink: Sink) -> bool: ...
