"""A node's network in a real kernel: published ports from everywhere, NAT, isolation, balance, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter

import pytest

from covey.errors import Conflict, CoveyError, Internal
from tests.worker.network.conftest import DATAGRAM, NEIGHBOUR, NEIGHBOUR6, NODE, NODE6, STREAM, Wire, container_id
from tests.worker.network.namespaces import Namespace, closing, route, wait_until
from worker.kernel.netlink import Netlink, in_namespace
from worker.kernel.netlink_codec import Link, create_bridge
from worker.kernel.nft import Nft
from worker.network.bridge import sysctl
from worker.network.endpoint import EndpointRequest, PortBinding, Subnet
from worker.network.network import ICC, MTU
from worker.network.node_network import NodeNetwork
from worker.network.port_ledger import PortAllocated
from worker.network.probe import kernel_problems

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
BOTH = [PortBinding(80, host_port=8080), PortBinding(80, "udp", host_port=8080)]


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
async def test_a_published_port_answers_everywhere_and_keeps_the_clients_address(wire: Wire, net: NodeNetwork, kind: int):
    await net.create_network("front")
    await wire.run(net, "web", ports=BOTH)
    await wire.run(net, "mate")
    await wire.run(net, "stranger", "front")
    seen = {
        (source, address): await wire.ask(source, address, 8080, kind)
        for source, address in [
            ("neighbour", NODE),
            ("neighbour", NODE6),
            ("node", NODE),
            ("node", "127.0.0.1"),
            ("node", "127.0.0.2"),
            ("node", "::1"),
            ("node", NODE6),
            ("web", NODE),
            ("mate", NODE),
            ("mate", "172.17.0.1"),
            ("stranger", NODE),
        ]
    }
    assert {name for name, _ in seen.values()} == {"web"}
    assert seen["neighbour", NODE] == ("web", NEIGHBOUR)
    assert seen["node", "127.0.0.1"] == ("web", "172.17.0.1")


async def test_a_chosen_host_address_answers_only_there(wire: Wire, net: NodeNetwork):
    made = await wire.run(
        net,
        "web",
        ports=[
            PortBinding(80, host_ip="127.0.0.1", host_port=8080),
            PortBinding(80, host_ip="::1", host_port=8081),
            PortBinding(80, host_ip=NODE, host_port=8082),
        ],
    )
    assert made.port_map() == {
        "80/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "8080"},
            {"HostIp": "::1", "HostPort": "8081"},
            {"HostIp": NODE, "HostPort": "8082"},
        ]
    }
    for address, port in (("127.0.0.1", 8080), ("::1", 8081), (NODE, 8082)):
        assert (await wire.ask("node", address, port))[0] == "web"
    assert await wire.ask("neighbour", NODE, 8082) == ("web", NEIGHBOUR)
    for source, address, port in (("neighbour", NODE, 8080), ("node", "127.0.0.1", 8082), ("neighbour", NODE6, 8081)):
        assert await wire.unanswered(source, address, port)


async def test_forged_packets_to_127_are_dropped_on_every_other_link(wire: Wire, net: NodeNetwork):
    """With route_localnet on, as the bridges have it, only the guard stands between a neighbour and 127.0.0.1."""
    await wire.run(net, "web")
    wire.node.run(sysctl, "ipv4/conf/wan0/route_localnet", "1")
    heard: list[bytes] = []
    with wire.node.socket(kind=DATAGRAM) as listener:
        listener.bind(("127.0.0.1", 9999))
        listener.setblocking(False)

        def hear() -> bool:
            with contextlib.suppress(BlockingIOError):
                heard.append(listener.recv(100))
            return bool(heard)

        def forge() -> None:
            _send_to_localhost(wire.neighbour, "wan0", NEIGHBOUR, wire.node, "wan0", b"from the wire")
            _send_to_localhost(wire.containers["web"], "eth0", "172.17.0.2", wire.node, "covey0", b"from a container")

        forge()
        with wire.node.socket(kind=DATAGRAM) as local:
            local.sendto(b"from the node", ("127.0.0.1", 9999))
        wait_until(hear, lambda: "the node's own packet did not come")
        assert heard == [b"from the node"]
        wire.node.run(_nft, "flush chain inet covey loopback_guard")
        forge()
        wait_until(lambda: hear() and len(heard) >= 3, lambda: f"without the guard they should come: {heard}")
        assert sorted(heard[1:]) == [b"from a container", b"from the wire"]


def _nft(commands: str) -> str:
    with Nft() as nft:
        return nft.run(commands)


def _send_to_localhost(source: Namespace, link: str, address: str, target: Namespace, target_link: str, data: bytes) -> None:
    """A UDP packet to 127.0.0.1:9999 on the wire, as no routing table would send it."""
    ends_of_wire = ((target, target_link), (source, link))
    macs = [side.netlink(lambda netlink, name=name: netlink.link(name).mac) for side, name in ends_of_wire]
    ends = socket.inet_aton(address) + socket.inet_aton("127.0.0.1")
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(data), 1, 0, 64, 17, 0) + ends
    total = sum(struct.unpack(">10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = head[:10] + struct.pack(">H", checksum) + head[12:] + struct.pack(">HHHH", 1234, 9999, 8 + len(data), 0) + data
    with source.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((link, 0x0800))
        raw.send(b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + b"\x08\x00" + packet)


async def test_containers_reach_each_other_and_the_world_but_not_another_bridge(wire: Wire, net: NodeNetwork):
    await net.create_network("front")
    await net.create_network("inside", internal=True)
    a = await wire.run(net, "a")
    b = await wire.run(net, "b")
    c = await wire.run(net, "c", "front")
    d = await wire.run(net, "d", "inside")
    await wire.run(net, "e", "inside")
    wire.echo(wire.neighbour, "world")
    wire.echo(wire.node, "node")
    assert await wire.ask("a", b.endpoints[0].ipv4) == ("b", a.endpoints[0].ipv4)
    assert await wire.ask("a", NEIGHBOUR) == ("world", NODE)
    assert await wire.ask("c", NEIGHBOUR) == ("world", NODE)
    assert (await wire.ask("a", "172.17.0.1"))[0] == "node"
    assert (await wire.ask("e", d.endpoints[0].ipv4))[0] == "d"
    assert await wire.unanswered("a", c.endpoints[0].ipv4)
    assert await wire.unanswered("c", a.endpoints[0].ipv4)
    route(wire.containers["d"], "0.0.0.0/0", "172.19.0.1", "eth0")
    route(wire.neighbour, "172.19.0.0/16", NODE)
    assert await wire.unanswered("d", NEIGHBOUR)
    assert await wire.unanswered("a", d.endpoints[0].ipv4)


async def test_a_port_that_is_not_published_cannot_be_reached_from_outside(wire: Wire, net: NodeNetwork):
    made = await wire.run(net, "web", ports=[PortBinding(80, host_ip="127.0.0.1", host_port=8080)])
    route(wire.neighbour, "172.17.0.0/16", NODE)
    assert await wire.unanswered("neighbour", made.endpoints[0].ipv4)
    wire.node.run(_nft, "flush chain inet covey forward_guard")
    assert (await wire.ask("neighbour", made.endpoints[0].ipv4))[0] == "web"


async def test_replicas_share_a_port_and_a_dead_one_leaves_at_once(wire: Wire, net: NodeNetwork):
    shared = [PortBinding(80, host_port=8080, group="web"), PortBinding(80, "udp", host_port=8080, group="web")]
    names = ["web1", "web2", "web3"]
    for name in names:
        await wire.run(net, name, ports=shared)

    async def tally(kind: int, address: str = NODE) -> Counter[str]:
        return Counter([(await wire.ask("neighbour", address, 8080, kind))[0] for _ in range(9)])

    for kind, address in ((STREAM, NODE), (DATAGRAM, NODE), (STREAM, NODE6)):
        counted = await tally(kind, address)
        assert set(counted) == set(names), (kind, address)
        assert max(counted.values()) <= 5, f"{counted}: in turn it is 3 each, but a UDP client's port may come again"
    with wire.neighbour.socket() as kept, wire.neighbour.socket(kind=DATAGRAM) as flow:
        kept.connect((NODE, 8080))
        flow.connect((NODE, 8080))
        for one in (kept, flow):
            one.send(b"who")
        first, of_flow = (one.recv(100).split()[0].decode() for one in (kept, flow))
        victim = next(name for name in names if name not in (first,))
        wire.containers[victim].close()
        await net.detach(container_id(victim))
        left = set(names) - {victim}
        assert set(await tally(STREAM)) == left
        kept.send(b"again")
        assert kept.recv(100).split()[0].decode() == first
        flow.send(b"again")
        answered = flow.recv(100).split()[0].decode()
        assert answered == of_flow if of_flow != victim else answered in left
    await net.serve(container_id(first), False)
    assert set(await tally(STREAM)) == left - {first}
    await net.serve(container_id(first), True)
    assert set(await tally(STREAM)) == left


async def test_a_service_that_stops_leaves_its_port_to_the_next_before_its_containers_end(wire: Wire, net: NodeNetwork):
    await wire.run(net, "old", ports=[PortBinding(80, host_port=8080, group="old")])
    next_one = [PortBinding(80, host_port=8080, group="next")]
    with pytest.raises(PortAllocated):
        await wire.run(net, "next", ports=next_one)
    await net.withdraw(container_id("old"))
    await wire.run(net, "new", ports=next_one)
    assert {(await wire.ask("neighbour", NODE, 8080, STREAM))[0] for _ in range(4)} == {"new"}
    await net.detach(container_id("old"))
    assert (await wire.ask("neighbour", NODE, 8080, STREAM))[0] == "new"


async def test_a_udp_client_that_never_falls_silent_finds_each_new_container(wire: Wire, net: NodeNetwork):
    """Its flow would keep the first mapping, or none, for as long as it talks."""
    with wire.neighbour.socket(kind=DATAGRAM) as client:
        client.settimeout(0.3)
        client.bind(("", 5555))
        client.connect((NODE, 8080))
        await wire.run(net, "idle")
        client.send(b"nobody listens yet")
        with pytest.raises(OSError, match=r"refused|timed out"):
            client.recv(100)
        for name in ("first", "second"):
            await wire.run(net, name, ports=[PortBinding(80, "udp", host_port=8080)])
            client.send(b"who")
            assert client.recv(100).split()[0].decode() == name
            await net.detach(container_id(name))


async def test_a_port_is_refused_when_a_container_or_a_process_has_it_and_nothing_leaks(wire: Wire, net: NodeNetwork):
    await wire.run(net, "web", ports=BOTH)
    words = r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"
    with pytest.raises(PortAllocated, match=words):
        await net.reserve(container_id("two"), "two", [EndpointRequest("bridge")], BOTH)
    with wire.node.socket() as other:
        other.bind(("127.0.0.1", 7070))
        other.listen()
        with pytest.raises(PortAllocated, match=r"Bind for 0\.0\.0\.0:7070 failed: port is already allocated"):
            await net.reserve(container_id("two"), "two", [EndpointRequest("bridge")], [PortBinding(80, host_port=7070)])
    assert await net.attachment(container_id("two")) is None
    assert list((await net.inspect_network("bridge"))["Containers"]) == [container_id("web")]
    for kind in (STREAM, DATAGRAM):
        with wire.node.socket(kind=kind) as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("0.0.0.0", 8080))
    await net.detach(container_id("web"))
    with wire.node.socket() as other:
        other.bind(("0.0.0.0", 8080))


async def test_a_free_host_port_is_found_and_the_same_for_both_families(wire: Wire, net: NodeNetwork):
    made = await wire.run(net, "web", ports=[PortBinding(80)])
    four, six = made.ports
    assert (four.host_port, four.host_ip, six.host_ip) == (six.host_port, "0.0.0.0", "::")
    assert 32768 <= four.host_port <= 60999
    assert (await wire.ask("node", "::1", six.host_port))[0] == "web"


async def test_ipv6_networks_are_answered_without_relay_and_nat_out(wire: Wire, net: NodeNetwork):
    await net.create_network("six", enable_ipv6=True)
    made = await wire.run(net, "web", "six", ports=BOTH)
    wire.echo(wire.neighbour, "world")
    for kind in (STREAM, DATAGRAM):
        assert await wire.ask("neighbour", NODE6, 8080, kind) == ("web", NEIGHBOUR6)
        assert (await wire.ask("node", "::1", 8080, kind))[0] == "web"
    assert await wire.ask("web", NEIGHBOUR6) == ("world", NODE6)
    assert made.endpoints[0].inspect()["GlobalIPv6PrefixLen"] == 64


async def test_networks_come_and_go_under_a_running_container(wire: Wire, net: NodeNetwork):
    await net.create_network("front", ipam=[Subnet("10.66.0.0/24", "10.66.0.254")], options={MTU: "1400"})
    await net.create_network("alpha")
    await wire.run(net, "web")
    await wire.run(net, "mate", "front")
    wire.echo(wire.neighbour, "world")
    web = wire.containers["web"]
    request = EndpointRequest("front", ipv4="10.66.0.7", aliases=["www"])
    made = await net.connect(container_id("web"), "web", request, web.path)
    assert [(one.interface, one.ipv4) for one in made.endpoints] == [("eth0", "172.17.0.2"), ("eth1", "10.66.0.7")]
    assert web.netlink(lambda netlink: netlink.link("eth1").mtu) == 1400
    assert (await wire.ask("mate", "10.66.0.7"))[0] == "web"
    with pytest.raises(CoveyError, match="already exists in network front"):
        await net.connect(container_id("web"), "web", request, web.path)
    await net.disconnect(container_id("web"), "bridge", web.path)
    assert await wire.ask("web", NEIGHBOUR) == ("world", NODE)
    await net.connect(container_id("web"), "web", EndpointRequest("alpha"), web.path)
    default = [one for one in web.netlink(lambda netlink: netlink.routes()) if one.destination.prefixlen == 0]
    assert [str(one.gateway) for one in default] == ["172.18.0.1"]
    with pytest.raises(CoveyError, match="is not connected to network bridge"):
        await net.disconnect(container_id("web"), "bridge", web.path)


async def test_a_network_too_small_for_ipv6_works(wire: Wire, net: NodeNetwork):
    await net.create_network("small", options={MTU: "1000"})
    await wire.run(net, "web", "small", ports=BOTH)
    assert await wire.ask("neighbour", NODE, 8080) == ("web", NEIGHBOUR)


async def test_containers_of_a_network_without_icc_do_not_see_each_other(wire: Wire, net: NodeNetwork):
    await net.create_network("apart", options={ICC: "false"})
    a = await wire.run(net, "a", "apart", ports=BOTH)
    await wire.run(net, "b", "apart")
    assert await wire.unanswered("b", a.endpoints[0].ipv4)
    assert (await wire.ask("neighbour", NODE, 8080))[0] == "a"


async def test_host_and_none_networks_make_no_link(wire: Wire, net: NodeNetwork):
    on_host = await net.attach(container_id("h"), "h", wire.node.path, [EndpointRequest("host")], BOTH)
    assert (on_host.ports, on_host.networks()["host"]["IPAddress"]) == ((), "")
    lonely = Namespace()
    with closing(lonely):
        await net.attach(container_id("n"), "n", lonely.path, [EndpointRequest("none")])
        assert lonely.netlink(lambda netlink: netlink.link("lo").up)
    with pytest.raises(Conflict, match="cannot be connected to host network and another network"):
        await net.reserve(container_id("x"), "x", [EndpointRequest("host"), EndpointRequest("bridge")])
    assert wire.node.netlink(lambda netlink: netlink.link("covey0")) is None


async def test_statistics_are_the_containers_view(wire: Wire, net: NodeNetwork):
    await wire.run(net, "web", ports=BOTH)
    before = (await net.statistics(container_id("web")))["eth0"]
    with wire.neighbour.socket(kind=DATAGRAM) as client:
        client.connect((NODE, 8080))
        client.send(b"x" * 1000)
        client.recv(2000)
    after = (await net.statistics(container_id("web")))["eth0"]
    assert set(after) == {f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")}
    assert after["rx_bytes"] - before["rx_bytes"] >= 1000
    assert after["rx_packets"] > before["rx_packets"]


async def test_a_process_is_plugged_by_its_pid(wire: Wire, net: NodeNetwork):
    own = os.readlink("/proc/self/ns/net")
    process = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "60")
    try:
        await asyncio.to_thread(
            wait_until, lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own, lambda: "unshare made no namespace"
        )
        made = await net.attach(container_id("web"), "web", process.pid, [EndpointRequest("bridge")])
        links = in_namespace(f"/proc/{process.pid}/ns/net", _links)
        assert [(one.name, one.up, one.mac) for one in links if one.kind] == [("eth0", True, made.endpoints[0].mac)]
    finally:
        process.kill()
        await process.wait()
    await asyncio.to_thread(wait_until, lambda: wire.links() == {"wan0", "covey0"}, wire.links)
    await net.detach(container_id("web"))


def _links() -> list[Link]:
    with Netlink() as netlink:
        return netlink.links()


async def test_a_failed_plug_says_why_and_leaves_nothing(wire: Wire, net: NodeNetwork):
    with pytest.raises(Internal, match=r"plug: .*No such file or directory"):
        await net.attach(container_id("web"), "web", "/nowhere", [EndpointRequest("bridge")], BOTH)
    assert await net.attachment(container_id("web")) is None
    assert wire.node.netlink(lambda netlink: [one.name for one in netlink.links() if one.kind == "veth"]) == ["wan0"]
    await wire.run(net, "web", ports=BOTH)


async def test_everything_goes_with_detach_remove_and_teardown(wire: Wire, net: NodeNetwork):
    await net.create_network("front")
    await net.create_network("back")
    await wire.run(net, "web", "front", ports=BOTH)
    await wire.run(net, "other")
    await net.detach(container_id("web"))
    await net.detach(container_id("web"))
    await net.remove_network("front")
    assert await net.prune_networks() == ["back"]
    assert not any(one.startswith("cv-") for one in wire.links())
    await asyncio.to_thread(wait_until, lambda: len(wire.links()) == 3, wire.links)
    await net.teardown()
    assert wire.links() == {"wan0"}
    assert wire.node.run(_nft, "list tables").strip() == ""


async def test_a_bridge_someone_made_is_used_and_kept(wire: Wire, net: NodeNetwork):
    wire.node.netlink(lambda netlink: netlink.run(create_bridge("br7", mac="02:00:00:00:00:07")))
    await net.create_network("front", options={"com.docker.network.bridge.name": "br7"})
    await wire.run(net, "web", "front", ports=BOTH)
    assert (await wire.ask("neighbour", NODE, 8080))[0] == "web"
    await net.detach(container_id("web"))
    await net.remove_network("front")
    assert wire.node.netlink(lambda netlink: netlink.link("br7").mac) == "02:00:00:00:00:07"


async def test_calls_at_once_give_each_container_its_own(wire: Wire, net: NodeNetwork):
    ids = [container_id(f"c{number}") for number in range(12)]
    made = await asyncio.gather(*(net.reserve(one, one[:6], [EndpointRequest("bridge")], [PortBinding(80)]) for one in ids))
    assert len({one.endpoints[0].ipv4 for one in made}) == 12
    assert len({one.ports[0].host_port for one in made}) == 12
    await asyncio.gather(*(net.detach(one) for one in ids))
    assert (await net.inspect_network("bridge"))["Containers"] == {}


async def test_this_kernel_has_what_is_needed():
    assert kernel_problems() == []
