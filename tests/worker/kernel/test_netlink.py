"""worker.kernel.netlink: the codec against hand-made bytes, the socket against the kernel."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

import pytest

from worker.kernel import netlink_codec as nl
from worker.kernel import syscalls
from worker.kernel.netlink import Netlink, in_namespace


def test_an_attribute_is_padded_to_four_bytes_and_says_its_own_length():
    assert nl.attribute(3, b"eth0\0") == b"\x09\x00\x03\x00eth0\0\0\0\0"


def test_attributes_are_read_back_without_flags():
    packed = nl.attribute(1, b"abc") + nl.nested(18, nl.attribute(1, b"veth\0"))
    found = list(nl.attributes(packed))
    assert found[0] == (1, b"abc")
    assert found[1][0] == 18
    assert list(nl.attributes(found[1][1])) == [(1, b"veth\0")]


def test_a_broken_attribute_list_ends_instead_of_looping():
    assert list(nl.attributes(b"\x00\x00\x01\x00rest")) == []


def test_a_message_carries_length_kind_flags_and_sequence():
    message = nl.delete_link("x")
    packed = message.pack(7)
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", packed)
    assert (length, kind, flags, sequence, port) == (len(packed), 17, 1 | 4, 7, 0)


@pytest.mark.parametrize("text", ["172.17.0.2/16", "fd00::2/64", "10.0.0.1/32"])
def test_an_address_survives_pack_and_parse(text: str):
    address = ipaddress.ip_interface(text)
    assert nl.parse_address(nl.add_address(4, address).body) == nl.LinkAddress(4, address)


@pytest.mark.parametrize(("destination", "gateway"), [("0.0.0.0/0", "172.17.0.1"), ("::/0", "fd00::1"), ("10.1.0.0/16", None)])
def test_a_route_survives_pack_and_parse(destination: str, gateway: str | None):
    wanted = nl.Route(ipaddress.ip_network(destination), ipaddress.ip_address(gateway) if gateway else None, 9, 254)
    assert nl.parse_route(nl.add_route(9, wanted.destination, wanted.gateway).body) == wanted


def test_a_link_survives_pack_and_parse():
    body = nl.create_bridge("covey0", mac="02:42:00:00:00:01", mtu=1400, group=5).body
    assert nl.parse_link(body) == nl.Link(0, "covey0", "bridge", "02:42:00:00:00:01", 1400, False, 0, 5)


def _in_new_namespace(function):
    def enter():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return function()

    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        return in_namespace(fd, enter)
    finally:
        os.close(fd)


@pytest.mark.root
def test_links_addresses_routes_and_neighbours_in_the_kernel():
    def work():
        with Netlink() as netlink:
            netlink.run(nl.create_bridge("b0", mac="02:42:00:00:00:01", mtu=1400, group=77))
            netlink.run(nl.change_link("b0", link_local=False), nl.change_link("b0", up=True))
            assert not any(one.address.version == 6 for one in netlink.addresses())
            bridge = netlink.link("b0")
            assert (bridge.kind, bridge.mac, bridge.mtu, bridge.up, bridge.group) == (
                "bridge",
                "02:42:00:00:00:01",
                1400,
                True,
                77,
            )
            netlink.run(nl.create_veth("v0", "v1", master=bridge.index, peer_mac="02:42:00:00:00:02"))
            netlink.run(nl.change_port("v0", hairpin=True, isolated=True), nl.change_link("v0", up=True))
            assert netlink.link("v0").master == bridge.index
            peer = netlink.link("v1")
            assert peer.mac == "02:42:00:00:00:02"
            netlink.run(nl.change_link(peer.index, name="eth0", mtu=1300))
            netlink.run(nl.change_link("eth0", up=True))
            assert (netlink.link("eth0").mtu, netlink.link("eth0").up, netlink.link("v1")) == (1300, True, None)
            for text in ("10.9.0.1/24", "fd09::1/64"):
                netlink.run(nl.add_address(peer.index, ipaddress.ip_interface(text)))
                assert nl.LinkAddress(peer.index, ipaddress.ip_interface(text)) in netlink.addresses()
            everywhere, gateway = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.9.0.254")
            netlink.run(nl.add_route(peer.index, everywhere, gateway))
            assert nl.Route(everywhere, gateway, peer.index, 254) in netlink.routes()
            netlink.run(nl.set_neighbour(peer.index, gateway, "02:42:00:00:00:09"))
            netlink.run(nl.delete_route(peer.index, everywhere, gateway))
            netlink.run(nl.delete_address(peer.index, ipaddress.ip_interface("10.9.0.1/24")))
            assert not any(route.destination == everywhere for route in netlink.routes())
            netlink.run(nl.delete_link("b0"), nl.delete_link("v0"))
            assert [link.name for link in netlink.links() if link.kind] == []

    _in_new_namespace(work)


@pytest.mark.root
def test_a_refusal_is_an_oserror_with_the_kernels_own_words():
    def work():
        with Netlink() as netlink:
            netlink.run(nl.create_bridge("b0"))
            with pytest.raises(OSError, match=r"change link b0: .* \(mtu greater than device maximum\)") as caught:
                netlink.run(nl.change_link("b0", mtu=100_000))
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(OSError, match="delete link nowhere") as gone:
                netlink.run(nl.delete_link("nowhere"))
            assert gone.value.errno == errno.ENODEV

    _in_new_namespace(work)


@pytest.mark.root
def test_the_first_refusal_of_several_requests_is_raised_and_the_socket_stays_usable():
    def work():
        with Netlink() as netlink:
            with pytest.raises(OSError, match="delete link nowhere"):
                netlink.run(nl.create_bridge("b0"), nl.delete_link("nowhere"), nl.delete_link("elsewhere"))
            assert netlink.link("b0") is not None
            with pytest.raises(OSError, match="delete link nowhere"):
                netlink.run(nl.delete_link("nowhere"), nl.create_bridge("b1"))
            assert netlink.link("b1") is not None

    _in_new_namespace(work)


@pytest.mark.root
def test_in_namespace_leaves_the_caller_where_it_was_and_hands_back_errors():
    before = os.readlink("/proc/thread-self/ns/net")

    def look():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return os.readlink("/proc/thread-self/ns/net")

    assert in_namespace("/proc/self/ns/net", look) != before
    assert os.readlink("/proc/thread-self/ns/net") == before
    with pytest.raises(ZeroDivisionError):
        in_namespace("/proc/self/ns/net", lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        in_namespace("/nowhere", look)


def test_a_link_local_address_is_made_from_the_mac():
    assert str(nl.link_local("02:42:ac:11:00:02")) == "fe80::42:acff:fe11:2/64"


def test_route_dumps_ask_for_one_family():
    assert nl.list_routes(socket.AF_INET6).body[0] == socket.AF_INET6
