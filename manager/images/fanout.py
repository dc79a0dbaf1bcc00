"""The tracker at work in a manager: brings it what sessions hear and how late it is, and carries what it says to the nodes.

It decides nothing: who gets what from whom is manager.images.tracker's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from covey.clock import Clock
from covey.wire.messages import AnyMessage, BlobEnded, BlobWanted, ImageReport, ImagesHeld, ImageSought, ImageWanted
from manager.images.tracker import Tell, Tracker

TICK = 0.5


class Fanout:
    """``post(node_id, message)`` sends over a node's session, without waiting; to one that has none nothing is sent."""

    def __init__(self, clock: Clock, post: Callable[[str, AnyMessage], None]) -> None:
        self._clock = clock
        self._post = post
        self.tracker = Tracker()

    async def run(self) -> None:
        """Let time pass for those that wait; until cancelled."""
        while True:
            await self._clock.sleep(TICK)
            if not self.tracker.idle:
                self._say(self.tracker.advance(self._clock.monotonic()))

    def joined(self, node_id: str, port: str) -> None:
        """The node has opened a session."""
        self._say(self.tracker.join(node_id, port))

    def left(self, node_id: str) -> None:
        """The node's session is over."""
        self._say(self.tracker.leave(node_id, self._clock.monotonic()))

    def heard(self, node_id: str, message: ImageReport) -> None:
        """The node has said something of images."""
        now, tracker = self._clock.monotonic(), self.tracker
        match message:
            case ImagesHeld():
                self._say(tracker.held(node_id, message, now))
            case ImageWanted():
                self._say(tracker.image_wanted(node_id, message, now))
            case ImageSought():
                self._say(tracker.image_sought(node_id, message, now))
            case BlobWanted():
                self._say(tracker.blob_wanted(node_id, message, now))
            case BlobEnded():
                self._say(tracker.ended(node_id, message, now))

    def statistics(self) -> dict[str, Any]:
        """The tracker's."""
        return self.tracker.statistics()

    def _say(self, told: Iterable[Tell]) -> None:
        for node_id, message in told:
            self._post(node_id, message)
