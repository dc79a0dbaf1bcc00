"""The netlink socket: sends requests, collects answers, and turns a refusal into an OSError in the kernel's own words.

Also `in_namespace`, which runs a function inside a network namespace, and `inside`, a socket of one. What the messages
mean is netlink_codec.py's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, Self, TypeVar

from worker.kernel import syscalls
from worker.kernel.netlink_codec import (
    HEADER,
    MAIN_TABLE,
    Link,
    LinkAddress,
    Message,
    Route,
    attributes,
    get_link,
    is_operational,
    list_addresses,
    list_links,
    list_routes,
    parse_address,
    parse_link,
    parse_route,
)

P = ParamSpec("P")
T = TypeVar("T")

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_CAPPED, _ACK_TLVS = 0x100, 0x200
_ERROR, _DONE = 2, 3
# netdevice(7): struct ifreq; any socket takes it, and asks in its own namespace.
_INDEX_OF, _REQUEST = 0x8933, struct.Struct("16si20x")


class Netlink:
    """A NETLINK_ROUTE socket of the network namespace in which it was made; used by one thread at a time."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(10)
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def run(self, *messages: Message) -> None:
        """Sends all in one packet; raises the first refusal (later messages did run)."""
        if not messages:
            return
        first = self._sequence + 1
        self._sequence += len(messages)
        last = self._sequence
        # The kernel carries them out in their order, so the ack of the last is all there is to wait for.
        packed = [message.pack(first + at, silent=first + at != last) for at, message in enumerate(messages)]
        self._socket.send(b"".join(packed))
        failure: OSError | None = None
        done = False
        while not done:
            for kind, flags, sequence, body in self._receive():
                if kind == _ERROR and first <= sequence <= last:
                    message = messages[sequence - first]
                    refusal = _refusal(message.what, flags, body)
                    if refusal is not None and refusal.errno not in message.tolerated:
                        failure = failure or refusal
                    done = sequence == last
        if failure:
            raise failure

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers to a dump request."""
        self._sequence += 1
        self._socket.send(message.pack(self._sequence))
        bodies: list[bytes] = []
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return bodies
                if kind == _ERROR:
                    raise _refusal(message.what, flags, body) or OSError(f"{message.what}: ended early")
                bodies.append(body)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags, sequence, _port = HEADER.unpack_from(data, at)
            yield kind, flags, sequence, data[at + 16 : at + length]
            at += (length + 3) & ~3

    def links(self) -> list[Link]:
        return [parse_link(body) for body in self.dump(list_links())]

    def link(self, name: str) -> Link | None:
        """One link by name; None when there is none."""
        body = self._link(name)
        return None if body is None else parse_link(body)

    def operational(self, name: str) -> bool | None:
        """``link(name).operational`` for a third of the price; None when there is none."""
        body = self._link(name)
        return None if body is None else is_operational(body)

    def _link(self, name: str) -> bytes | None:
        message = get_link(name)
        self._sequence += 1
        self._socket.send(message.pack(self._sequence))
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind != _ERROR:
                    return body
                refusal = _refusal(message.what, flags, body)
                if refusal is None or refusal.errno == errno.ENODEV:
                    return None
                raise refusal

    def index(self, name: str) -> int | None:
        """The number of a link; None when there is none. A tenth of what ``link`` costs."""
        try:
            answer = fcntl.ioctl(self._socket.fileno(), _INDEX_OF, _REQUEST.pack(name.encode(), 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return int(_REQUEST.unpack(answer)[1])

    def addresses(self) -> list[LinkAddress]:
        return [parse_address(body) for body in self.dump(list_addresses())]

    def routes(self) -> list[Route]:
        """Unicast routes of the main table, IPv4 and IPv6."""
        bodies = self.dump(list_routes(socket.AF_INET)) + self.dump(list_routes(socket.AF_INET6))
        return [route for route in map(parse_route, bodies) if route and route.table == MAIN_TABLE]


def _refusal(what: str, flags: int, body: bytes) -> OSError | None:
    """The OSError of an error message, None for a plain ack. With CAP_ACK only the request's header is echoed."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    words = ""
    if flags & _ACK_TLVS:
        (echoed,) = struct.unpack_from("=I", body, 4)
        start = 20 if flags & _CAPPED else 4 + ((echoed + 3) & ~3)
        words = dict(attributes(body[start:])).get(1, b"").rstrip(b"\0").decode(errors="replace")
    return OSError(-code, f"{what}: {os.strerror(-code)}" + (f" ({words})" if words else ""))


def inside(namespace: int) -> Netlink:
    """A socket of the network namespace with this descriptor, made by the calling thread, which is in its own again then."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        try:
            return Netlink()
        finally:
            try:
                syscalls.setns(own, syscalls.CLONE_NEWNET)
            except OSError:
                # What this thread does from now on would be done to a container.
                os.abort()
    finally:
        os.close(own)


def in_namespace(namespace: str | int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs ``function`` inside a network namespace (path or descriptor), in a thread of its own that then ends.

    A thread's namespace is its own, so nothing has to be restored. Raises what ``function`` raises, OSError when the
    namespace cannot be entered.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            with_fd(namespace, lambda fd: syscalls.setns(fd, syscalls.CLONE_NEWNET))
            outcome.append(function(*args, **kwargs))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter, name="in-namespace", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def with_fd(namespace: str | int, function: Callable[[int], T]) -> T:
    """Calls ``function`` with a descriptor of the namespace file; a path is opened and closed again."""
    if isinstance(namespace, int):
        return function(namespace)
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return function(fd)
    finally:
        os.close(fd)
