"""``--format``: json, or a template of fields such as ``{{.Name}} {{json .Labels}}``. Pure.

Of Go's templates the parts that people type: fields, ``json``, ``join``, ``upper``, ``lower``, ``len``, ``println``-less
text, \\t and \\n. Anything else is refused by name, never printed as it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def _join(value: Any, separator: str = ",") -> str:
    return separator.join(_text(item) for item in value or ())


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "join": _join,
    "upper": lambda value: _text(value).upper(),
    "lower": lambda value: _text(value).lower(),
    "title": lambda value: _text(value).title(),
    "len": lambda value: len(value or ()),
    "println": lambda value: _text(value) + "\n",
}


def _text(value: Any) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_text(item)}" for key, item in value.items()) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_text(item) for item in value) + "]"
    return str(value)


def field(item: Any, path: str, strict: bool = False) -> Any:
    """``.A.B`` of ``item``. ``strict``: a key that is not there is an error that names those that are."""
    found = item
    for name in filter(None, path.split(".")):
        if not isinstance(found, Mapping) or (strict and name not in found):
            known = f"; known are {', '.join(found)}" if isinstance(found, Mapping) else ""
            raise InvalidArgument(f"--format: no field {name} in {path}{known}")
        found = found.get(name)
    return found


class Template:
    """A parsed template: ``render`` fills it with one item."""

    def __init__(self, text: str, strict: bool = False) -> None:
        """``strict``: unknown fields are errors (lists, whose fields are fixed), else ``<no value>`` (inspect)."""
        self._strict = strict
        self._parts: list[tuple[str, str]] = []
        text = text.replace("\\t", "\t").replace("\\n", "\n")
        place = 0
        for match in _ACTION.finditer(text):
            self._parts.append(("text", text[place : match.start()]))
            self._parts.append(("action", match[1]))
            place = match.end()
        rest = text[place:]
        if "{{" in rest:
            raise InvalidArgument(f"--format: {text!r}: the closing }}}} is missing")
        self._parts.append(("text", rest))

    @property
    def fields(self) -> list[str]:
        """The names of the fields shown, for a table's head."""
        actions = [body for kind, body in self._parts if kind == "action"]
        return [next((word.strip(".") for word in _WORDS.findall(body) if word.startswith(".")), body) for body in actions]

    def render(self, item: Any) -> str:
        """The template with ``item``'s fields."""
        return "".join(body if kind == "text" else _text(self._value(body, item)) for kind, body in self._parts)

    def render_fields(self, item: Any) -> list[str]:
        """Each action's text alone, for a table."""
        return [_text(self._value(body, item)) for kind, body in self._parts if kind == "action"]

    def _value(self, action: str, item: Any) -> Any:
        stages = [stage.strip() for stage in action.split("|")]
        value = self._stage(stages[0], item, ())
        for stage in stages[1:]:
            value = self._stage(stage, item, (value,))
        return value

    def _stage(self, stage: str, item: Any, piped: Sequence[Any]) -> Any:
        words = _WORDS.findall(stage)
        if not words:
            raise InvalidArgument("--format: an empty {{}}")
        head, *rest = words
        if head.startswith(".") and not rest and not piped:
            return field(item, head, self._strict)
        if head == "index" and rest:
            return self._index([*rest], item)
        if head not in _FUNCTIONS:
            raise InvalidArgument(
                f"--format: {{{{{stage}}}}} is not supported: "
                f"use fields such as {{{{.Name}}}}, with {', '.join(_FUNCTIONS)} or index"
            )
        values = [*(self._argument(word, item) for word in rest), *piped]
        try:
            return _FUNCTIONS[head](*values)
        except TypeError:
            raise InvalidArgument(f"--format: {{{{{stage}}}}} does not fit what it is given") from None

    def _argument(self, word: str, item: Any) -> Any:
        if word.startswith('"'):
            return json.loads(word)
        if word.startswith("."):
            return field(item, word, self._strict)
        if word.isdigit():
            return int(word)
        raise InvalidArgument(f"--format: {word!r} is no field, number or text in quotes")

    def _index(self, words: list[str], item: Any) -> Any:
        value = self._argument(words[0], item)
        for word in words[1:]:
            key = self._argument(word, item)
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value
