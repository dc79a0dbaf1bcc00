"""Variables, quotes and escapes in the words of a Dockerfile, by BuildKit's rules. Pure.

Decides what ``$NAME``, ``${NAME:-word}`` and a backslash mean in an instruction that Docker expands, and how ``ENV`` and
``LABEL`` cut a line into words. It knows no instruction. Rules: docs.docker.com/reference/dockerfile, "Environment
replacement" (facts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from covey.errors import InvalidArgument
from covey.glob import Glob, Token, literal

_SPECIAL = "@*#?-$!0"
_DEEPEST = 64
_LONGEST_MATCHED = 4096
_LONGEST = 1 << 20
"""Characters a word may expand to: variables made of variables grow by themselves."""


class _Piece(NamedTuple):
    """Part of an expanded text; ``splits``: white space in it separates words."""

    text: str
    splits: bool


def expand(word: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """``word`` with variables put in, quotes and escapes removed. InvalidArgument for what cannot be read."""
    return "".join(piece.text for piece in _Lexer(word, variables, escape).pieces())


def expand_document(text: str, variables: Mapping[str, str]) -> str:
    """A here-document with variables put in: quotes stay, a backslash takes only the meaning of a dollar or its own."""
    return "".join(piece.text for piece in _Document(text, variables, "\\").pieces())


def expand_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The same, cut at white space that is neither quoted nor escaped."""
    found: list[str] = []
    current: list[str] | None = None
    for piece in _Lexer(text, variables, escape).pieces():
        if not piece.splits:
            current = [*(current or []), piece.text]
            continue
        for part in re.split(r"(\s+)", piece.text):
            if part.isspace():
                if current is not None:
                    found.append("".join(current))
                current = None
            elif part:
                current = [*(current or []), part]
    return found if current is None else [*found, "".join(current)]


class _Lexer:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise InvalidArgument(f"variables are nested more than {_DEEPEST} deep")
        self._text, self._variables, self._escape, self._depth = text, variables, escape, depth
        self._at = 0
        self._size = 0

    def pieces(self, stop: str = "") -> list[_Piece]:
        """Everything up to ``stop``, which is taken too, or the end."""
        found: list[_Piece] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == stop:
                self._at += 1
                return found
            found.append(self._piece(character))
            self._size += len(found[-1].text)
            if self._size > _LONGEST:
                raise InvalidArgument(f"a word expands to more than {_LONGEST} characters")
        if stop:
            raise InvalidArgument(f"syntax error: missing '{stop}'")
        return found

    def _piece(self, character: str) -> _Piece:
        if character == "'":
            return _Piece(self._single(), False)
        if character == '"':
            return _Piece(self._double(), False)
        if character == "$":
            return _Piece(self._dollar(), True)
        self._at += 1
        if character == self._escape:
            following = self._text[self._at : self._at + 1]
            self._at += 1
            return _Piece(following, False)
        return _Piece(character, True)

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise InvalidArgument("unexpected end of statement while looking for matching single-quote")
        inside, self._at = self._text[self._at + 1 : end], end + 1
        return inside

    def _double(self) -> str:
        self._at += 1
        found: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == '"':
                self._at += 1
                return "".join(found)
            if character == "$":
                found.append(self._dollar())
                continue
            self._at += 1
            if character == self._escape:
                following = self._text[self._at : self._at + 1]
                if following and following in ('"', "$", self._escape):
                    character = following
                    self._at += 1
            found.append(character)
        raise InvalidArgument("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        self._at += 1
        if self._text[self._at : self._at + 1] != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._at += 1
        following = self._text[self._at : self._at + 1]
        if not following:
            raise InvalidArgument("syntax error: missing '}'")
        if following in "{}:":
            raise InvalidArgument("syntax error: bad substitution")
        return self._braced(self._name())

    def _name(self) -> str:
        match = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+").match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            return match[0]
        character = self._text[self._at : self._at + 1]
        if character and character in _SPECIAL:
            self._at += 1
            return character
        return ""

    def _braced(self, name: str) -> str:
        match = re.compile(r"\}|:?[-+?]|##?|%%?|//?").match(self._text, self._at)
        if match is None or not name:
            modifier = self._text[self._at : self._at + 2]
            raise InvalidArgument(
                f"unsupported modifier ({modifier}) in substitution" if modifier else "syntax error: missing '}'"
            )
        self._at = match.end()
        operation, value = match[0], self._variables.get(name)
        if operation == "}":
            return value or ""
        if operation.startswith("/"):
            pattern, replacement = self._word("/"), self._word("}")
            return _replaced(value or "", pattern, replacement, operation == "//")
        word = self._word("}")
        if operation[0] in "#%":
            return _trimmed(value or "", word, operation)
        missing = not value if operation.startswith(":") else value is None
        if operation.endswith("?") and missing:
            raise InvalidArgument(f"{name}: {word or 'not allowed to be unset'}")
        if operation.endswith("+"):
            return "" if missing else word
        return word if missing and operation.endswith("-") else value or ""

    def _word(self, stop: str) -> str:
        inner = _Lexer(self._text, self._variables, self._escape, self._depth + 1)
        inner._at = self._at
        found = "".join(piece.text for piece in inner.pieces(stop))
        self._at = inner._at
        return found


class _Document(_Lexer):
    def _piece(self, character: str) -> _Piece:
        if character == "$":
            return _Piece(self._dollar(), False)
        self._at += 1
        following = self._text[self._at : self._at + 1]
        if character == self._escape and following and following in ("$", self._escape):
            self._at += 1
            return _Piece(following, False)
        return _Piece(character, False)


def _glob(pattern: str) -> Glob:
    """A shell pattern (``*``, ``?``, backslash)."""
    tokens, characters = [], iter(pattern)
    for character in characters:
        if character in "*?":
            tokens.append(Token("star" if character == "*" else "one", _anything))
        else:
            tokens.append(literal(next(characters, character) if character == "\\" else character))
    return Glob(tokens)


def _anything(character: str) -> bool:
    return True


def _bounded(value: str, pattern: str) -> None:
    if len(value) > _LONGEST_MATCHED or len(pattern) > _LONGEST_MATCHED:
        raise InvalidArgument(f"a pattern is looked for in at most {_LONGEST_MATCHED} characters")


def _trimmed(value: str, pattern: str, operation: str) -> str:
    """``value`` without the shortest (``#``, ``%``) or longest beginning or end that fits."""
    _bounded(value, pattern)
    at_end = operation[0] == "%"
    glob = _glob(pattern).reversed() if at_end else _glob(pattern)
    lengths = list(glob.prefixes(value[::-1] if at_end else value))
    if not lengths:
        return value
    length = lengths[-1] if len(operation) == 2 else lengths[0]
    return value[: len(value) - length] if at_end else value[length:]


def _replaced(value: str, pattern: str, replacement: str, everywhere: bool) -> str:
    """``value`` with the first, or every, longest piece that fits replaced."""
    if not pattern:
        return value
    _bounded(value, pattern)
    glob, out, at = _glob(pattern), "", 0
    while at < len(value):
        length = max(glob.prefixes(value[at:]), default=0)
        if not length:
            out, at = out + value[at], at + 1
            continue
        out, at = out + replacement, at + length
        if not everywhere:
            break
    return out + value[at:]


def split(text: str, escape: str = "\\") -> list[str]:
    """Words of an ``ENV`` or ``LABEL`` line: cut at white space, their quotes and escapes left in."""
    found: list[str] = []
    word, quote, started = "", "", False
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if not quote and character.isspace():
            if started:
                found.append(word)
            word, started = "", False
            continue
        if character == escape and quote != "'" and at == len(text):
            break
        started = True
        if character == escape and quote != "'":
            word += character + text[at]
            at += 1
            continue
        if character in "'\"":
            quote = "" if quote == character else quote or character
        word += character
    return [*found, word] if started else found
