"""The command line's client: synchronous, quick to import, over unix, tcp or tls.

It decides the API version, when a connection is used again, and how an answer becomes a value or an error; where the
daemon is, ``dial`` decides. It must not import asyncio, pydantic or aiohttp, nor ssl unless TLS is used.
"""

from __future__ import annotations

import json as json_codec
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from covey.engine_api import http1
from covey.engine_api.dial import Dialer, Wire, host_from_environment, parse_host
from covey.engine_api.framing import Lines
from covey.engine_api.versions import MINIMUM_API_VERSION, at_least, negotiate
from covey.errors import CoveyError, Unavailable, from_status

Query = Mapping[str, "str | int | bool | Iterable[str] | None"]


class Response:
    """An answer whose body is read as it comes. Use it as a context, or read it to its end."""

    def __init__(self, client: Client, wire: Wire, answer: http1.Answer, ready: list[bytes]) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._client = client
        self._wire = wire
        self._answer = answer
        self._ready = ready
        self._closed = False

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Body pieces as they come. Raises Unavailable when the connection is cut."""
        try:
            while True:
                while self._ready:
                    yield self._ready.pop(0)
                if self._answer.complete:
                    break
                data = self._wire.receive()
                if not data:
                    self._answer.end()
                    break
                self._ready = self._answer.feed(data)
        except (OSError, http1.ProtocolError) as error:
            self.close()
            raise Unavailable(f"lost the connection to the daemon at {self._client.host.address}: {error}") from None
        self.close()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)

    def lines(self) -> Iterator[Any]:
        """The objects of a JSON stream as they come."""
        lines = Lines()
        for piece in self:
            yield from lines.feed(piece)
        yield from lines.end()

    def close(self) -> None:
        """Gives the connection back when the answer was read to its end, else closes it. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._answer.complete and self._answer.keep_alive and not self._answer.rest:
            self._client.give_back(self._wire)
        else:
            self._wire.close()


class Hijacked:
    """A raw duplex connection after attach or exec start.

    ``multiplexed``: surely Docker frames. Below version 1.42 both kinds have one media type: ask whether there is a TTY.
    """

    def __init__(self, wire: Wire, answer: http1.Answer) -> None:
        self._wire = wire
        self._rest = answer.rest
        kind = answer.headers.get("content-type", "")
        self.multiplexed = kind.endswith("multiplexed-stream")

    def receive(self) -> bytes:
        """The next bytes; empty at end of stream."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        return self._wire.receive()

    def send(self, data: bytes) -> None:
        """All of ``data``."""
        self._wire.send(data)

    def close_write(self) -> None:
        """End of stdin; output still comes."""
        self._wire.close_write()

    def fileno(self) -> int:
        """For select; look at ``pending`` first."""
        return self._wire.fileno()

    def pending(self) -> bool:
        """Whether ``receive`` has something at hand though the descriptor may not be readable."""
        return bool(self._rest) or self._wire.pending()

    def close(self) -> None:
        self._wire.close()


class Client:
    """Calls one daemon. Not for several threads; streams take a connection of their own."""

    def __init__(self, host: str | None = None, version: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        """``host``: address; None: from the environment. ``version``: None: asked of the daemon at the first call."""
        environ = os.environ if environ is None else environ
        self.host = parse_host(host, environ) if host else host_from_environment(environ)
        self._dialer = Dialer(self.host, environ)
        self._version = version or environ.get("DOCKER_API_VERSION") or None
        self._idle: Wire | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the idle connection."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def give_back(self, wire: Wire) -> None:
        """Keeps ``wire`` for the next call."""
        if self._idle is not None and self._idle is not wire:
            self._idle.close()
        self._idle = wire

    @property
    def version(self) -> str:
        """The API version in use: the lower of ours and the daemon's."""
        if self._version is None:
            with self._exchange("GET", "/_ping", (), None) as response:
                response.read()
                server = response.headers.get("api-version", MINIMUM_API_VERSION)
            self._version = negotiate(server)
        return self._version

    def at_least(self, minimum: str) -> bool:
        """Whether the daemon speaks ``minimum``."""
        return at_least(self.version, minimum)

    def get(self, path: str, query: Query | None = None) -> Any:
        """The JSON of a GET. Raises the CoveyError of the answer's status."""
        return self._whole("GET", path, query, None, None, None)

    def post(
        self,
        path: str,
        query: Query | None = None,
        json: Any = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of a POST, None for no body. ``body``: bytes, or pieces sent as they come (``json`` left out)."""
        return self._whole("POST", path, query, json, body, headers)

    def put(self, path: str, query: Query | None = None, body: bytes | Iterable[bytes] | None = None) -> Any:
        """The JSON of a PUT, None for no body."""
        return self._whole("PUT", path, query, None, body, None)

    def delete(self, path: str, query: Query | None = None) -> Any:
        """The JSON of a DELETE, None for no body."""
        return self._whole("DELETE", path, query, None, None, None)

    def head(self, path: str, query: Query | None = None) -> Mapping[str, str]:
        """The header fields of a HEAD."""
        with self.stream("HEAD", path, query) as response:
            return response.headers

    def lines(self, method: str, path: str, query: Query | None = None, **rest: Any) -> Iterator[Any]:
        """The objects of a JSON stream (events, pull, load) as they come."""
        with self.stream(method, path, query, **rest) as response:
            yield from response.lines()

    def stream(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        json: Any = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """An answer whose body is read as it comes; statuses of 400 and above are raised."""
        fields, payload = self._body(json, body, headers)
        response = self._exchange(method, self._path(path, query), fields, payload)
        if response.status >= 400:
            raise self._refusal(response)
        return response

    def hijack(self, path: str, query: Query | None = None, json: Any = None) -> Hijacked:
        """POSTs and takes the connection over (attach, exec start)."""
        fields, payload = self._body(json, None, {"Connection": "Upgrade", "Upgrade": "tcp"})
        wire = self._dialer.connect()
        answer = http1.Answer("POST", hijack=True)
        pieces = self._send(wire, "POST", self._path(path, query), fields, payload, answer)
        if not answer.switched:
            response = Response(self, wire, answer, pieces)
            raise self._refusal(response)
        return Hijacked(wire, answer)

    def _whole(
        self,
        method: str,
        path: str,
        query: Query | None,
        json: Any,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> Any:
        with self.stream(method, path, query, json, body, headers) as response:
            text = response.read()
            is_json = response.headers.get("content-type", "").startswith("application/json")
        if not text.strip():
            return None
        return json_codec.loads(text) if is_json else text.decode(errors="replace")

    def _path(self, path: str, query: Query | None) -> str:
        words = {
            name: str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else value
            for name, value in (query or {}).items()
            if value is not None
        }
        tail = "?" + http1.query_string(words) if words else ""
        prefix = "" if path.startswith("/covey/") else f"/v{self.version}"
        return prefix + http1.quote(path, "/:@%") + tail

    def _body(
        self, json: Any, body: bytes | Iterable[bytes] | None, headers: Mapping[str, str] | None
    ) -> tuple[tuple[tuple[str, str], ...], bytes | Iterable[bytes] | None]:
        fields = dict(headers or {})
        if json is not None:
            body = json_codec.dumps(json, separators=(",", ":")).encode()
            fields["Content-Type"] = "application/json"
        elif body is not None:
            fields.setdefault("Content-Type", "application/x-tar")
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        elif body is not None:
            fields["Transfer-Encoding"] = "chunked"
        return tuple(fields.items()), body

    def _refusal(self, response: Response) -> CoveyError:
        text = response.read().decode(errors="replace").strip()
        try:
            message = str(json_codec.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = text or f"the daemon at {self.host.address} answered status {response.status}"
        return from_status(response.status, message)

    def _exchange(
        self,
        method: str,
        path: str,
        fields: tuple[tuple[str, str], ...],
        body: bytes | Iterable[bytes] | None,
    ) -> Response:
        wire, self._idle = self._idle, None
        if wire is not None and not wire.alive():
            wire.close()
            wire = None
        if wire is None:
            wire = self._dialer.connect()
        answer = http1.Answer(method)
        return Response(self, wire, answer, self._send(wire, method, path, fields, body, answer))

    def _send(
        self,
        wire: Wire,
        method: str,
        path: str,
        fields: tuple[tuple[str, str], ...],
        body: bytes | Iterable[bytes] | None,
        answer: http1.Answer,
    ) -> list[bytes]:
        """Sends the request and reads the answer's head; the first body pieces come back."""
        common: tuple[tuple[str, str], ...] = (("Host", self.host.authority), ("User-Agent", "cluster"))
        if body is None and method in ("POST", "PUT"):
            common += (("Content-Length", "0"),)
        head = http1.request_head(method, self.host.prefix + path, common + fields)
        try:
            try:
                wire.send(head + body if isinstance(body, bytes) else head)
                if body is not None and not isinstance(body, bytes):
                    for piece in body:
                        wire.send(http1.chunk(piece))
                    wire.send(http1.LAST_CHUNK)
            except (BrokenPipeError, ConnectionResetError):
                # A refused upload: the daemon answers and closes before it has read all.
                pass
            pieces: list[bytes] = []
            while not answer.status:
                data = wire.receive()
                if not data:
                    answer.end()
                pieces += answer.feed(data)
            return pieces
        except (OSError, http1.ProtocolError) as error:
            wire.close()
            raise Unavailable(f"lost the connection to the daemon at {self.host.address}: {error}") from None
