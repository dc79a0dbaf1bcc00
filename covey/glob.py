"""Shell-like patterns matched in time linear in the text, whatever the pattern. Pure.

Patterns come from strangers (a build's COPY, ``.dockerignore``, ``${x#pattern}``), and a regular expression made of many stars
takes for ever. The states of the automaton are the bits of one number. Dialects make the tokens; this runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["one", "star", "optional"]


@dataclass(frozen=True, slots=True)
class Token:
    """``one``: a character that ``fits``. ``star``: any number of them. ``optional``: itself nothing, the two tokens after it
    (a star and what ends it, of ``**/``) may be left out."""

    kind: Kind
    fits: Callable[[str], bool] = lambda character: False


def literal(character: str) -> Token:
    """That character."""
    return Token("one", lambda other: other == character)


class Glob:
    """A sequence of tokens."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)
        self._end = 1 << len(self._tokens)
        self._ones = self._bits("one")
        self._stars = self._bits("star")
        self._optional = self._bits("optional")
        self._masks: dict[str, int] = {}

    def fullmatch(self, text: str) -> bool:
        """Whether it matches all of ``text``."""
        states = self._closed(1)
        for character in text:
            if not states:
                return False
            states = self._step(states, character)
        return bool(states & self._end)

    def prefixes(self, text: str) -> Iterator[int]:
        """The lengths of the beginnings of ``text`` that it matches, the shortest first."""
        states = self._closed(1)
        for length, character in enumerate(text):
            if states & self._end:
                yield length
            if not states:
                return
            states = self._step(states, character)
        if states & self._end:
            yield len(text)

    def reversed(self) -> Glob:
        """The same, read from the end; not for patterns with an optional token."""
        return Glob(self._tokens[::-1])

    def _bits(self, kind: Kind) -> int:
        return sum(1 << place for place, token in enumerate(self._tokens) if token.kind == kind)

    def _closed(self, states: int) -> int:
        """With what is reached without a character."""
        while True:
            more = states | (states & (self._stars | self._optional)) << 1 | (states & self._optional) << 3
            if more == states:
                return states
            states = more

    def _step(self, states: int, character: str) -> int:
        mask = self._masks.get(character)
        if mask is None:
            mask = sum(1 << place for place, token in enumerate(self._tokens) if token.fits(character))
            self._masks[character] = mask
        held = states & mask
        return self._closed((held & self._ones) << 1 | held & self._stars)
