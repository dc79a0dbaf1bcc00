"""What every request model shares: Docker's names, unknown fields kept, errors that name the field as users know it.

The models are the only full description of a spec; what is stored is the raw JSON object they validated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from covey.errors import InvalidArgument


class Model(BaseModel):
    """A request object. Fields have Docker's JSON names; fields nobody described pass through untouched."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)


M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def _empty_list(value: Any) -> Any:
    return [] if value is None else value


def _empty_object(value: Any) -> Any:
    return {} if value is None else value


# Go clients send null for an empty slice, map or struct.
ListOf = Annotated[list[T], BeforeValidator(_empty_list), Field(default_factory=list)]
Labels = Annotated[dict[str, str], BeforeValidator(_empty_object), Field(default_factory=dict)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
UInt64 = Annotated[int, Field(ge=0, lt=2**64)]
Port = Annotated[int, Field(ge=0, le=65535)]


def field_path(location: Sequence[str | int]) -> str:
    """``("Mounts", 0, "Type")`` → ``Mounts[0].Type``; the marks pydantic adds for unions are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif (part and part[0].isupper()) or not path:
            path += f".{part}" if path else part
        elif "[" not in part and "-" not in part and part not in ("str", "int", "none"):
            path += f".{part}"
    return path


def _words(error: ErrorDetails) -> str:
    context = error.get("ctx") or {}
    if error["type"] == "value_error" and "error" in context:
        return str(context["error"])
    return error["msg"][:1].lower() + error["msg"][1:]


def validate(kind: type[M], raw: Mapping[str, Any], prefix: str = "") -> M:
    """``raw`` through ``kind``. Raises InvalidArgument that names the first field refused, as Docker spells it."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(part for part in (prefix, field_path(first["loc"])) if part)
        raise InvalidArgument(f"{where}: {_words(first)}" if where else _words(first)) from None


def refuse(field: str, words: str) -> InvalidArgument:
    """An error in Docker's words that also names the field."""
    return InvalidArgument(f"{words} ({field})")
