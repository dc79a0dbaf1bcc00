"""The embedded resolver on real bridges: names, upstream servers, and who is served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import dnslib
import pytest

from tests.worker.network.conftest import DATAGRAM, NODE, STREAM, Wire, container_id
from tests.worker.network.namespaces import Namespace, route
from worker.network.endpoint import EndpointRequest
from worker.network.node_network import NodeNetwork

pytestmark = [pytest.mark.root, pytest.mark.asyncio]


class Upstream:
    """A server on the neighbour's port 53 that knows one address for every name."""

    def __init__(self, where: Namespace, address: str = "203.0.113.7") -> None:
        self.asked: list[str] = []
        self._address = address
        self._sockets = [where.socket(kind=DATAGRAM), where.socket()]
        for one in self._sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("0.0.0.0", 53))
            one.settimeout(None)
        self._sockets[1].listen()
        for serve in (self._datagrams, self._streams):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self, data: bytes) -> bytes:
        query = dnslib.DNSRecord.parse(data)
        self.asked.append(str(query.q.qname))
        reply = query.reply()
        reply.add_answer(dnslib.RR(query.q.qname, rdata=dnslib.A(self._address)))
        return bytes(reply.pack())

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError, dnslib.DNSError):
            while True:
                data, address = self._sockets[0].recvfrom(4096)
                self._sockets[0].sendto(self._answer(data), address)

    def _streams(self) -> None:
        with contextlib.suppress(OSError, dnslib.DNSError):
            while True:
                client, _ = self._sockets[1].accept()
                with client:
                    data = client.recv(4096)
                    reply = self._answer(data[2:])
                    client.sendall(struct.pack(">H", len(reply)) + reply)

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def upstream(wire: Wire) -> Iterator[Upstream]:
    made = Upstream(wire.neighbour)
    yield made
    made.close()


async def ask(where: Namespace, server: str, name: str, kind: int = DATAGRAM, record: str = "A") -> dnslib.DNSRecord:
    def exchange() -> dnslib.DNSRecord:
        question = dnslib.DNSRecord.question(name, record).pack()
        with where.socket(kind=kind) as client:
            client.connect((server, 53))
            if kind == STREAM:
                client.sendall(struct.pack(">H", len(question)) + question)
                return dnslib.DNSRecord.parse(client.recv(4096)[2:])
            client.send(question)
            return dnslib.DNSRecord.parse(client.recv(4096))

    return await asyncio.to_thread(exchange)


def found(reply: dnslib.DNSRecord) -> list[str]:
    return [str(one.rdata) for one in reply.rr]


@pytest.mark.parametrize("kind", [DATAGRAM, STREAM], ids=["udp", "tcp"])
async def test_containers_find_each_other_and_the_world(wire: Wire, net: NodeNetwork, upstream: Upstream, kind: int):
    await net.create_network("front")
    asker = await wire.run(net, "asker", "front")
    for name in ("web1", "web2"):
        await wire.run(net, name, EndpointRequest("front", service="web", aliases=["www"]))
    server = asker.endpoints[0].resolver
    inside = wire.containers["asker"]
    assert found(await ask(inside, server, "web1", kind)) == ["172.18.0.3"]
    for name in ("web", "tasks.web", "www"):
        assert sorted(found(await ask(inside, server, name, kind))) == ["172.18.0.3", "172.18.0.4"]
    assert found(await ask(inside, server, "3.0.18.172.in-addr.arpa", kind, "PTR")) == ["web1.front."]
    assert found(await ask(inside, server, "example.org", kind)) == ["203.0.113.7"]
    assert upstream.asked == ["example.org."]
    await net.detach(container_id("web1"))
    assert found(await ask(inside, server, "web", kind)) == ["172.18.0.4"]


async def test_a_containers_own_servers_are_asked_instead_of_the_nodes(wire: Wire, net: NodeNetwork, upstream: Upstream):
    await net.create_network("front")
    wire.containers["other"] = Namespace()
    for name, dns in (("own", ["192.0.2.2"]), ("dead", ["192.0.2.1"])):
        wire.containers[name] = Namespace()
        await net.reserve(container_id(name), name, [EndpointRequest("front")], dns=dns)
        await net.plug(container_id(name), wire.containers[name].path)
    wire.resolv_conf.write_text("nameserver 192.0.2.1\n")
    assert found(await ask(wire.containers["own"], "172.18.0.1", "example.org")) == ["203.0.113.7"]
    reply = await ask(wire.containers["dead"], "172.18.0.1", "example.org")
    assert dnslib.RCODE[reply.header.rcode] == "SERVFAIL"


async def test_outsiders_are_refused_and_internal_networks_do_not_ask_out(wire: Wire, net: NodeNetwork, upstream: Upstream):
    await net.create_network("front")
    await net.create_network("inside", internal=True)
    asker = await wire.run(net, "asker", "inside")
    route(wire.neighbour, "172.18.0.0/16", NODE)
    outside = await ask(wire.neighbour, "172.18.0.1", "example.org")
    assert dnslib.RCODE[outside.header.rcode] == "REFUSED"
    inside = await ask(wire.containers["asker"], asker.endpoints[0].resolver, "example.org")
    assert dnslib.RCODE[inside.header.rcode] == "SERVFAIL"
    assert upstream.asked == []


async def test_the_resolver_follows_networks_and_restarts(wire: Wire, upstream: Upstream):
    async with wire.network() as net:
        await net.create_network("front")
        await wire.run(net, "web", "front")
    async with wire.network() as net:
        await net.reconcile({container_id("web"): wire.containers["web"].path})
        assert found(await ask(wire.containers["web"], "172.18.0.1", "web")) == ["172.18.0.2"]
        await net.detach(container_id("web"))
        await net.remove_network("front")
        await net.create_network("again")
        await wire.run(net, "web", "again")
        assert found(await ask(wire.containers["web"], "172.18.0.1", "web.again")) == ["172.18.0.2"]
