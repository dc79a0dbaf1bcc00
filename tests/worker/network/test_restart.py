"""A daemon that comes back finds its network again, repairs what differs, and no flow notices."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from covey.errors import Conflict
from tests.worker.network.conftest import DATAGRAM, NODE, NODE6, Wire, container_id
from tests.worker.network.namespaces import Namespace, wait_until
from worker.kernel.netlink_codec import create_bridge, delete_address, delete_link
from worker.kernel.nft import Nft
from worker.network.endpoint import EndpointRequest, PortBinding
from worker.network.node_network import NodeNetwork
from worker.network.port_ledger import PortAllocated

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
PORTS = [PortBinding(80, host_port=8080, group="web"), PortBinding(80, "udp", host_port=8080, group="web")]


def _nft(commands: str) -> str:
    with Nft() as nft:
        return nft.run(commands)


def _live(wire: Wire) -> dict[str, int | str]:
    return {container_id(name): one.path for name, one in wire.containers.items()}


async def test_connections_live_through_a_restart_and_leases_and_ports_come_back(wire: Wire):
    async with wire.network() as net:
        first = await wire.run(net, "web", ports=PORTS)
    with wire.neighbour.socket() as kept:
        kept.connect((NODE, 8080))
        kept.send(b"while the daemon is away")
        assert kept.recv(100).split()[0] == b"web"
        links = wire.node.netlink(lambda netlink: netlink.links())
        async with wire.network() as net:
            assert await net.reconcile(_live(wire)) == []
            kept.send(b"after")
            assert kept.recv(100).endswith(b"after")
            assert (await net.attachment(container_id("web"))).endpoints == first.endpoints
            assert wire.node.netlink(lambda netlink: netlink.links()) == links
            with pytest.raises(PortAllocated, match="port is already allocated"):
                await net.reserve(container_id("x"), "x", [EndpointRequest("bridge")], [PortBinding(80, host_port=8080)])
            assert (await wire.ask("neighbour", NODE6, 8080))[0] == "web"
            assert (await wire.run(net, "two", ports=PORTS)).endpoints[0].ipv4 != first.endpoints[0].ipv4
            for address in (NODE6, NODE):
                answered = {(await wire.ask("neighbour", address, 8080))[0] for _ in range(4)}
                assert answered == {"web", "two"}


async def test_containers_that_ended_meanwhile_are_freed(wire: Wire):
    async with wire.network() as net:
        await wire.run(net, "web", ports=PORTS)
        await wire.run(net, "gone", ports=PORTS)
    wire.containers.pop("gone").close()
    async with wire.network() as net:
        await net.reconcile(_live(wire))
        assert list((await net.inspect_network("bridge"))["Containers"]) == [container_id("web")]
        assert {(await wire.ask("neighbour", NODE, 8080))[0] for _ in range(4)} == {"web"}
        await net.reconcile({})
        assert await wire.unanswered("neighbour", NODE, 8080)
        await asyncio.to_thread(wait_until, lambda: wire.links() == {"wan0", "covey0"}, wire.links)


async def test_differences_are_repaired_while_containers_run(wire: Wire):
    """Rules deleted, a bridge without address, a stray link of ours, a port taken off its bridge, a veth pair gone."""
    async with wire.network() as net:
        front = await net.create_network("front")
        web = await wire.run(net, "web", "front", ports=PORTS)
        cut = await wire.run(net, "cut", "front")
        bridge, group = wire.node.netlink(lambda netlink: (lambda one: (one, one.group))(netlink.link(f"cv-{front[:12]}")))
    address = ipaddress.ip_interface("172.18.0.1/16")
    wire.node.run(_nft, "delete table inet covey")
    wire.node.netlink(lambda netlink: netlink.run(delete_address(bridge.index, address)))
    wire.node.netlink(lambda netlink: netlink.run(create_bridge("cv-stray", group=group)))
    wire.node.netlink(lambda netlink: netlink.run(delete_link(cut.endpoints[0].host_link)))
    assert await wire.unanswered("neighbour", NODE, 8080)
    async with wire.network() as net:
        assert await net.reconcile(_live(wire)) == []
        assert (await wire.ask("neighbour", NODE, 8080))[0] == "web"
        assert (await wire.ask("cut", web.endpoints[0].ipv4))[0] == "web"
        assert (await wire.ask("web", cut.endpoints[0].ipv4))[0] == "cut"
        assert wire.node.netlink(lambda netlink: netlink.link("cv-stray")) is None


async def test_a_table_someone_emptied_is_written_anew_at_the_next_change(wire: Wire):
    async with wire.network() as net:
        await wire.run(net, "web", ports=PORTS)
        wire.node.run(_nft, "delete table inet covey")
        await wire.run(net, "two", ports=PORTS)
        assert {(await wire.ask("neighbour", NODE, 8080, DATAGRAM))[0] for _ in range(4)} == {"web", "two"}


async def test_a_lost_container_is_reported_not_fatal(wire: Wire):
    async with wire.network() as net:
        made = await wire.run(net, "web")
        wire.node.netlink(lambda netlink: netlink.run(delete_link(made.endpoints[0].host_link)))
    async with wire.network() as net:
        failures = await net.reconcile({container_id("web"): "/proc/1/ns/none"})
        assert len(failures) == 1
        assert failures[0].startswith(f"container {container_id('web')}: ")


async def test_a_second_reservation_is_a_conflict_and_two_daemons_do_not_touch_each_others_links(wire: Wire, tmp_path):
    async with wire.network() as net:
        await net.create_network("front")
        await wire.run(net, "web", "front", ports=PORTS)
        with pytest.raises(Conflict, match="attached to its networks already"):
            await net.reserve(container_id("web"), "web", [EndpointRequest("bridge")])
        async with NodeNetwork(tmp_path / "second", "covey2", default_bridge="covey9", namespace=wire.node.path) as other:
            await other.create_network("front")
            config = (await other.inspect_network("front"))["IPAM"]["Config"]
            assert config[0]["Subnet"] not in ("172.18.0.0/16", "172.17.0.0/16")
            lonely = Namespace()
            wire.containers["other"] = lonely
            await other.attach(container_id("o"), "o", lonely.path, [EndpointRequest("front")])
            await other.teardown()
        assert (await wire.ask("neighbour", NODE, 8080))[0] == "web"
