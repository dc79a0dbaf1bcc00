"""One request as a handler sees it: route, parameters, query in Docker's semantics, body, peer.

It parses and refuses (400 in Docker's words where known); it must not know which handler runs or how a connection is
served: the chassis hands in the body as an iterator and the take-over as a function.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import msgspec

from covey.engine_api.routes import Route
from covey.engine_api.types import base
from covey.errors import InvalidArgument

Model = TypeVar("Model", bound=base.Model)

JSON_LIMIT = 4 * 1024 * 1024
FALSE_WORDS = frozenset({"", "0", "no", "false", "none"})

Duplex = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: ``kind`` unix, tls or tcp; kernel credentials on unix, the certificate on tls."""

    kind: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    address: str = ""
    certificate: Mapping[str, Any] | None = None


async def _no_body() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk


async def _no_take(status: int, headers: Mapping[str, str]) -> Duplex:
    raise InvalidArgument("this connection cannot be upgraded: send the request over HTTP/1.1")


def truth(word: str) -> bool:
    """Docker's reading of a boolean query value: everything but "", 0, no, false, none is true."""
    return word.strip().lower() not in FALSE_WORDS


def parse_filters(text: str, allowed: Iterable[str] | None = None) -> dict[str, list[str]]:
    """``{"k":["v"]}`` or the older ``{"k":{"v":true}}`` → {"k": ["v"]}. ``allowed``: the keys this call knows.

    Raises InvalidArgument for other shapes and, in Docker's words, for an unknown key.
    """
    if not text:
        return {}
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid filter: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidArgument('invalid filter: give an object such as {"label":["key=value"]}')
    filters: dict[str, list[str]] = {}
    known = None if allowed is None else frozenset(allowed)
    for key, values in parsed.items():
        if known is not None and key not in known:
            raise InvalidArgument(f"invalid filter '{key}'")
        if isinstance(values, dict):
            values = [value for value, wanted in values.items() if wanted is not False]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InvalidArgument(f"invalid filter '{key}': give a list of strings")
        filters[key] = values
    return filters


@dataclass(frozen=True, slots=True)
class Call:
    """A request. ``path`` is as sent, with its query; ``version`` is the one to answer in; header names are any-case.

    ``chunks`` is the body, once; ``take`` answers a head and hands over the connection (see ``hijack``).
    """

    route: Route
    params: Mapping[str, str]
    version: str
    method: str = "GET"
    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: Peer = Peer("unix")
    chunks: AsyncIterator[bytes] = field(default_factory=_no_body)
    take: Callable[[int, Mapping[str, str]], Awaitable[Duplex]] = _no_take

    def text(self, name: str, default: str = "") -> str:
        """A query value; an absent one is ``default``."""
        return self.query.get(name, default)

    def texts(self, name: str) -> list[str]:
        """Every value of a query name that may be repeated (``names=a&names=b``)."""
        many = getattr(self.query, "getall", None)
        if many is not None:
            return list(many(name, []))
        return [self.query[name]] if name in self.query else []

    def boolean(self, name: str, default: bool = False) -> bool:
        """A query flag; ``default`` only when the name is absent."""
        value = self.query.get(name)
        return default if value is None else truth(value)

    def integer(self, name: str, default: int | None = None) -> int | None:
        """A whole number from the query. Raises InvalidArgument for anything else."""
        value = self.query.get(name, "")
        if not value:
            return default
        try:
            return int(value)
        except ValueError:
            raise InvalidArgument(f"invalid value {value!r} for query parameter {name}: give a whole number") from None

    def required_integer(self, name: str) -> int:
        """Like ``integer``, but absent is refused too (``version`` of every update)."""
        value = self.integer(name)
        if value is None:
            raise InvalidArgument(f"query parameter {name} is required: give a whole number")
        return value

    def filters(self, allowed: Iterable[str] | None = None) -> dict[str, list[str]]:
        """The ``filters`` query parameter, both shapes; see ``parse_filters``."""
        return parse_filters(self.query.get("filters", ""), allowed)

    async def read(self, limit: int = JSON_LIMIT) -> bytes:
        """The whole body, at most ``limit`` bytes. Raises InvalidArgument beyond."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks:
            size += len(chunk)
            if size > limit:
                raise InvalidArgument(f"request body is larger than {limit} bytes: send a smaller one")
            parts.append(chunk)
        return b"".join(parts)

    @overload
    async def json(self, kind: None = None, *, required: bool = True) -> dict[str, Any]: ...

    @overload
    async def json(self, kind: type[Model], *, required: bool = True) -> Model: ...

    async def json(self, kind: type[Model] | None = None, *, required: bool = True) -> Any:
        """The body as a JSON object, or as a ``types`` model of it. ``required=False``: no body is an empty object.

        Raises InvalidArgument: another content type, no or broken JSON, a field the model refuses (named by path).
        """
        content_type = self.headers.get("Content-Type", "")
        body = await self.read()
        if body or content_type:
            media = content_type.partition(";")[0].strip().lower()
            if media != "application/json" and (body or required):
                raise InvalidArgument(f"unsupported Content-Type header ({content_type}): must be 'application/json'")
        if not body.strip():
            if required:
                raise InvalidArgument("invalid JSON: got EOF while reading request body")
            body = b"{}"
        raw = decode_object(body)
        if kind is None:
            return raw
        return base.validate(kind, raw)

    async def hijack(self, tty: bool = False) -> Duplex:
        """Takes the connection over (attach, exec start): 101 when the client asked to upgrade, else 200.

        Returns the raw stream in both directions; the chassis closes it when the handler returns. End of file on the
        reader is the client's half-close; ``tty`` decides the content type (see ``framing.content_type``).
        """
        from covey.engine_api.framing import content_type

        headers = {"Content-Type": content_type(self.version, tty)}
        wanted = self.headers.get("Upgrade", "")
        if not wanted:
            return await self.take(200, headers)
        return await self.take(101, {**headers, "Connection": "Upgrade", "Upgrade": wanted})


def decode_object(body: bytes) -> dict[str, Any]:
    """JSON text of an object. Raises InvalidArgument that says where it breaks."""
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidArgument(f"invalid JSON: expected an object, got {type(raw).__name__}")
    return raw
