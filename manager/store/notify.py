"""Who wants to hear that the mirror changed, and how: as a set of kinds, or change by change.

It decides what a slow listener loses (never a kind; single changes beyond a bound, and then it is told). It knows no
store.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import NamedTuple, Self

from covey.errors import Unavailable
from covey.model.objects import Stored

BACKLOG = 10_000


class Changed(NamedTuple):
    """An object was created (``before`` None), changed, or removed (``after`` None), as seen at ``revision``."""

    kind: str
    id: str
    before: Stored | None
    after: Stored | None
    revision: int


class ChangesLost(Unavailable):
    """A listener fell behind by more than BACKLOG changes: read the state anew and listen again."""


class Kinds:
    """``with mirror.changes(kinds) as changed: await changed.wait()``: the kinds that changed since the last time."""

    def __init__(self, board: Board, kinds: Collection[str]) -> None:
        self._board = board
        self._kinds = frozenset(kinds)
        self._seen: set[str] = set()
        self._wake = asyncio.Event()

    def __enter__(self) -> Self:
        self._board.kinds.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.kinds.remove(self)

    async def wait(self) -> frozenset[str]:
        """Return when a wanted kind has changed; says which did, and forgets them."""
        await self._wake.wait()
        return self.take()

    def take(self) -> frozenset[str]:
        """The kinds that changed since the last time, perhaps none, without waiting."""
        seen, self._seen = frozenset(self._seen), set()
        self._wake.clear()
        return seen

    def tell(self, kinds: Iterable[str]) -> None:
        """Called by the board."""
        wanted = self._kinds.intersection(kinds)
        if wanted:
            self._seen |= wanted
            self._wake.set()


class Events:
    """``with mirror.events(kinds) as events: async for changed in events``. Raises ChangesLost to a slow listener."""

    def __init__(self, board: Board, kinds: Collection[str]) -> None:
        self._board = board
        self._kinds = frozenset(kinds)
        self._queue: deque[Changed] = deque()
        self._lost = 0
        self._wake = asyncio.Event()

    def __enter__(self) -> Self:
        self._board.events.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.events.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Changed:
        while not self._queue:
            if self._lost:
                lost, self._lost = self._lost, 0
                raise ChangesLost(f"listener missed {lost} changes: read the state anew and listen again")
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def tell(self, changes: Iterable[Changed]) -> None:
        """Called by the board."""
        for change in changes:
            if change.kind not in self._kinds:
                continue
            if len(self._queue) >= BACKLOG or self._lost:
                self._lost += 1
            else:
                self._queue.append(change)
            self._wake.set()


class Board:
    """All listeners of one mirror."""

    def __init__(self) -> None:
        self.kinds: list[Kinds] = []
        self.events: list[Events] = []

    def tell(self, changes: list[Changed]) -> None:
        kinds = {change.kind for change in changes}
        for listener in self.kinds:
            listener.tell(kinds)
        for reader in self.events:
            reader.tell(changes)

    def tell_kinds(self, kinds: Iterable[str]) -> None:
        for listener in self.kinds:
            listener.tell(kinds)
