"""Connections to a zygote or a shim on the event loop: requests out, answers back in their order.

Length-prefixed JSON (4 bytes, big-endian). What requests mean is worker.containers.shim_client's. An error in an answer is
RuntimeFault; a peer that cannot be reached or ends in the middle of an answer is ShimGone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.runtime.errors import RuntimeFault

_LENGTH = struct.Struct(">I")
_GONE = (ConnectionError, asyncio.IncompleteReadError)
_IDLE_LIMIT = 2
_FULL_AGAIN = 0.01
UNREACHABLE = "unreachable"
"""The code of the RuntimeFault by which a peer that does not answer refuses."""


class ShimGone(Exception):
    """The shim (or zygote) does not answer: it has ended, or never was."""


def frame(body: Mapping[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return _LENGTH.pack(len(data)) + data


class Line:
    """One connection. What is sent need not wait for the answer to what was sent before."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, path: Path) -> Line:
        """Connect through the directory's descriptor: a socket address holds 107 bytes, our paths may be longer.

        As long as the other end's queue is full it waits; asyncio's sock_connect would take that for a connection.
        """
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise ShimGone(f"there is no {path.parent}") from None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            os.close(directory)
            raise
        try:
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(f"/proc/self/fd/{directory}/{path.name}")
                    break
                except BlockingIOError:
                    await asyncio.sleep(_FULL_AGAIN)
            return cls(path, *await asyncio.open_unix_connection(sock=sock))
        except OSError as error:
            sock.close()
            raise ShimGone(f"nobody answers at {path}: {error.strerror}") from None
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)

    @classmethod
    async def over(cls, path: Path, sock: socket.socket) -> Line:
        """A connection that is there; closed when this fails. ``path``: what its other end is called."""
        try:
            return cls(path, *await asyncio.open_unix_connection(sock=sock))
        except BaseException:
            sock.close()
            raise

    def send(self, body: Mapping[str, Any]) -> None:
        self.writer.write(frame(body))

    def send_with_connection(self, data: bytes, what: str, *more: int) -> socket.socket:
        """Send over a line at rest, with a new connection, on which the answers come; nothing comes on this line.

        ``data``: a frame; ``what``: the request's name; ``more``: descriptors that go along. Raises ShimGone where the other
        end has gone, or does not take it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs, socket.socket(fileno=os.dup(self.writer.get_extra_info("socket").fileno())) as whole:
                sent = socket.send_fds(whole, [data], [theirs.fileno(), *more])
        except OSError as error:
            ours.close()
            raise ShimGone(f"{self.path} ended before it read {what}: {error}") from None
        if sent != len(data):
            ours.close()
            raise ShimGone(f"{self.path} did not take {what} as a whole")
        return ours

    async def answer(self) -> dict[str, Any]:
        """The next one, or event. Raises RuntimeFault, after which the line can be used, or ShimGone."""
        try:
            (length,) = _LENGTH.unpack(await self.reader.readexactly(4))
            body: dict[str, Any] = json.loads(await self.reader.readexactly(length))
        except _GONE as error:
            raise ShimGone(f"{self.path} ended while it was to answer: {error}") from None
        if "error" in body:
            raise RuntimeFault.from_dict(body["error"])
        return body

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send, drain and read the answer."""
        self.send(body)
        try:
            await self.writer.drain()
        except ConnectionError as error:
            raise ShimGone(f"{self.path} ended before it read {body['op']}: {error}") from None
        return await self.answer()

    def close(self) -> None:
        self.writer.close()


class Client:
    """Requests to one socket; each takes an idle line or opens one, so a slow answer delays no other request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[Line] = []

    async def line(self) -> Line:
        """One that is at rest; the caller closes it or gives it ``back``."""
        return self._idle.pop() if self._idle else await self.open()

    async def open(self) -> Line:
        """A new one, for more than an answer; the caller closes it."""
        return await Line.open(self.path)

    def back(self, line: Line) -> None:
        """A line without an answer outstanding."""
        if len(self._idle) < _IDLE_LIMIT:
            self._idle.append(line)
        else:
            line.close()

    async def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises RuntimeFault or ShimGone."""
        line = await self.line()
        try:
            answer = await line.ask(body)
        except RuntimeFault:
            self.back(line)
            raise
        except BaseException:
            # Gone, or cancelled half-way: the answer that still comes must not be taken for another request's.
            line.close()
            raise
        self.back(line)
        return answer

    @property
    def lost(self) -> bool:
        """Whether the other end has closed a connection that we kept."""
        return any(line.reader.at_eof() for line in self._idle)

    def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()


class Refusing(Client):
    """To a peer that does not answer: each request is refused at once, in words that say what to do."""

    def __init__(self, path: Path, words: str) -> None:
        super().__init__(path)
        self._words = words

    async def open(self) -> Line:
        raise RuntimeFault(UNREACHABLE, self._words)
