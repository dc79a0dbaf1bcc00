"""A Dockerfile's text as a list of instructions with their lines, by BuildKit's rules. Pure.

Decides what is a comment, a parser directive, a continuation, a flag and a here-document. What an instruction means is
``instructions``'; variables are ``words``'. docs/adr/0011 says why it is our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from covey.errors import InvalidArgument
from worker.dockerfile import words

SIZE_LIMIT = 4 << 20
LINE_LIMIT = 65535
INSTRUCTION_LIMIT = 10_000
KNOWN = frozenset(
    (
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
        *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    )
)
_HEREDOC_INSTRUCTIONS = ("ADD", "COPY", "RUN")
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = ("check", "escape", "syntax")
_SPACE = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")


class DockerfileError(InvalidArgument):
    """A Dockerfile that cannot be read; the message names the line."""

    def __init__(self, line: int, words_: str) -> None:
        super().__init__(f"dockerfile parse error on line {line}: {words_}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Heredoc:
    """``expand``: variables are put into ``content`` (its delimiter was not quoted)."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One instruction. ``word`` is upper case; ``rest`` what follows the flags; ``original`` the line, continuations joined."""

    word: str
    flags: tuple[str, ...]
    rest: str
    original: str
    start: int
    end: int
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Dockerfile:
    nodes: tuple[Node, ...]
    escape: str = "\\"
    syntax: str = ""


class _Lines:
    def __init__(self, text: str) -> None:
        self._lines = text.removeprefix("\ufeff").split("\n")
        if self._lines and not self._lines[-1]:
            self._lines.pop()
        self.number = 0

    def next(self) -> str | None:
        """The next line, None at the end."""
        if self.number == len(self._lines):
            return None
        line = self._lines[self.number]
        self.number += 1
        if len(line) > LINE_LIMIT:
            raise DockerfileError(self.number, f"dockerfile line greater than maximum allowed size of {LINE_LIMIT}")
        return line


def parse(text: str) -> Dockerfile:
    """The instructions of a Dockerfile. DockerfileError for what cannot be read."""
    if len(text) > SIZE_LIMIT:
        raise InvalidArgument(f"the Dockerfile is larger than {SIZE_LIMIT} bytes")
    directives = _directives(text)
    escape = directives.get("escape", "\\")
    nodes = []
    for node in _nodes(_Lines(text), escape):
        nodes.append(node)
        if len(nodes) > INSTRUCTION_LIMIT:
            raise DockerfileError(node.start, f"more than {INSTRUCTION_LIMIT} instructions")
    if not nodes:
        raise InvalidArgument("the Dockerfile cannot be empty: file with no instructions")
    return Dockerfile(tuple(nodes), escape, directives.get("syntax", ""))


def _directives(text: str) -> dict[str, str]:
    """``# name=value`` at the very top; the first line that is none ends them."""
    found: dict[str, str] = {}
    lines = _Lines(text)
    while (line := lines.next()) is not None:
        match = _DIRECTIVE.fullmatch(line.strip())
        name = match[1].lower() if match else ""
        if match is None or name not in _DIRECTIVES:
            break
        if name in found:
            raise DockerfileError(lines.number, f"only one {name} parser directive can be used")
        found[name] = match[2]
        if name == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileError(lines.number, f"invalid ESCAPE '{match[2]}'. Must be ` or \\")
    return found


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _continued(line: str, ending: re.Pattern[str]) -> tuple[str, bool]:
    """(the line without its continuation mark, whether it had one)."""
    match = ending.search(line)
    return (line[: match.start()], True) if match else (line, False)


def _nodes(lines: _Lines, escape: str) -> Iterator[Node]:
    mark = re.escape(escape)
    ending = re.compile(rf"(?:(?<!{mark})|^){mark}[ \t]*$")
    while (line := lines.next()) is not None:
        if _is_comment(line) or not line.strip():
            continue
        start = lines.number
        text, open_ = _continued(line.rstrip("\r").lstrip(), ending)
        while open_ and (line := lines.next()) is not None:
            if _is_comment(line) or not line.strip():
                continue
            more, open_ = _continued(line.rstrip("\r"), ending)
            text += more
        if text.strip():
            yield _node(text, start, lines)


def _node(text: str, start: int, lines: _Lines) -> Node:
    word, flags, rest = split_instruction(text)
    inner = word
    if word == "ONBUILD":
        inner = split_instruction(rest)[0]
    heredocs = _heredocs(text, lines) if inner in _HEREDOC_INSTRUCTIONS and "<<" in text else ()
    if word not in KNOWN:
        raise DockerfileError(start, f"unknown instruction: {word}")
    return Node(word, flags, rest, text, start, lines.number, heredocs)


def single(text: str) -> Node:
    """The one instruction in ``text`` (an ONBUILD trigger, a ``--change``), here-documents included."""
    nodes = parse(text).nodes
    if len(nodes) != 1:
        raise InvalidArgument(f"one instruction is wanted, not {len(nodes)}: {text[:80]!r}")
    return nodes[0]


def split_instruction(text: str) -> tuple[str, tuple[str, ...], str]:
    """(word, flags, the rest) of an instruction's line."""
    parts = _SPACE.split(text.strip(), maxsplit=1)
    flags, rest = _flags(parts[1]) if len(parts) == 2 else ((), "")
    return parts[0].upper(), flags, rest.strip()


def _flags(text: str) -> tuple[tuple[str, ...], str]:
    """The leading words that begin with ``--``, quotes and backslashes read, and what follows."""
    found: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith("--", at):
            return tuple(found), text[at:]
        word, at = _flag(text, at)
        if word == "--":
            return tuple(found), text[at:]
        found.append(word)


def _flag(text: str, at: int) -> tuple[str, int]:
    word, quote = "", ""
    while at < len(text) and (quote or not text[at].isspace()):
        character = text[at]
        at += 1
        if character == "\\":
            word += text[at : at + 1]
            at += 1
        elif character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        else:
            word += character
    return word, at


def heredoc_mark(word: str) -> tuple[str, bool, bool] | None:
    """(name, expand, tabs are dropped) of a word such as ``<<-"EOF"``; None when it is none."""
    match = _HEREDOC.fullmatch(word)
    if match is None:
        return None
    try:
        names = words.expand_words(match[3], _Kept())
    except InvalidArgument:
        return None
    if len(names) != 1 or not names[0]:
        return None
    return names[0], names[0] == match[3], bool(match[2])


class _Kept(dict[str, str]):
    """Every variable stands for itself."""

    def get(self, key: str, default: object = None) -> str:
        return f"${key}"


def _heredocs(text: str, lines: _Lines) -> tuple[Heredoc, ...]:
    found = []
    for word in words.split(text):
        mark = heredoc_mark(word)
        if mark is None:
            continue
        name, expand, tabs = mark
        start, content = lines.number, []
        while True:
            line = lines.next()
            if line is None:
                raise DockerfileError(start, f"unterminated heredoc: no line is {name}")
            bare = line.rstrip("\r")
            if (bare.lstrip("\t") if tabs else bare) == name:
                break
            content.append((line.lstrip("\t") if tabs else line) + "\n")
        found.append(Heredoc(name, "".join(content), expand))
    return tuple(found)
