"""Work that stops between its steps, so that whoever does it can turn to others meanwhile; and doing it in one go.

A stop is a plain ``yield``: what work comes to is what its generator returns. It knows no decision and no clock.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Made = TypeVar("Made")


def whole(work: Generator[object, None, Made]) -> Made:
    """What ``work`` comes to, without a stop."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            made: Made = done.value
            return made


class Effort:
    """Counts what was done since the last stop; ``due`` says whether it is time for the next."""

    __slots__ = ("_done", "_most")

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._done = 0

    def add(self, done: int) -> None:
        self._done += done

    def due(self, done: int = 1) -> bool:
        """Whether, ``done`` more being done, it is time for a stop; if so the caller stops, and it counts anew."""
        self._done += done
        if self._done < self._most:
            return False
        self._done = 0
        return True
