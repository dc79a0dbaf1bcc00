"""What every request model shares: Docker's names, unknown fields kept, errors that name the field as users know it.

The models are the only full description of a spec. What is stored is the JSON object as received (``stored``), so a
field of a later API survives a round trip. Types are strict, because the stored object is read again without a model.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from covey.errors import InvalidArgument

_RECEIVED = "(received)"
"""Under which name ``msgspec`` is given the object itself, over whatever is called so in there."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A request object. Fields have Docker's JSON names; as in Go, another case of a known name is that name."""

    received: dict[str, Any] = msgspec.field(name=_RECEIVED, default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """The object as received, unknown fields included and nothing added."""
        return self.received

    def unknown(self) -> dict[str, Any]:
        """The fields that no model has."""
        known = _fields(type(self))
        return {name: value for name, value in self.received.items() if name not in known}


M = TypeVar("M", bound=Model)
T = TypeVar("T")

_OR_NOTHING = "(or nothing)"
# Go clients send null for an empty slice or map, or leave it out.
ListOf = Annotated[list[T], _OR_NOTHING]
MapOf = Annotated[dict[str, T], _OR_NOTHING]
StringMap = MapOf[str]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

_AT = " - at `"
_STEP = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<item>\d+)\]|\[\.\.\.\]")
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]*)`(?: (?P<relation>[<>]=) (?P<bound>-?\d+))?")
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_RELATIONS = {">=": "at least", "<=": "at most"}


class _Field(NamedTuple):
    """``plain``: its type without null and marks. ``empty``: what null and nothing mean, if they mean something.

    ``model``: its own, or that of what it lists or maps to, in which names of another case are looked for.
    """

    type: Any
    plain: Any
    empty: type[list[Any]] | type[dict[Any, Any]] | None
    model: type[Model] | None


@functools.cache
def _fields(kind: type[Model]) -> dict[str, _Field]:
    """By name."""
    result = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name in kind.__struct_fields__ and name != "received":
            plain = _without_null(hint)
            empty = get_origin(plain) if _OR_NOTHING in getattr(hint, "__metadata__", ()) else None
            result[name] = _Field(hint, plain, empty, _model(plain))
    return result


def _without_null(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _without_null(get_args(hint)[0])
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    left = tuple(one for one in get_args(hint) if one is not types.NoneType)
    return _without_null(left[0]) if len(left) == 1 else Union[left]  # noqa: UP007


def _model(plain: Any) -> type[Model] | None:
    if isinstance(plain, type) and issubclass(plain, Model):
        return plain
    if get_origin(plain) in (list, dict):
        return _model(_without_null(get_args(plain)[-1]))
    return None


def _named(kind: type[Model], data: Any) -> tuple[Any, Any]:
    """(the object as received, with names in the case they are known by; the same as ``msgspec`` is to read it)."""
    if not isinstance(data, Mapping):
        return data, data
    fields = _fields(kind)
    received = data if all(name in fields for name in data) else _renamed(fields, data)
    received, read = dict(received), dict(received)
    for name, field in fields.items():
        if name not in received:
            if field.empty is not None:
                read[name] = field.empty()
            elif field.model is not None and field.type is field.model:
                read[name] = _named(field.model, {})[1]
        elif received[name] is None:
            if field.empty is not None:
                received[name] = read[name] = field.empty()
        elif field.model is not None:
            received[name], read[name] = _named_within(field.plain, field.model, received[name])
    read[_RECEIVED] = received
    return received, read


def _renamed(fields: Collection[str], data: Mapping[Any, Any]) -> dict[Any, Any]:
    by_lower = {name.lower(): name for name in fields}
    named = {name: value for name, value in data.items() if name in fields}
    for name, value in data.items():
        named.setdefault(by_lower.get(str(name).lower(), name), value)
    return named


def _named_within(plain: Any, model: type[Model], value: Any) -> tuple[Any, Any]:
    """As ``_named`` for a value that is a model, or holds some."""
    origin = get_origin(plain)
    inner = _without_null(get_args(plain)[-1]) if origin in (list, dict) else None
    if origin is list and isinstance(value, list):
        pairs = [_named_within(inner, model, one) for one in value]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if origin is dict and isinstance(value, dict):
        found = {key: _named_within(inner, model, one) for key, one in value.items()}
        return {key: pair[0] for key, pair in found.items()}, {key: pair[1] for key, pair in found.items()}
    return _named(model, value) if inner is None else (value, value)


def validate(kind: type[M], raw: Mapping[str, Any]) -> M:
    """``raw`` through ``kind``. Raises InvalidArgument that names the first field refused, as Docker spells it."""
    _, read = _named(kind, raw)
    try:
        return msgspec.convert(read, kind)
    except msgspec.ValidationError as error:
        where, words = _explained(kind, read, str(error))
        raise InvalidArgument(f"{where}: {words}" if where else words) from None


def _explained(hint: Any, value: Any, message: str) -> tuple[str, str]:
    """(the place, ``Mounts[0].Type``; what is wrong with it) of a fault in ``value``, which should be as ``hint`` says."""
    # The last one: before it may stand a word of the user's.
    words, _, path = message.rpartition(_AT) if _AT in message else (message, "", "$`")
    path = path[1:-1]
    where, at = "", 0
    while step := _STEP.match(path, at):
        at = step.end()
        plain = _without_null(hint)
        if step["field"]:
            where += f".{step['field']}"
            hint, value = _fields(plain)[step["field"]].type, value[step["field"]]
        elif step["item"]:
            where += f"[{step['item']}]"
            hint, value = _member(plain, list), value[int(step["item"])]
        else:
            # The path does not say which of a map's values it is.
            hint = _member(plain, dict)
            key, inner = _first_fault(hint, value)
            below, words = _explained(hint, value[key], inner)
            where += f".{key}" + (below if below.startswith("[") else f".{below}" if below else "")
            return where.lstrip("."), words
    if missing := _MISSING.match(words):
        return f"{where}.{missing['field']}".lstrip("."), "is required"
    return where.lstrip("."), _in_words(hint, words)


def _member(plain: Any, origin: type) -> Any:
    """The type of what a list or a map holds, which may be one of several that a value can be."""
    several = get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)
    return next(get_args(one)[-1] for one in several if get_origin(one) is origin)


def _first_fault(hint: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    for key, value in values.items():
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            return key, str(error)
    raise AssertionError(f"no value of {values} is at fault")


def _in_words(hint: Any, message: str) -> str:
    plain = _without_null(hint)
    if get_origin(plain) is Literal:
        *most, last = (repr(choice) for choice in get_args(plain))
        return f"must be {', '.join(most)} or {last}" if most else f"must be {last}"
    expected = _EXPECTED.match(message)
    if expected is None:
        return message[:1].lower() + message[1:]
    if not expected["relation"]:
        kinds = [_KINDS.get(kind, kind) for kind in expected["kinds"].split(" | ") if kind != "null"]
        return f"must be {' or '.join(kinds)}"
    bound = int(expected["bound"])
    if bound == 2**63 - 1:
        return f"must be less than {2**63}"
    return f"must be {_RELATIONS[expected['relation']]} {bound}"


def refuse(field: str, words: str) -> InvalidArgument:
    """An error in Docker's words that also names the field."""
    return InvalidArgument(f"{words} ({field})")
