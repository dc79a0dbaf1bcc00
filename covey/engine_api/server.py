"""The Engine API's server chassis: from an HTTP request to a ``Call``, from an answer to HTTP.

It decides what every call has in common: version prefix, error body, identity headers, JSON, streams, take-over of
connections, what a fault looks like. It must not know what any call does: handlers come by route name.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from covey.engine_api import hijack, versions
from covey.engine_api.answers import JSON, Answer, Empty, Json, Stream, Taken, Text
from covey.engine_api.call import Call, Duplex, Peer
from covey.engine_api.routes import PRIVATE, Match, allowed, find
from covey.errors import CoveyError, InvalidArgument, NotFound, NotImplementedYet

log = logging.getLogger(__name__)

Handler = Callable[[Call], Awaitable[Answer]]

HEADER_LIMIT = 64 * 1024
READ_CHUNK = 256 * 1024
LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
"""Faults that are the machine's: their words are told, as a person can do something about them."""


async def _ping(call: Call) -> Answer:
    # Builder-Version says which builder a client takes when it is not told: the classic one.
    return Text(
        "OK",
        headers={"Builder-Version": "1", "Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"},
    )


BUILT_IN: Mapping[str, Handler] = {"system_ping": _ping, "system_ping_head": _ping}


class MethodNotAllowed(CoveyError):
    """The path exists, the method does not."""

    status = 405


def peer_of(transport: Any) -> Peer:
    """The other end of a connection as the kernel or TLS knows it."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    certificate = transport.get_extra_info("peercert")
    name = transport.get_extra_info("peername")
    address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
    if certificate:
        return Peer("tls", address=address, certificate=certificate)
    if sock is not None and sock.family == socket.AF_UNIX:
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer("unix", uid, gid, pid)
    return Peer("tcp", address=address)


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    while chunk := await request.content.readany():
        yield chunk


class Server:
    """Serves the route table on any number of listeners (see ``listeners``).

    ``handlers``: by route name. ``forwards``: by place (node | cluster | merged), for routes without a handler of
    their own. A route with neither answers 501. ``release`` goes into the Server header. ``peers`` is filled by a
    listener that knows a connection's other end better than its transport does.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        forwards: Mapping[str, Handler] | None = None,
        release: str = "0.1.0",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._handlers = {**BUILT_IN, **handlers}
        self._forwards = dict(forwards or {})
        self.peers: dict[asyncio.BaseProtocol, Peer] = {}
        self._headers = {
            "Api-Version": versions.API_VERSION,
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": f"Covey/{release} (linux)",
            **(headers or {}),
        }

    def protocol_factory(self) -> web.Server:
        """The aiohttp server a listener runs; each connection that is lost cancels its handler."""
        return web.Server(
            self.serve,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
            read_bufsize=READ_CHUNK,
        )

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, from its first line to the end of its answer."""
        taken: list[Duplex] = []

        async def take(status: int, headers: Mapping[str, str]) -> Duplex:
            duplex = await hijack.take(request, status, {**self._headers, **headers})
            taken.append(duplex)
            return duplex

        try:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0
            answer = await self._answer(request, take)
        except CoveyError as error:
            answer = self._refusal(error)
        except (ConnectionError, TimeoutError) as error:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client closed the connection") from error
            answer = self._fault(request)
        except Exception:
            answer = self._fault(request)
        if taken:
            await hijack.finish(taken[0][1])
            return hijack.Spent()
        return await self._send(request, answer)

    async def _answer(self, request: web.BaseRequest, take: Callable[[int, Mapping[str, str]], Awaitable[Duplex]]) -> Answer:
        path = request.raw_path.partition("?")[0]
        match = find(request.method, path)
        if match is None:
            methods = allowed(path)
            if methods:
                raise MethodNotAllowed(f"method {request.method} not allowed for {path}: use {', '.join(methods)}")
            raise NotFound("page not found")
        version = versions.check(match.version)
        if not versions.at_least(version, match.route.minimum):
            raise InvalidArgument(
                f"{request.method} {path} requires minimum API version {match.route.minimum}, "
                f"but the request is for version {version}"
            )
        call = Call(
            route=match.route,
            params=match.params,
            version=version,
            method=request.method,
            path=request.raw_path,
            query=request.rel_url.query,
            headers=request.headers,
            peer=self.peers.get(request.protocol) or peer_of(request.transport),
            chunks=_chunks(request),
            take=take,
        )
        return await self._handler(match)(call)

    def _handler(self, match: Match) -> Handler:
        route = match.route
        handler = self._handlers.get(route.name) or self._forwards.get(route.place)
        if handler is None and route.place == PRIVATE:
            raise NotFound("page not found")
        if handler is None:
            raise NotImplementedYet(
                f"{route.method} {route.path} ({route.name}) is not implemented in this release of Covey: "
                "docs/routes.md names every route; use another call or a later release"
            )
        return handler

    def _refusal(self, error: CoveyError) -> Answer:
        if error.status == 304:
            return Empty(304)
        return Json({"message": error.message}, error.status)

    def _fault(self, request: web.BaseRequest) -> Answer:
        number = secrets.token_hex(4)
        log.exception("fault %s in %s %s", number, request.method, request.path)
        fault = sys.exc_info()[1]
        lack = f"{fault.strerror}: " if isinstance(fault, OSError) and fault.errno in LACKS else ""
        return Json({"message": f"internal error {number}: {lack}the daemon's log has its traceback under this number"}, 500)

    async def _send(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        match answer:
            case Stream():
                return await self._send_stream(request, answer)
            case Json(body, status, headers):
                return self._whole(status, _encode(body), JSON, headers)
            case Text(body, status, content_type, headers):
                return self._whole(status, body.encode() if isinstance(body, str) else body, content_type, headers)
            case Empty(status, headers):
                return self._whole(status, b"", None, headers)
            case None:
                return self._whole(204, b"", None, {})
            case Taken():
                return self._whole(500, _encode({"message": "the handler took no connection"}), JSON, {})
            case _:
                return self._whole(200, _encode(answer), JSON, {})

    def _fields(self, content_type: str | None, headers: Mapping[str, str]) -> CIMultiDict[str]:
        fields = CIMultiDict(self._headers)
        if content_type:
            fields["Content-Type"] = content_type
        for name, value in headers.items():
            fields[name] = value
        return fields

    def _whole(self, status: int, body: bytes, content_type: str | None, headers: Mapping[str, str]) -> web.StreamResponse:
        response = web.Response(status=status, body=body, headers=self._fields(content_type, headers))
        if content_type is None:
            response.headers.popall("Content-Type", None)
        return response

    async def _send_stream(self, request: web.BaseRequest, answer: Stream) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=self._fields(answer.content_type, answer.headers))
        try:
            await response.prepare(request)
            if request.method == "HEAD":
                return response
            async for chunk in answer.chunks:
                await response.write(chunk)
        except ConnectionError:
            raise
        except Exception:
            self._fault(request)
            if request.transport is not None:
                request.transport.abort()
        finally:
            close = getattr(answer.chunks, "aclose", None)
            if close is not None:
                await close()
        return response


def _encode(body: Any) -> bytes:
    return msgspec.json.encode(body) + b"\n"
