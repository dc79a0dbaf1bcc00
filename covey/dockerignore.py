"""Which files a ``.dockerignore`` leaves out, and what a pattern of ``COPY`` matches. Pure.

Both ends need it: the command that sends a build's context, and the builder. Rules: Go's path.Match, with ``**`` for any
number of directories; the last line that matches decides, ``!`` takes back (docs.docker.com, facts).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from covey.glob import Glob, Token, literal

WILDCARDS = frozenset("*?[\\")
_FEW_STARS = 2
_LONGEST = 4096


class BadPattern(ValueError):
    """A pattern that cannot be; the message names it."""


class Pattern:
    """One pattern. Few stars are a regular expression's, which is quicker; of many it would never come back."""

    def __init__(self, tokens: list[Token], expression: str, stars: int) -> None:
        self._quick = re.compile(f"(?s:{expression})") if stars <= _FEW_STARS else None
        self._glob = Glob(tokens) if self._quick is None else None

    def fullmatch(self, path: str) -> bool:
        """Whether it is all of ``path``."""
        if self._quick is not None:
            return self._quick.fullmatch(path) is not None
        assert self._glob is not None
        return self._glob.fullmatch(path)


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Pattern:
    """``pattern`` ready to be matched. BadPattern for a class that does not end, or one that is too long."""
    if len(pattern) > _LONGEST:
        raise BadPattern(f"pattern {pattern[:40]!r}… is longer than {_LONGEST} characters")
    tokens: list[Token] = []
    expression, at, stars = "", 0, 0
    while at < len(pattern):
        character = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            stars += 1
            if pattern.startswith("/", at):
                at += 1
                expression += "(?:.*/)?"
                tokens += [Token("optional"), Token("star", _anything), literal("/")]
            else:
                expression += ".*"
                tokens.append(Token("star", _anything))
            continue
        if character == "[":
            piece, at = _class(pattern, at)
            expression += piece
            tokens.append(Token("one", _fits(piece)))
            continue
        if character == "\\":
            at += 1
            if at == len(pattern):
                raise BadPattern(f"syntax error in pattern {pattern!r}: it ends in a backslash")
            expression += re.escape(pattern[at])
            tokens.append(literal(pattern[at]))
        elif character in "*?":
            stars += character == "*"
            expression += {"*": "[^/]*", "?": "[^/]"}[character]
            tokens.append(Token("star" if character == "*" else "one", _inside))
        else:
            expression += re.escape(character)
            tokens.append(literal(character))
        at += 1
    return Pattern(tokens, expression, stars)


def _anything(character: str) -> bool:
    return True


def _inside(character: str) -> bool:
    """Not what separates directories."""
    return character != "/"


def _fits(character_class: str) -> Callable[[str], bool]:
    expression = re.compile(character_class, re.DOTALL)
    return lambda character: expression.fullmatch(character) is not None


def _class(pattern: str, at: int) -> tuple[str, int]:
    """(a character class as a regular expression, where it ends)."""
    end = at + 1
    negated = pattern.startswith("^", end)
    end += negated
    inside = ""
    while end < len(pattern) and (pattern[end] != "]" or not inside):
        character = pattern[end]
        if character == "\\":
            end += 1
            character = pattern[end : end + 1]
        elif character == "-" and inside and pattern[end + 1 : end + 2] not in ("", "]"):
            inside += "-"
            end += 1
            continue
        inside += re.escape(character)
        end += 1
    if end >= len(pattern) or not inside:
        raise BadPattern(f"syntax error in pattern {pattern!r}: a class in brackets does not end")
    try:
        re.compile(f"[{inside}]")
    except re.error:
        raise BadPattern(f"syntax error in pattern {pattern!r}: its class is no range") from None
    return f"[{'^' if negated else ''}{inside}]", end + 1


def lines(text: str) -> list[str]:
    """The patterns of a ``.dockerignore``, cleaned; blank lines and comments gone."""
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines()):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        mark = "!" if pattern.startswith("!") else ""
        pattern = pattern.removeprefix("!").strip()
        if mark and not pattern:
            raise BadPattern(f"illegal exclusion pattern in line {number + 1}: '!'")
        if pattern:
            cleaned = posixpath.normpath(pattern).lstrip("/")
            found.append(mark + (cleaned or "."))
    return found


class Matcher:
    """Patterns as ``lines`` gives them. BadPattern at once for one that cannot be."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules = [(pattern.startswith("!"), compiled(pattern.removeprefix("!"))) for pattern in patterns]
        self.has_exceptions = any(exception for exception, _ in self._rules)

    def excludes(self, path: str) -> bool:
        """Whether ``path`` (relative, no leading slash) is left out: itself or with a directory above it."""
        parts = path.split("/")
        candidates = ["/".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
        excluded = False
        for exception, pattern in self._rules:
            if exception == excluded and any(pattern.fullmatch(candidate) for candidate in candidates):
                excluded = not exception
        return excluded
