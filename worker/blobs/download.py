"""Blobs on their way in: one connection to another node's blob port, or to a manager that passes the blob on.

Blocking, for threads.

It decides what a failure means for the source (a kind the manager's tracker knows). Whether the bytes are right is the content
store's to find out; where to go next the tracker's.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Protocol, TypeVar

from covey.engine_api import http1
from covey.errors import CoveyError
from covey.tls import peer_of, require_manager
from covey.wire.frames import FrameReader, ProtocolError, encode
from covey.wire.messages import VERSION, AnyMessage, BlobRelay, BlobRelayed, Hello, Refused, Welcome

Expected = TypeVar("Expected", bound=AnyMessage)

CONNECT_SECONDS = 3.0
#: A source that sends nothing for so long is left.
STALL_SECONDS = 8.0
PIECE = 256 * 1024


class Fault(Exception):
    """A transfer failed. ``kind``: unreachable, gone, broken, corrupt."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Body(Protocol):
    """The rest of a blob, as it comes."""

    def read(self) -> bytes:
        """Some bytes, b"" at the end. Raises Fault."""

    def close(self) -> None:
        """End the connection; another thread's ``read`` returns soon."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob from ``offset`` on, of ``size`` bytes in all, of node ``node_id``."""

    digest: str
    size: int
    node_id: str
    offset: int = 0

    @property
    def left(self) -> int:
        return self.size - self.offset


class _Wire:
    """A TLS connection; what goes wrong with it is a Fault."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        host, _, port = address.rpartition(":")
        try:
            raw = socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise Fault("unreachable", f"{address}: {error}") from None
        try:
            self.socket = context.wrap_socket(raw)
            self.socket.settimeout(STALL_SECONDS)
        except (OSError, ValueError) as error:
            raw.close()
            raise Fault("unreachable", f"{address}: no TLS with it: {error}") from None

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Fault("broken", str(error)) from None

    def receive(self) -> bytes:
        try:
            return self.socket.recv(PIECE)
        except TimeoutError:
            raise Fault("broken", f"nothing came for {STALL_SECONDS:g} s") from None
        except (OSError, ValueError) as error:
            raise Fault("broken", str(error)) from None

    def close(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass
        self.socket.close()


class Direct:
    """From a node's blob port at ``address``."""

    def __init__(self, address: str, context: ssl.SSLContext, wanted: Wanted) -> None:
        self._wire = _Wire(address, context)
        self._answer = http1.Answer("GET")
        self._ready: list[bytes] = []
        try:
            self._check_peer(wanted.node_id, address)
            fields = [("Host", address), ("Connection", "close")]
            fields += [("Range", f"bytes={wanted.offset}-")] if wanted.offset else []
            self._wire.send(http1.request_head("GET", f"/blobs/{wanted.digest}", fields))
            while not self._answer.status:
                self._feed()
            self._check_answer(wanted)
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        while not self._ready and not self._answer.complete:
            self._feed()
        return self._ready.pop(0) if self._ready else b""

    def close(self) -> None:
        self._wire.close()

    def _feed(self) -> None:
        data = self._wire.receive()
        try:
            if not data:
                self._answer.end()
            self._ready += self._answer.feed(data)
        except http1.ProtocolError as error:
            raise Fault("broken", str(error)) from None

    def _check_peer(self, node_id: str, address: str) -> None:
        """An address may have become another node's; its bytes would do, but who asked it should know."""
        try:
            peer = peer_of(self._wire.socket.getpeercert())
        except CoveyError as error:
            raise Fault("unreachable", f"{address}: {error.message}") from None
        if peer is None or peer.node_id != node_id:
            raise Fault("unreachable", f"{address} is node {peer.node_id if peer else '?'} by now, not {node_id}")

    def _check_answer(self, wanted: Wanted) -> None:
        answer = self._answer
        if answer.status == 404:
            raise Fault("gone", f"node {wanted.node_id} has no blob {wanted.digest}")
        if answer.status == 416:
            raise Fault("corrupt", f"the blob of node {wanted.node_id} ends before byte {wanted.offset}")
        if answer.status != (206 if wanted.offset else 200):
            raise Fault("broken", f"node {wanted.node_id} answered status {answer.status}")
        if answer.headers.get("content-length") != str(wanted.left):
            raise Fault("corrupt", f"node {wanted.node_id} has another size of blob {wanted.digest}")


class Relayed:
    """Through the manager at ``address``."""

    def __init__(self, address: str, context: ssl.SSLContext, wanted: Wanted, software: str) -> None:
        self._left = wanted.left
        self._frames = FrameReader()
        self._held = b""
        self._wire = _Wire(address, context)
        try:
            require_manager(self._wire.socket.getpeercert())
            self._wire.send(encode(Hello(version=VERSION, purpose="blob", software=software)))
            self._expect(Welcome)
            self._wire.send(encode(BlobRelay(digest=wanted.digest, node_id=wanted.node_id, offset=wanted.offset)))
            relayed = self._expect(BlobRelayed)
            self._held = self._frames.release()
            if relayed.size != wanted.left:
                raise Fault("corrupt", f"node {wanted.node_id} has another size of blob {wanted.digest}")
        except CoveyError as error:
            self.close()
            raise Fault("broken", error.message) from None
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        if not self._left:
            return b""
        data, self._held = self._held or self._wire.receive(), b""
        if not data:
            raise Fault("broken", "the manager closed the connection in the middle of the blob")
        data = data[: self._left]
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._wire.close()

    def _expect(self, kind: type[Expected]) -> Expected:
        try:
            while True:
                data = self._wire.receive()
                if not data:
                    raise Fault("broken", "the manager closed the connection")
                for message in self._frames.feed(data):
                    if isinstance(message, Refused):
                        raise Fault("gone" if message.status == 404 else "broken", message.message)
                    if not isinstance(message, kind):
                        raise Fault("broken", f"the manager sent {type(message).__name__} where {kind.__name__} was due")
                    return message
        except ProtocolError as error:
            raise Fault("broken", str(error)) from None
