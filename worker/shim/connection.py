"""One client of the shim: requests and answers, then perhaps an attach stream or an event stream.

Requests, answers and events are length-prefixed JSON (4 bytes, big-endian). After ``attach`` both sides speak Docker's
stream frames (stream number, 3 zero bytes, 4-byte big-endian length). What requests mean is worker.shim.container.
"""

from __future__ import annotations

import os
import struct

from worker.kernel.bare import Any, Callable
from worker.runtime import compact_json
from worker.runtime.errors import RuntimeFault
from worker.shim.loop import HANGUP, READ, WRITE, Loop
from worker.shim.streams import STDIN, Streams

_LENGTH = struct.Struct(">I")
_FRAME = struct.Struct(">BxxxI")
_REQUEST_LIMIT = 4 << 20
_OUTPUT_HIGH = 262144
_EVENTS_LIMIT = 1 << 20

Perform = Callable[["Connection", dict[str, Any]], None]


class Connection:
    """``fd``: the connected socket, which is ours from now on; -1 once it is closed."""

    def __init__(self, loop: Loop, fd: int, perform: Perform, closed: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._perform = perform
        self._closed = closed
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._mask = READ
        self._mode = "requests"
        self._busy = False
        self._ending = False
        self._frame_left = 0
        self._frame_stream = STDIN
        self._reading = True
        self._was_full = False
        self._streams: Streams | None = None
        self._stdin = False
        self._outputs: tuple[int, ...] = ()
        os.set_blocking(fd, False)
        loop.add(fd, READ, self._on_ready)

    @property
    def pending(self) -> bool:
        """Whether there is output that the client has not taken."""
        return bool(self._outbox)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way: another process that has ``fd`` could go on from here."""
        return self._mode != "attached" and not (self._busy or self._inbox or self._outbox)

    @property
    def fd(self) -> int:
        return self._fd

    def reply(self, body: dict[str, Any]) -> None:
        """Answer the request in hand; the next one is taken up then."""
        self._busy = False
        self._send(_packed(body))
        self._take_requests()

    def fail(self, fault: RuntimeFault) -> None:
        self.reply({"error": fault.as_dict()})

    def become_events(self) -> None:
        self._mode = "events"
        self._busy = False

    def event(self, body: dict[str, Any]) -> None:
        if len(self._outbox) > _EVENTS_LIMIT:
            self.close()
            return
        self._send(_packed(body))

    def become_attached(self, streams: Streams, *, stdin: bool, outputs: tuple[int, ...]) -> None:
        """Answer {} and turn into an attacher of ``streams``."""
        self._mode = "attached"
        self._streams = streams
        self._stdin = stdin
        self._outputs = outputs
        self._busy = False
        self._send(_packed({}))
        streams.attach(self)
        self._take_frames()

    @property
    def full(self) -> bool:
        return len(self._outbox) > _OUTPUT_HIGH

    def push(self, stream: int, data: bytes) -> None:
        if stream in self._outputs:
            self._send(_FRAME.pack(stream, len(data)) + data)
            self._was_full = self._was_full or self.full

    def end(self) -> None:
        """The streams are over: close once all is delivered."""
        self._ending = True
        if not self._outbox:
            self.close()

    def resume_reading(self) -> None:
        if not self._reading and self._mode == "attached":
            self._reading = True
            self._update()
            self._take_frames()

    def close(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._outbox.clear()
        if self._streams is not None:
            self._streams.detach(self)
        self._closed(self)

    def _send(self, data: bytes) -> None:
        if self._fd < 0:
            return
        if not self._outbox:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._loop.call_later(0, self.close)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._outbox += data
        self._update()

    def _update(self) -> None:
        mask = (READ if self._reading else 0) | (WRITE if self._outbox else 0)
        if mask != self._mask and self._fd >= 0:
            self._mask = mask
            self._loop.modify(self._fd, mask)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._fd >= 0:
            self._receive()
        elif events & HANGUP:
            self.close()

    def _flush(self) -> None:
        try:
            while self._outbox:
                sent = os.write(self._fd, memoryview(self._outbox)[:65536])
                del self._outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._update()
        if self._was_full and len(self._outbox) < _OUTPUT_HIGH // 2:
            self._was_full = False
            if self._streams is not None:
                self._streams.relieve()
        if self._ending and not self._outbox:
            self.close()

    def _receive(self) -> None:
        if not self._reading:
            return
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._mode == "attached":
                # Only its writing side may be closed; a full close shows as a hang-up.
                self._reading = False
                self._update()
            else:
                self.close()
            return
        self._inbox += data
        if self._mode == "attached":
            self._take_frames()
        else:
            self._take_requests()

    def _take_requests(self) -> None:
        while not self._busy and self._mode == "requests" and len(self._inbox) >= 4:
            (length,) = _LENGTH.unpack_from(self._inbox)
            if length > _REQUEST_LIMIT:
                self.close()
                return
            if len(self._inbox) < 4 + length:
                return
            raw = bytes(self._inbox[4 : 4 + length])
            del self._inbox[: 4 + length]
            self._busy = True
            try:
                request = compact_json.loads(raw)
                if not isinstance(request, dict):
                    raise ValueError("a request is an object")
            except ValueError as error:
                self.fail(RuntimeFault("invalid", str(error), "request"))
                continue
            self._perform(self, request)

    def _take_frames(self) -> None:
        """Pass stdin on as it comes; a frame need not be whole."""
        assert self._streams is not None
        while self._inbox and self._reading:
            if self._frame_left == 0:
                if len(self._inbox) < _FRAME.size:
                    return
                self._frame_stream, self._frame_left = _FRAME.unpack_from(self._inbox)
                del self._inbox[: _FRAME.size]
                if self._frame_left == 0 and self._stdin and self._frame_stream == STDIN:
                    self._streams.close_stdin()
                continue
            data = bytes(self._inbox[: self._frame_left])
            del self._inbox[: len(data)]
            self._frame_left -= len(data)
            wanted = self._stdin and self._frame_stream == STDIN
            if wanted and not self._streams.write_stdin(data):
                self._reading = False
                self._update()


def _packed(body: dict[str, Any]) -> bytes:
    data = compact_json.dumps(body)
    return _LENGTH.pack(len(data)) + data
