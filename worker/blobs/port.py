"""The blob port: this node's blobs for the other nodes of its cluster. TLS 1.3, both sides with certificates of the cluster.

It decides who may ask (a node of this cluster) and what can be asked: ``GET /blobs/sha256:<digest>``, from an offset on if a
Range says so; one request a connection. There are no names and no listing: who does not know a digest learns nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from covey.errors import Conflict, CoveyError, Forbidden, InvalidArgument, NotFound
from covey.tls import Identity, peer_of, server_context
from worker.blobs.upload import Upload, Uploads

log = logging.getLogger(__name__)

HEAD_LIMIT = 8 * 1024
HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
#: A client that takes nothing for so long is cut off.
STALL_SECONDS = 20.0
#: Connections at once, those that have not asked yet among them.
CONNECTIONS = 64
BUFFER = 512 * 1024

_REQUEST = re.compile(rb"([A-Z]+) ([\x21-\x7e]+) HTTP/1\.[01]")
_PATH = re.compile(r"/blobs/(sha256:[0-9a-f]{64})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")


class _NotAllowed(CoveyError):
    status = 405


class _NoSuchRange(CoveyError):
    status = 416


class BlobPort:
    """Serves ``uploads`` to the nodes of ``cluster_id``."""

    def __init__(self, uploads: Uploads, identity: Identity, cluster_id: str) -> None:
        self._uploads = uploads
        self._cluster_id = cluster_id
        self._context = server_context(identity)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._open: set[asyncio.Task[None]] = set()
        self._counts = dict.fromkeys(("served", "refused"), 0)

    @asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Listens (port 0: any that is free); yields the port. After it every connection has ended. Raises Conflict."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
        except OSError as error:
            raise Conflict(f"cannot listen on {host}:{port}: {error.strerror}: choose another --blob-port") from None
        server = await asyncio.start_server(
            self._accept, sock=sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS, limit=HEAD_LIMIT
        )
        try:
            yield sock.getsockname()[1]
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            if self._open:
                await asyncio.wait(self._open)

    def statistics(self) -> dict[str, int]:
        return {**self._counts, "connections": len(self._open)}

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) <= CONNECTIONS:
                writer.transport.set_write_buffer_limits(high=BUFFER)
                await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            log.debug("a client of the blob port: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            # The port is closing; asyncio's server would report this as a fault of the connection.
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        try:
            self._check_peer(writer.get_extra_info("peercert"))
            upload = await self._asked(head)
        except CoveyError as error:
            self._counts["refused"] += 1
            writer.write(_refusal(error))
            await _flush(writer)
            return
        try:
            writer.write(_head(upload))
            async for piece in upload.pieces:
                writer.write(piece)
                async with asyncio.timeout(STALL_SECONDS):
                    await writer.drain()
            self._counts["served"] += 1
            await _flush(writer)
        finally:
            await upload.pieces.aclose()

    def _check_peer(self, certificate: Mapping[str, object] | None) -> None:
        peer = peer_of(certificate)
        if peer is None or peer.cluster_id != self._cluster_id:
            raise Forbidden("blobs are for nodes of this cluster only")

    async def _asked(self, head: bytes) -> Upload:
        first, *lines = head.split(b"\r\n")
        request = _REQUEST.fullmatch(first)
        if request is None:
            raise InvalidArgument("not an HTTP/1.1 request")
        method, target = request[1].decode(), request[2].decode()
        path = _PATH.fullmatch(target)
        if path is None:
            raise NotFound("page not found")
        if method != "GET":
            raise _NotAllowed(f"method {method} not allowed: blobs are read with GET")
        fields = [line.partition(b":") for line in lines]
        ranges = [value.strip().decode("latin-1") for name, _, value in fields if name.strip().lower() == b"range"]
        if not ranges:
            return await self._uploads.open(path[1])
        wanted = _RANGE.fullmatch(ranges[0])
        if wanted is None or len(ranges) > 1:
            raise _NoSuchRange("only ranges from an offset to the end are given: Range: bytes=<offset>-")
        try:
            return await self._uploads.open(path[1], int(wanted[1]))
        except InvalidArgument as error:
            raise _NoSuchRange(error.message) from None


def _line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"


def _head(upload: Upload) -> bytes:
    left = upload.size - upload.offset
    fields = f"Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\nContent-Length: {left}\r\n"
    if not upload.offset:
        return f"{_line(200)}{fields}\r\n".encode()
    return f"{_line(206)}{fields}Content-Range: bytes {upload.offset}-{upload.size - 1}/{upload.size}\r\n\r\n".encode()


def _refusal(error: CoveyError) -> bytes:
    body = error.message.encode() + b"\n"
    return f"{_line(error.status)}Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _flush(writer: asyncio.StreamWriter) -> None:
    """What was written is on its way and the client told that this is the end."""
    writer.close()
    with suppress(OSError):
        async with asyncio.timeout(STALL_SECONDS):
            await writer.wait_closed()
