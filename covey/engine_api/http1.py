"""The client's half of HTTP/1.1, sans-io: a request head as bytes, an answer from bytes.

Shared by the light client and the forwarder, both of which must get at the raw connection after an upgrade; importing
http.client costs the command line 16 ms of CPU more than this. It must not know sockets. Source: RFC 9112.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

HEAD_LIMIT = 256 * 1024
LINE_LIMIT = 64 * 1024
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class ProtocolError(Exception):
    """The other end does not speak HTTP/1.1, or the answer was cut."""


class Headers(Mapping[str, str]):
    """Header fields by any-case name; of repeated ones the first is shown."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self.fields = list(fields)
        self._by_name: dict[str, str] = {}
        for name, value in self.fields:
            self._by_name.setdefault(name.lower(), value)

    def __getitem__(self, name: str) -> str:
        return self._by_name[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def quote(text: str, safe: str = "") -> str:
    """Percent-encoding of everything but unreserved characters and ``safe``."""
    keep = _UNRESERVED.union(safe.encode())
    return "".join(chr(byte) if byte in keep else f"%{byte:02X}" for byte in text.encode())


def query_string(query: Mapping[str, str | Iterable[str]]) -> str:
    """``{"a": "1", "names": ["x", "y"]}`` → ``a=1&names=x&names=y``."""
    pairs: list[str] = []
    for name, value in query.items():
        values = [value] if isinstance(value, str) else value
        pairs += [f"{quote(name)}={quote(item, '/:')}" for item in values]
    return "&".join(pairs)


def request_head(method: str, path: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Request line and header fields. Raises ProtocolError for a line end where none may be."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    if any("\r" in line or "\n" in line for line in lines) or " " in path:
        raise ProtocolError(f"request for {path!r} has a space or line end in its head")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; nothing for no data, as that would end the body."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


LAST_CHUNK = b"0\r\n\r\n"


class Answer:
    """Reads one answer: ``feed`` bytes and take body pieces; ``status`` is 0 until the head is whole.

    ``complete``: the body has ended. ``switched``: the connection is raw from here; ``rest`` holds what came behind
    the head (or, after a complete answer, bytes nobody asked for). ``hijack``: a 200 without a length switches too.
    """

    def __init__(self, method: str, hijack: bool = False) -> None:
        self.status = 0
        self.reason = ""
        self.headers = Headers(())
        self.complete = False
        self.switched = False
        self.rest = b""
        self.keep_alive = True
        self._method = method
        self._hijack = hijack
        self._held = b""
        self._left: int | None = None
        self._chunked = False
        self._state = "head"

    def feed(self, data: bytes) -> list[bytes]:
        """Body pieces that ``data`` brings. Raises ProtocolError."""
        if self.complete or self.switched:
            self.rest += data
            return []
        self._held += data
        pieces: list[bytes] = []
        while not (self.complete or self.switched):
            step = self._step(pieces)
            if not step:
                break
        if (self.complete or self.switched) and self._held:
            self.rest, self._held = self._held, b""
        return pieces

    def end(self) -> None:
        """The connection has ended. Raises ProtocolError when the answer had not."""
        if self._state == "until-close":
            self.complete = True
        if not self.complete and not self.switched:
            what = "in its body" if self.status else "before its head"
            raise ProtocolError(f"the connection was closed and the answer cut {what}")

    def _step(self, pieces: list[bytes]) -> bool:
        if self._state == "head":
            return self._read_head()
        if self._state == "until-close":
            return self._take(pieces, len(self._held))
        if self._state == "chunk-size":
            return self._read_chunk_size()
        if self._state == "trailer":
            return self._read_trailer()
        return self._read_counted(pieces)

    def _take(self, pieces: list[bytes], count: int) -> bool:
        if count == 0:
            return False
        pieces.append(self._held[:count])
        self._held = self._held[count:]
        return True

    def _line(self) -> bytes | None:
        at = self._held.find(b"\n")
        if at < 0:
            if len(self._held) > LINE_LIMIT:
                raise ProtocolError(f"a line of the answer is longer than {LINE_LIMIT} bytes")
            return None
        line, self._held = self._held[:at], self._held[at + 1 :]
        return line.rstrip(b"\r")

    def _read_counted(self, pieces: list[bytes]) -> bool:
        assert self._left is not None
        count = min(self._left, len(self._held))
        self._left -= count
        took = self._take(pieces, count)
        if self._left:
            return took
        if not self._chunked:
            self.complete = True
            return True
        if len(self._held) < 2:
            return False
        if self._held[:2] != b"\r\n":
            raise ProtocolError("a chunk of the answer does not end where its size says")
        self._held = self._held[2:]
        self._state = "chunk-size"
        return True

    def _read_chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        digits = line.partition(b";")[0].strip()
        try:
            self._left = int(digits, 16)
        except ValueError:
            raise ProtocolError(f"{digits[:20]!r} is no chunk size") from None
        self._state = "counted" if self._left else "trailer"
        return True

    def _read_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self.complete = not line
        return True

    def _read_head(self) -> bool:
        ends = [at for mark in (b"\r\n\r\n", b"\n\n") if (at := self._held.find(mark)) >= 0]
        if not ends:
            if len(self._held) > HEAD_LIMIT:
                raise ProtocolError(f"the answer's head is longer than {HEAD_LIMIT} bytes")
            return False
        at = min(ends)
        head, rest = self._held[:at], self._held[at:]
        self._held = rest[4:] if rest.startswith(b"\r\n\r\n") else rest[2:]
        first, *lines = head.decode("latin-1").splitlines()
        protocol, _, status = first.partition(" ")
        code, _, self.reason = status.partition(" ")
        if not protocol.startswith("HTTP/1.") or len(code) != 3 or not code.isdigit():
            raise ProtocolError(f"{first[:60]!r} is no HTTP/1.1 answer")
        if code[0] == "1" and code != "101":
            return True
        self.status = int(code)
        self.headers = Headers((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
        self._choose_body(protocol)
        return True

    def _choose_body(self, protocol: str) -> None:
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and protocol == "HTTP/1.1"
        length = self.headers.get("content-length")
        self._chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        if self.status == 101:
            self.switched = True
        elif self._method == "HEAD" or self.status in (204, 304):
            self.complete = True
        elif self._chunked:
            self._state = "chunk-size"
        elif length is not None:
            if not length.isdigit():
                raise ProtocolError(f"Content-Length {length!r} is no number")
            self._left, self._state = int(length), "counted"
            self.complete = self._left == 0
        elif self._hijack and self.status == 200:
            self.switched = True
        else:
            self._state, self.keep_alive = "until-close", False
