"""The network of a node on the event loop: what containers and the agent call.

Blocking work runs in one dedicated thread (inside ``namespace`` if one is given, else the daemon's own); after each
change the resolver and the relays are brought in step. It decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from covey.errors import CoveyError
from worker.kernel import syscalls
from worker.network import balance
from worker.network.endpoint import Attachment, EndpointRequest, PortBinding, Subnet
from worker.network.networks import DEFAULT_BRIDGE
from worker.network.plumbing import Listening, Plumbing
from worker.network.relay import Relay
from worker.network.resolver import HOST_FILE, Resolver
from worker.network.spare import Spare

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
Inspect = dict[str, Any]
LINGER = 1.0


class NodeNetwork:
    """Networks, endpoints and published ports of one node.

    ``data_dir`` is ``<data>/network``; ``run_dir`` holds what means nothing after a reboot and may lie on a tmpfs (the same
    unless given); ``table`` is the nft table (inet), ``default_bridge`` the link of network "bridge".
    Use as ``async with``; leaving it stops resolver and relays but no container loses its links or ports.
    """

    def __init__(
        self,
        data_dir: Path,
        table: str = "covey",
        *,
        default_bridge: str = DEFAULT_BRIDGE,
        namespace: str | None = None,
        run_dir: Path | None = None,
        host_resolv_conf: Path = HOST_FILE,
    ) -> None:
        self._data_dir = data_dir
        self._run_dir = run_dir
        self._table = table
        self._default_bridge = default_bridge
        self._namespace = namespace
        self._thread = ThreadPoolExecutor(1, "network", initializer=self._enter_namespace)
        self._resolver = Resolver(self._make_socket, host_resolv_conf)
        self._relays: dict[balance.Key, Relay] = {}
        self._draining: list[Relay] = []
        self._refreshing = asyncio.Lock()
        self._plumbing: Plumbing | None = None
        self._retired = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    def _enter_namespace(self) -> None:
        if self._namespace is not None:
            fd = os.open(self._namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
            finally:
                os.close(fd)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Adopts what an earlier life left. Raises Internal with one clear line when the kernel lacks something."""
        loop = asyncio.get_running_loop()

        def begin() -> Plumbing:
            plumbing = Plumbing(self._data_dir, self._table, self._default_bridge, self._run_dir)
            try:
                plumbing.start()
            except BaseException:
                plumbing.close()
                raise
            return plumbing

        try:
            self._plumbing = await loop.run_in_executor(self._thread, begin)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        await self._refresh()
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """A while after a detach: removes links whose namespace did not go with its container."""
        while True:
            await self._retired.wait()
            await asyncio.sleep(LINGER)
            self._retired.clear()
            try:
                await self._read(Plumbing.sweep)
            except CoveyError as error:
                log.warning("links of ended containers stay until the next start: %s", error)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._resolver.close()
        for relay in (*self._relays.values(), *self._draining):
            await relay.close()
        self._relays.clear()
        if self._plumbing is not None:
            await self._read(Plumbing.close)
            self._plumbing = None
        self._thread.shutdown(wait=True)

    async def _read(self, function: Callable[Concatenate[Plumbing, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        plumbing = self._plumbing
        if plumbing is None:
            raise RuntimeError("the node network is not started")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(plumbing, *args, **kwargs))

    async def _change(self, function: Callable[Concatenate[Plumbing, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a change and follows it, also when the change failed half-way or its caller was cancelled."""

        def both(plumbing: Plumbing) -> tuple[T | None, BaseException | None, Listening]:
            try:
                return function(plumbing, *args, **kwargs), None, plumbing.listening()
            except Exception as fault:
                return None, fault, plumbing.listening()

        async def changed() -> tuple[T | None, BaseException | None]:
            async with self._refreshing:
                result, fault, wanted = await self._read(both)
                await self._follow(wanted)
                return result, fault

        result, fault = await asyncio.shield(changed())
        if fault is not None:
            raise fault
        return cast(T, result)

    async def _make_socket(self, family: int, kind: int) -> socket.socket:
        """A socket of the node's namespace (a socket belongs to the namespace of the thread that makes it)."""
        if self._namespace is None:
            return socket.socket(family, kind)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: socket.socket(family, kind))

    async def _refresh(self) -> None:
        """Resolver and relays follow the records."""
        async with self._refreshing:
            await self._follow(await self._read(Plumbing.listening))

    async def _follow(self, wanted: Listening) -> None:
        self._resolver.view = wanted.view
        for address in self._resolver.addresses - wanted.resolvers:
            self._resolver.ignore(address)
        for address in sorted(wanted.resolvers - self._resolver.addresses):
            try:
                await self._resolver.listen(address, *await self._read(_resolver_sockets, address))
            except OSError as error:
                log.error("names do not resolve on %s: port 53 cannot be bound (%s); stop what holds it", address, error)
        for key in self._relays.keys() - wanted.relays.keys():
            relay = self._relays.pop(key)
            relay.stop_accepting()
            self._draining = [one for one in self._draining if one.busy] + [relay]
        for key, backends in wanted.relays.items():
            if key not in self._relays:
                held = await self._read(Plumbing.relay_socket, key)
                if held is None:
                    continue
                self._relays[key] = Relay(held, self._make_socket)
                self._relays[key].start()
            self._relays[key].backends = backends

    async def create_network(
        self,
        name: str,
        driver: str = "bridge",
        ipam: Sequence[Subnet] = (),
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        *,
        internal: bool = False,
        attachable: bool = False,
        enable_ipv6: bool = False,
        network_id: str | None = None,
        scope: str = "local",
    ) -> str:
        """A new network's id. Raises InvalidArgument, Conflict, Forbidden, NotFound as Docker does."""
        return await self._change(
            Plumbing.create_network,
            name,
            driver,
            ipam,
            labels=labels,
            options=options,
            internal=internal,
            attachable=attachable,
            enable_ipv6=enable_ipv6,
            network_id=network_id,
            scope=scope,
        )

    async def list_networks(self) -> list[Inspect]:
        """Every network of the node in Docker's inspect shape."""
        return await self._read(
            lambda plumbing: [plumbing.networks.inspect(network_id) for network_id in list(plumbing.networks.networks)]
        )

    async def inspect_network(self, reference: str) -> Inspect:
        """By name, id or unambiguous prefix. Raises NotFound."""
        return await self._read(lambda plumbing: plumbing.networks.inspect(reference))

    async def remove_network(self, reference: str) -> None:
        """Raises Forbidden while containers are on it and for predefined networks, NotFound."""
        await self._change(Plumbing.remove_network, reference)

    async def prune_networks(self, matches: Callable[[Inspect], bool] = lambda _: True) -> list[str]:
        """Names of the removed networks: unused, not predefined, and accepted by ``matches``."""
        return await self._change(Plumbing.prune, matches)

    async def reserve(
        self,
        container_id: str,
        name: str,
        requests: Sequence[EndpointRequest],
        ports: Sequence[PortBinding] = (),
        *,
        dns: Sequence[str] = (),
    ) -> Attachment:
        """Addresses and host ports for a container that does not run yet: all, or an error and nothing.

        ``dns`` are the container's own upstream servers. Raises Docker's errors (port allocated, address in use, …).
        """
        return await self._change(Plumbing.reserve, container_id, name, requests, ports, dns)

    async def plug(self, container_id: str, where: int | str, spare: Spare | None = None) -> Attachment:
        """Links into the namespace of a pid (or a namespace path); published ports answer from now on.

        ``spare``: what ``prewire`` put there beforehand; it is used, or gone afterwards.
        """
        return await self._change(Plumbing.plug, container_id, where, spare)

    async def prewire(self, where: int | str) -> Spare | None:
        """A link made ahead in a namespace that a container will take over; None while no bridge is there to join."""
        return await self._read(Plumbing.prewire, where)

    async def discard(self, spare: Spare) -> None:
        """A spare whose namespace nobody takes over."""
        await self._read(Plumbing.discard, spare)
        self._retired.set()

    async def attach(
        self,
        container_id: str,
        name: str,
        where: int | str,
        requests: Sequence[EndpointRequest],
        ports: Sequence[PortBinding] = (),
    ) -> Attachment:
        """`reserve` and `plug`; nothing is left when either fails."""
        await self.reserve(container_id, name, requests, ports)
        try:
            return await self.plug(container_id, where)
        except BaseException:
            await self.detach(container_id)
            raise

    async def connect(
        self, container_id: str, name: str, request: EndpointRequest, where: int | str | None = None
    ) -> Attachment:
        """One more network for a container; ``where`` when it runs."""
        return await self._change(Plumbing.connect, container_id, name, request, where)

    async def disconnect(self, container_id: str, reference: str, where: int | str | None = None) -> Attachment:
        """One network less."""
        return await self._change(Plumbing.disconnect, container_id, reference, where)

    async def serve(self, container_id: str, serving: bool) -> None:
        """False takes a container out of balance (stopping, unhealthy) while its connections live on."""
        await self._change(Plumbing.serve, container_id, serving)

    async def withdraw(self, container_id: str) -> None:
        """Before a task's container is stopped: no new connection reaches it, and its service's ports may go to another."""
        await self._change(Plumbing.withdraw, container_id)

    async def detach(self, container_id: str) -> None:
        """Frees everything of a container: call it when its process ended. Safe to repeat."""
        await self._change(Plumbing.detach, container_id)
        self._retired.set()

    async def attachment(self, container_id: str) -> Attachment | None:
        """What the container holds now; None when nothing."""
        return await self._read(lambda plumbing: plumbing.networks.attachments.get(container_id))

    async def reconcile(self, live: Mapping[str, int | str]) -> list[str]:
        """Once after a start: the running containers and their pids. Frees the rest, repairs links; returns failures."""
        failures = await self._change(Plumbing.reconcile, live)
        self._retired.set()
        return failures

    async def statistics(self, container_id: str) -> dict[str, dict[str, int]]:
        """Interface → rx_bytes, rx_packets, rx_errors, rx_dropped and the same of tx, from the container's view."""
        return await self._read(Plumbing.statistics, container_id)

    async def teardown(self) -> None:
        """Removes all links and the nft table of this node (leaving a cluster, uninstalling)."""
        await self._change(Plumbing.teardown)


def _resolver_sockets(plumbing: Plumbing, address: str) -> tuple[socket.socket, socket.socket]:
    return plumbing.resolver_sockets(address)
