"""A node, a neighbour on its wire and containers, each a network namespace held only by a descriptor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.worker.network.namespaces import Echo, Namespace, add_to, ask, cable, route
from worker.network.endpoint import Attachment, EndpointRequest, PortBinding
from worker.network.node_network import NodeNetwork

NODE, NEIGHBOUR = "192.0.2.1", "192.0.2.2"
NODE6, NEIGHBOUR6 = "2001:db8::1", "2001:db8::2"
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


class Wire:
    """The node's namespace and its neighbour's, joined by a cable; and what runs in containers."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.resolv_conf = data_dir / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {NEIGHBOUR}\n")
        self.node, self.neighbour = Namespace(), Namespace()
        cable(self.node, f"{NODE}/24", self.neighbour, f"{NEIGHBOUR}/24")
        add_to(self.node, "wan0", f"{NODE6}/64")
        add_to(self.neighbour, "wan0", f"{NEIGHBOUR6}/64")
        route(self.node, "0.0.0.0/0", NEIGHBOUR)
        self.containers: dict[str, Namespace] = {}
        self._echoes: list[Echo] = []

    def network(self) -> NodeNetwork:
        return NodeNetwork(self.data_dir / "network", namespace=self.node.path, host_resolv_conf=self.resolv_conf)

    async def run(
        self, net: NodeNetwork, name: str, *networks: str | EndpointRequest, ports: list[PortBinding] | None = None
    ) -> Attachment:
        """A container with an Echo on port 80, attached as ``name`` with the id ``<name>…``."""
        self.containers[name] = Namespace()
        requests = [one if isinstance(one, EndpointRequest) else EndpointRequest(one) for one in networks or ("bridge",)]
        made = await net.attach(container_id(name), name, self.containers[name].path, requests, ports or [])
        self.echo(self.containers[name], name)
        return made

    def echo(self, where: Namespace, name: str, port: int = 80) -> Echo:
        self._echoes.append(Echo(where, name, port))
        addresses = [one.address.ip for one in where.netlink(lambda netlink: netlink.addresses())]
        if any(one.version == 6 and not one.is_link_local and not one.is_loopback for one in addresses):
            self._echoes.append(Echo(where, name, port, address="::"))
        return self._echoes[-1]

    async def ask(self, source: str, address: str, port: int = 80, kind: int = STREAM, timeout: float = 3):
        """One exchange from the node, the neighbour or a container: (who answered, the client it saw)."""
        where = {"node": self.node, "neighbour": self.neighbour, **self.containers}[source]
        return await asyncio.to_thread(ask, where, address, port, kind, timeout)

    async def unanswered(self, source: str, address: str, port: int = 80, kind: int = STREAM) -> bool:
        """True if nothing comes back within 0.3 s (or at once an error does)."""
        try:
            await self.ask(source, address, port, kind, timeout=0.3)
        except OSError:
            return True
        return False

    def links(self) -> set[str]:
        """Names of the node's virtual links."""
        return {one.name for one in self.node.netlink(lambda netlink: netlink.links()) if one.kind}

    def close(self) -> None:
        for one in self._echoes:
            one.close()
        for namespace in (self.node, self.neighbour, *self.containers.values()):
            namespace.close()


def container_id(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


@pytest_asyncio.fixture
async def net(wire: Wire) -> AsyncIterator[NodeNetwork]:
    async with wire.network() as made:
        yield made
