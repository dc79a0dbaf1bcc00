"""TLS with half-close, sans-io: ciphertext in, plain text out, and the other way round.

Neither asyncio nor ssl.SSLSocket can end one direction and keep reading, which ``docker exec -i`` with piped stdin needs
over TCP: the client's close_notify must reach the process as end of file while its output still flows. So the listener
and the light client use this instead. It must not know sockets.
"""

from __future__ import annotations

import ssl
from typing import Any

PIECE = 64 * 1024


class TlsStream:
    """One connection. After every call, ``outgoing()`` holds what must be sent.

    ``established``: the handshake is done. ``ended``: the other side will send nothing more.
    """

    def __init__(self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self.established = False
        self.ended = False
        self._write_closed = False

    def outgoing(self) -> bytes:
        """Ciphertext to send now; may be empty."""
        return self._outgoing.read()

    def handshake(self) -> None:
        """Begins or goes on with the handshake. Raises ssl.SSLError when it fails (an alert is then outgoing)."""
        if self.established:
            return
        try:
            self._tls.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass

    def feed(self, data: bytes) -> list[bytes]:
        """Plain text that ``data`` brings; no data means that the connection has ended. Raises ssl.SSLError."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        self.handshake()
        pieces: list[bytes] = []
        while self.established and not self.ended:
            try:
                piece = self._tls.read(PIECE)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                piece = b""
            if piece:
                pieces.append(piece)
            else:
                self.ended = True
        self.ended = self.ended or not data
        return pieces

    def write(self, data: bytes) -> None:
        """Plain text to send; the handshake must be done."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def close_write(self) -> None:
        """Tells the other side that no more will come (close_notify); reading goes on."""
        if self._write_closed or not self.established:
            return
        self._write_closed = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass

    def peer_certificate(self) -> dict[str, Any] | None:
        """The verified certificate of the other side, as ``ssl`` describes it."""
        certificate: dict[str, Any] | None = self._tls.getpeercert()
        return certificate
