"""``${NAME}`` in compose files. Pure: values come from a mapping.

Forms (compose specification, "Interpolation"): ``$NAME``, ``${NAME}``, ``${NAME-word}``, ``${NAME:-word}``, ``${NAME?why}``,
``${NAME:?why}``, ``${NAME+word}``, ``${NAME:+word}``, and ``$$`` for a dollar sign. Words may contain further ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from covey.errors import InvalidArgument

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST = 16

Warn = Callable[[str], None]


def interpolate(value: Any, variables: Mapping[str, str], warn: Warn, path: str = "") -> Any:
    """``value`` with every text in it filled in. Raises InvalidArgument naming the place of a bad form."""
    if isinstance(value, str):
        return fill(value, variables, warn, path) if "$" in value else value
    if isinstance(value, dict):
        return {key: interpolate(item, variables, warn, f"{path}.{key}" if path else key) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables, warn, f"{path}.{index}") for index, item in enumerate(value)]
    return value


def escape(value: Any) -> Any:
    """``value`` with dollar signs doubled, so that filling it in gives it back."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    return [escape(item) for item in value] if isinstance(value, list) else value


def fill(text: str, variables: Mapping[str, str], warn: Warn, path: str, depth: int = 0) -> str:
    """One text filled in."""
    if depth > _DEEPEST:
        raise InvalidArgument(f"{path}: ${{…}} nested deeper than {_DEEPEST} levels")
    out: list[str] = []
    place = 0
    while (dollar := text.find("$", place)) >= 0:
        out.append(text[place:dollar])
        rest = text[dollar + 1 :]
        if rest.startswith("$"):
            out.append("$")
            place = dollar + 2
        elif rest.startswith("{"):
            end = _closing(text, dollar + 2, path)
            out.append(_braced(text[dollar + 2 : end], variables, warn, path, depth))
            place = end + 1
        elif match := _NAME.match(rest):
            out.append(_plain(match[0], variables, warn))
            place = dollar + 1 + match.end()
        else:
            raise InvalidArgument(f"{path}: invalid interpolation in {text!r}: write $$ for a dollar sign")
    out.append(text[place:])
    return "".join(out)


def _closing(text: str, start: int, path: str) -> int:
    depth = 1
    place = start
    while place < len(text):
        if text.startswith("${", place):
            depth += 1
            place += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    raise InvalidArgument(f"{path}: invalid interpolation in {text!r}: a closing brace is missing")


def _plain(name: str, variables: Mapping[str, str], warn: Warn) -> str:
    if name not in variables:
        warn(f"the variable {name} is not set: using an empty text")
    return variables.get(name, "")


def _braced(body: str, variables: Mapping[str, str], warn: Warn, path: str, depth: int) -> str:
    match = _NAME.match(body)
    if match is None:
        raise InvalidArgument(f"{path}: invalid interpolation ${{{body}}}: a variable's name is missing")
    name, rest = match[0], body[match.end() :]
    if not rest:
        return _plain(name, variables, warn)
    colon = rest.startswith(":")
    operator, word = rest[colon : colon + 1], rest[colon + 1 :]
    there = bool(variables.get(name)) if colon else name in variables
    if operator == "-":
        return variables[name] if there else fill(word, variables, warn, path, depth + 1)
    if operator == "+":
        return fill(word, variables, warn, path, depth + 1) if there else ""
    if operator == "?":
        if there:
            return variables[name]
        raise InvalidArgument(f"{path}: required variable {name} is missing a value: {word or 'set it'}")
    raise InvalidArgument(f"{path}: invalid interpolation ${{{body}}}: after the name comes -, :-, ?, :?, + or :+")
