"""Where a client's daemon is, and a synchronous connection to it: unix, tcp, or tls with half-close.

It decides how COVEY_HOST, DOCKER_HOST and their TLS variables are read and the words when nobody answers. It must not
know HTTP, nor import asyncio; ssl only when TLS is used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from covey.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    import ssl

    from covey.engine_api.tls import TlsStream

DEFAULT_HOST = "unix:///var/run/covey.sock"
CONNECT_SECONDS = 10.0
PIECE = 64 * 1024


class Wire(Protocol):
    """A connected stream."""

    def receive(self) -> bytes: ...
    def send(self, data: bytes) -> None: ...
    def close_write(self) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def alive(self) -> bool: ...
    def pending(self) -> bool: ...


class _Plain:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def receive(self) -> bytes:
        return self.sock.recv(PIECE)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close_write(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def fileno(self) -> int:
        return self.sock.fileno()

    def alive(self) -> bool:
        """Whether an idle connection may be used again: nothing came, not even its end."""
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def pending(self) -> bool:
        """Whether received bytes are at hand already."""
        return False


class _Tls(_Plain):
    """One thread may send while another receives."""

    def __init__(self, sock: socket.socket, stream: TlsStream) -> None:
        from threading import Lock

        super().__init__(sock)
        self._stream = stream
        self._lock = Lock()
        self._ready: list[bytes] = []
        stream.handshake()
        while not stream.established:
            self._flush()
            self._ready += stream.feed(sock.recv(PIECE))
            if stream.ended:
                raise ConnectionResetError("the TLS handshake was cut")
        self._flush()

    def _flush(self) -> None:
        data = self._stream.outgoing()
        if data:
            self.sock.sendall(data)

    def receive(self) -> bytes:
        while not self._ready and not self._stream.ended:
            data = self.sock.recv(PIECE)
            with self._lock:
                self._ready += self._stream.feed(data)
                self._flush()
        return self._ready.pop(0) if self._ready else b""

    def send(self, data: bytes) -> None:
        with self._lock:
            self._stream.write(data)
            self._flush()

    def close_write(self) -> None:
        with self._lock:
            self._stream.close_write()
            self._flush()

    def pending(self) -> bool:
        return bool(self._ready)


class Host:
    """A parsed host: ``unix:///path`` or ``tcp://name:port[/prefix]``. Raises InvalidArgument for anything else."""

    def __init__(self, address: str, tls: bool = False) -> None:
        self.address = address
        self.tls = tls
        self.prefix = ""
        scheme, mark, rest = address.partition("://")
        if not mark or scheme not in ("unix", "tcp", "http", "https") or not rest:
            raise InvalidArgument(f"invalid host {address!r}: use unix:///path/to.sock or tcp://name:port")
        self.socket_path = rest if scheme == "unix" else None
        self.name, self.port = "localhost", 0
        self.tls = scheme != "unix" and (tls or scheme == "https")
        if scheme == "unix":
            return
        authority, _, prefix = rest.partition("/")
        self.prefix = f"/{prefix}".rstrip("/")
        name, colon, port = authority.rpartition(":")
        if not colon or port.endswith("]"):
            name, port = authority, "2376" if self.tls else "2375"
        if not port.isdigit():
            raise InvalidArgument(f"invalid host {address!r}: {port!r} is no port number")
        self.name, self.port = name.strip("[]") or "127.0.0.1", int(port)

    @property
    def authority(self) -> str:
        """The Host header."""
        if self.socket_path is not None:
            return "covey"
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def parse_host(address: str, environ: Mapping[str, str]) -> Host:
    """A host given by name; whether tcp means TLS is for the environment to say."""
    return Host(address, bool(environ.get("COVEY_TLS_VERIFY") or environ.get("DOCKER_TLS_VERIFY")))


def host_from_environment(environ: Mapping[str, str]) -> Host:
    """COVEY_HOST, else DOCKER_HOST, else the default socket; TLS when COVEY_TLS_VERIFY or DOCKER_TLS_VERIFY is set."""
    return parse_host(environ.get("COVEY_HOST") or environ.get("DOCKER_HOST") or DEFAULT_HOST, environ)


def _tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    import ssl

    folder = environ.get("COVEY_CERT_PATH") or environ.get("DOCKER_CERT_PATH")
    folder = folder or os.path.join(environ.get("HOME", "/root"), ".docker")
    authority, certificate, key = (os.path.join(folder, name) for name in ("ca.pem", "cert.pem", "key.pem"))
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise InvalidArgument(
            f"cannot read ca.pem, cert.pem and key.pem in {folder}: {error.strerror or error}: set COVEY_CERT_PATH"
        ) from None
    return context


class Dialer:
    """Connects to one host; reads the certificates once."""

    def __init__(self, host: Host, environ: Mapping[str, str]) -> None:
        self._host = host
        self._environ = environ
        self._context: ssl.SSLContext | None = None

    def connect(self) -> Wire:
        """A new connection. Raises Unavailable in one line when nobody answers or the socket may not be opened."""
        address = self._host.address
        try:
            return self._unix() if self._host.socket_path is not None else self._tcp()
        except PermissionError:
            raise Unavailable(f"permission denied for {address}: run as root, or as a member of the socket's group") from None
        except OSError as error:
            raise Unavailable(
                f"Cannot connect to the Covey daemon at {address}. Is `cluster daemon` running? ({error.strerror or error})"
            ) from None

    def _unix(self) -> Wire:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._host.socket_path or "")
        except OSError:
            sock.close()
            raise
        return _Plain(sock)

    def _tcp(self) -> Wire:
        host = self._host
        sock = socket.create_connection((host.name, host.port), CONNECT_SECONDS)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire: Wire = self._secured(sock) if host.tls else _Plain(sock)
            sock.settimeout(None)
        except (OSError, InvalidArgument):
            sock.close()
            raise
        return wire

    def _secured(self, sock: socket.socket) -> Wire:
        from covey.engine_api.tls import TlsStream

        if self._context is None:
            self._context = _tls_context(self._environ)
        return _Tls(sock, TlsStream(self._context, False, self._host.name))
