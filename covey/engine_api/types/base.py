"""What every request model shares: Docker's names, unknown fields kept, errors that name the field as users know it.

The models are the only full description of a spec. What is stored is the JSON object as received (``stored``), so a
field of a later API survives a round trip. Types are strict, because the stored object is read again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from covey.errors import InvalidArgument


class Model(BaseModel):
    """A request object. Fields have Docker's JSON names; as in Go, another case of a known name is that name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, hide_input_in_errors=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or all(name in cls.model_fields for name in data):
            return data
        by_lower = {name.lower(): name for name in cls.model_fields}
        named = {name: value for name, value in data.items() if name in cls.model_fields}
        for name, value in data.items():
            named.setdefault(by_lower.get(str(name).lower(), name), value)
        return named

    def stored(self) -> dict[str, Any]:
        """The object as received, unknown fields included and nothing added."""
        return self.model_dump(exclude_unset=True)


M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def _empty_list(value: Any) -> Any:
    return [] if value is None else value


def _empty_object(value: Any) -> Any:
    return {} if value is None else value


# Go clients send null for an empty slice or map.
ListOf = Annotated[list[T], BeforeValidator(_empty_list), Field(default_factory=list)]
MapOf = Annotated[dict[str, T], BeforeValidator(_empty_object), Field(default_factory=dict)]
StringMap = MapOf[str]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Port = Annotated[int, Field(ge=0, le=65535)]

_WORDS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "missing": "is required",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be {expected}",
}


def field_path(location: Sequence[str | int]) -> str:
    """``("Mounts", 0, "Type")`` → ``Mounts[0].Type``; the marks pydantic adds for unions are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not ("[" in part or part in ("str", "int", "bool")):
            path += f".{part}" if path else part
    return path


def _words(error: ErrorDetails) -> str:
    context = error.get("ctx") or {}
    if error["type"] == "value_error" and "error" in context:
        return str(context["error"])
    known = _WORDS.get(error["type"])
    return known.format(**context) if known else error["msg"][:1].lower() + error["msg"][1:]


def validate(kind: type[M], raw: Mapping[str, Any]) -> M:
    """``raw`` through ``kind``. Raises InvalidArgument that names the first field refused, as Docker spells it."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = field_path(first["loc"])
        raise InvalidArgument(f"{where}: {_words(first)}" if where else _words(first)) from None


def refuse(field: str, words: str) -> InvalidArgument:
    """An error in Docker's words that also names the field."""
    return InvalidArgument(f"{words} ({field})")
