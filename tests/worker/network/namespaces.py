"""Network namespaces for the tests of this room: held by a descriptor only, so that nothing can be left behind."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from worker.kernel import syscalls
from worker.kernel.netlink import Netlink, in_namespace
from worker.kernel.netlink_codec import add_address, add_route, change_link, create_veth

T = TypeVar("T")


class Namespace:
    """A fresh network namespace with lo up; it ends when its descriptor and its last socket are closed."""

    def __init__(self) -> None:
        made: list[int] = []

        def make() -> None:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            with Netlink() as netlink:
                netlink.run(change_link(1, up=True))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        self.fd = made[0]
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, function: Callable[..., T], *args: Any) -> T:
        return in_namespace(self.fd, function, *args)

    def netlink(self, use: Callable[[Netlink], T]) -> T:
        def inside() -> T:
            with Netlink() as netlink:
                return use(netlink)

        return self.run(inside)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.run(socket.socket, family, kind)
        made.settimeout(3)
        return made

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def cable(left: Namespace, left_address: str, right: Namespace, right_address: str, name: str = "wan0") -> None:
    """A veth between two namespaces, one address each."""
    left.netlink(lambda netlink: netlink.run(create_veth(name, name, peer_namespace_fd=right.fd)))
    for side, address in ((left, left_address), (right, right_address)):
        add_to(side, name, address)


def add_to(side: Namespace, name: str, address: str) -> None:
    def inside(netlink: Netlink) -> None:
        link = netlink.link(name)
        assert link is not None
        netlink.run(change_link(link.index, up=True), add_address(link.index, ipaddress.ip_interface(address)))

    side.netlink(inside)


def route(side: Namespace, destination: str, gateway: str, name: str = "wan0") -> None:
    def inside(netlink: Netlink) -> None:
        link = netlink.link(name)
        assert link is not None
        netlink.run(add_route(link.index, ipaddress.ip_network(destination), ipaddress.ip_address(gateway)))

    side.netlink(inside)


class Echo:
    """Answers every TCP client, and every UDP datagram, with ``<name> <client address> <what it sent>``."""

    def __init__(self, where: Namespace, name: str, port: int, address: str = "0.0.0.0") -> None:
        self.name = name
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._tcp = where.socket(family)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._udp = where.socket(family, socket.SOCK_DGRAM)
        for one in (self._tcp, self._udp):
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address, port))
            one.settimeout(None)
        self._tcp.listen(16)
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._streams, self._datagrams)]
        for thread in self._threads:
            thread.start()

    def _streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, address = self._tcp.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client, address[0]), daemon=True).start()

    def _serve(self, client: socket.socket, address: str) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65536):
                client.sendall(f"{self.name} {address} ".encode() + data)

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, address = self._udp.recvfrom(65536)
                if address is None:
                    return
                self._udp.sendto(f"{self.name} {address[0]} ".encode() + data, address)

    def close(self) -> None:
        for one in (self._tcp, *self._clients):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._udp.close()


def ask(where: Namespace, address: str, port: int, kind: int = socket.SOCK_STREAM, timeout: float = 3) -> tuple[str, str]:
    """One exchange with an Echo: (its name, the client address it saw). Raises OSError."""
    with where.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as client:
        client.settimeout(timeout)
        client.connect((address, port))
        client.sendall(b"hello")
        name, seen, said = client.recv(200).decode().split(" ")
        assert said == "hello"
        return name, seen


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for one in things:
            one.close()


def wait_until(condition: Callable[[], bool], what: Callable[[], object], seconds: float = 5) -> None:
    """Polls a condition up to a deadline; on failure tells what was known."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)
