"""What a handler may answer with, besides a dict or a list (200, JSON).

Data only: the chassis in ``server`` puts them on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON body with a status of its own."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def created(body: Any) -> Json:
    """201 with a JSON body."""
    return Json(body, 201)


@dataclass(frozen=True, slots=True)
class Empty:
    """No body: 204, or 200 where Docker says so (most cluster updates)."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, or any bytes that are at hand."""

    body: str | bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """A body that comes in pieces. The head is sent at once, each chunk as it comes; the iterator is always closed.

    An error inside ``chunks`` cuts the connection, as the status has been sent: check what can fail before.
    """

    chunks: AsyncIterator[bytes]
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Taken:
    """The handler (or a forwarder) took the connection and has answered on it itself."""


Answer = dict[str, Any] | list[Any] | Json | Empty | Text | Stream | Taken | None
