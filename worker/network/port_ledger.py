"""Which container holds which host port, and the sockets that keep other processes off it.

A port is held by a bound socket for as long as a container has it: nftables takes the packets before any socket sees
them, but the bind makes a clash an error, here and in the other process. IPv6 holds listen: they are what the relay
accepts on. Synchronous; sockets are made in the namespace of the calling thread. Errors are Docker's words.
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from covey.errors import Internal, InvalidArgument
from worker.network.endpoint import BoundPort, PortBinding

EPHEMERAL = range(32768, 61000)
PROTOCOLS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": None}
Key = tuple[str, str, int]
Hold = Callable[[str, str, int], socket.socket | None]
_NO_ADDRESS_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PortAllocated(Internal):
    """A host port is taken, by a container or by another process (Docker answers 500)."""


def hold_socket(protocol: str, host_ip: str, port: int) -> socket.socket | None:
    """A bound socket; None where there is nothing to bind (sctp, no IPv6 on the node). Raises OSError when taken.

    A second try with SO_REUSEADDR lets a port in whose old connections linger, but never one that another listens on.
    """
    kind = PROTOCOLS[protocol]
    version = ipaddress.ip_address(host_ip).version
    if kind is None:
        return None
    try:
        held = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
    except OSError:
        if version == 6:
            return None
        raise
    try:
        _bind(held, version, host_ip, port)
    except OSError as error:
        held.close()
        if version == 6 and error.errno in _NO_ADDRESS_FAMILY and host_ip in ("::", "::1"):
            return None
        raise
    held.setblocking(False)
    return held


def _bind(held: socket.socket, version: int, host_ip: str, port: int) -> None:
    if version == 6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    stream = held.type == socket.SOCK_STREAM
    try:
        held.bind((host_ip, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not stream:
            raise
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host_ip, port))
        if version == 4:
            with socket.socket(held.family, held.type) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host_ip, port))
                probe.listen(1)
    if version == 6 and stream:
        held.listen(128)


@dataclass
class _Held:
    group: str | None
    owners: dict[str, set[int]] = field(default_factory=dict)
    socket: socket.socket | None = None


class PortLedger:
    """Host ports of this node; ``hold`` binds (replaced in unit tests)."""

    def __init__(self, hold: Hold = hold_socket, choose: Callable[[], int] | None = None) -> None:
        self._hold = hold
        self._choose = choose or (lambda: random.choice(EPHEMERAL))
        self._held: dict[Key, _Held] = {}

    def claim(
        self, owner: str, bindings: Sequence[PortBinding], *, default_host_ip: str = "", label: str = ""
    ) -> tuple[BoundPort, ...]:
        """Holds a host port for every binding, all or none.

        ``label`` names the endpoint in errors. Raises InvalidArgument, or PortAllocated in Docker's words.
        """
        bound: list[BoundPort] = []
        try:
            for binding in bindings:
                bound += self._claim_one(owner, binding, default_host_ip, label)
        except BaseException:
            self.release(owner)
            raise
        return tuple(bound)

    def _claim_one(self, owner: str, binding: PortBinding, default_host_ip: str, label: str) -> list[BoundPort]:
        _check(binding)
        addresses = _addresses(binding.host_ip or default_host_ip)
        failure = ""
        for port in self._candidates(binding, addresses):
            failure = self._take(owner, binding, addresses, port)
            if not failure:
                group = binding.group
                return [BoundPort(binding.container_port, binding.protocol, ip, port, group) for ip in addresses]
        raise PortAllocated(
            f"driver failed programming external connectivity on endpoint {label or owner}: {failure}: "
            "port is already allocated"
        )

    def _candidates(self, binding: PortBinding, addresses: Sequence[str]) -> Iterator[int]:
        if binding.host_port:
            yield from range(binding.host_port, max(binding.host_port, binding.host_port_end) + 1)
            return
        if binding.group is not None:
            for (protocol, ip, port), held in self._held.items():
                ports = set().union(*held.owners.values())
                same = protocol == binding.protocol and ip in addresses and held.group == binding.group
                if same and binding.container_port in ports:
                    yield port
        for _ in range(200):
            yield self._choose()

    def _take(self, owner: str, binding: PortBinding, addresses: Sequence[str], port: int) -> str:
        """Takes the port on all addresses; otherwise takes nothing and says which bind failed."""
        taken: list[Key] = []
        failure = ""
        for ip in addresses:
            key = (binding.protocol, ip, port)
            failure = self._take_key(owner, binding, key)
            if failure:
                break
            taken.append(key)
        if failure:
            for key in taken:
                self._drop(key, owner, binding.container_port)
        return failure

    def _take_key(self, owner: str, binding: PortBinding, key: Key) -> str:
        protocol, ip, port = key
        words = f"Bind for {ip if ':' not in ip else f'[{ip}]'}:{port} failed"
        shared = self._held.get(key)
        if shared is not None:
            if shared.group is None or shared.group != binding.group:
                return words
            shared.owners.setdefault(owner, set()).add(binding.container_port)
            return ""
        if self._clashes(key):
            return words
        try:
            held = self._hold(protocol, ip, port)
        except OSError:
            return words
        self._held[key] = _Held(binding.group, {owner: {binding.container_port}}, held)
        return ""

    def _clashes(self, key: Key) -> bool:
        """True if the wildcard of the family holds the port, or this is the wildcard and an address holds it."""
        protocol, ip, port = key
        wildcard = "::" if ":" in ip else "0.0.0.0"
        if ip != wildcard:
            return (protocol, wildcard, port) in self._held
        return any(
            (held[0], held[2], ":" in held[1]) == (protocol, port, ":" in ip) for held in self._held if held[1] != wildcard
        )

    def restore(self, owner: str, ports: Sequence[BoundPort]) -> list[str]:
        """Holds again what an earlier life of the daemon gave; returns what another process took meanwhile."""
        lost = []
        for one in ports:
            key = (one.protocol, one.host_ip, one.host_port)
            held = self._held.get(key)
            if held is None:
                held = self._held[key] = _Held(one.group)
                try:
                    held.socket = self._hold(*key)
                except OSError as error:
                    lost.append(f"{one.host_ip}:{one.host_port}/{one.protocol} ({error.strerror})")
            held.owners.setdefault(owner, set()).add(one.container_port)
        return lost

    def release(self, owner: str, *, shared_only: bool = False) -> None:
        """Lets go of all ports of the owner, or of those of a group only; a shared one stays with the others of its group."""
        for key in [key for key, held in self._held.items() if owner in held.owners]:
            if not shared_only or self._held[key].group is not None:
                self._drop(key, owner, None)

    def _drop(self, key: Key, owner: str, container_port: int | None) -> None:
        held = self._held[key]
        ports = held.owners.get(owner, set())
        ports.discard(container_port) if container_port is not None else ports.clear()
        if not ports:
            held.owners.pop(owner, None)
        if not held.owners:
            del self._held[key]
            if held.socket is not None:
                held.socket.close()

    def socket(self, key: Key) -> socket.socket | None:
        """The socket that holds a port, for the relay that serves it."""
        held = self._held.get(key)
        return held.socket if held else None

    def close(self) -> None:
        for held in self._held.values():
            if held.socket is not None:
                held.socket.close()
        self._held.clear()


def _check(binding: PortBinding) -> None:
    if binding.protocol not in PROTOCOLS:
        raise InvalidArgument(f"invalid protocol {binding.protocol} of port {binding.container_port}: tcp, udp or sctp")
    if not 0 < binding.container_port < 65536:
        raise InvalidArgument(f"invalid container port {binding.container_port}: 1 to 65535")
    if not 0 <= binding.host_port < 65536 or not 0 <= binding.host_port_end < 65536:
        raise InvalidArgument(f"invalid host port {binding.host_port} of port {binding.container_port}: 0 to 65535")


def _addresses(host_ip: str) -> list[str]:
    if not host_ip:
        return ["0.0.0.0", "::"]
    try:
        return [str(ipaddress.ip_address(host_ip.strip("[]")))]
    except ValueError:
        raise InvalidArgument(f"invalid host ip {host_ip}: give an IPv4 or IPv6 address") from None
