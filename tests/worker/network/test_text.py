"""worker.network.text: resolv.conf and hosts of a container."""

from __future__ import annotations

from dataclasses import replace

from worker.network.endpoint import Attachment, Endpoint
from worker.network.text import hosts, nameservers, resolv_conf

HOST = """\
# made by hand
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver fe80::1%eth0
nameserver junk
search lan example.org
options edns0
"""
BRIDGE = Endpoint("e", "n", "bridge", "bridge", ipv4="172.17.0.2", gateway4="172.17.0.1")
FRONT = replace(BRIDGE, network_name="front", ipv4="172.18.0.2", gateway4="172.18.0.1", resolver="172.18.0.1")


def attached(*endpoints: Endpoint) -> Attachment:
    return Attachment("c" * 64, "web", "boot", endpoints)


def test_the_nodes_servers_are_read_in_order():
    assert nameservers(HOST) == ["127.0.0.53", "192.0.2.53", "fe80::1"]


def test_the_default_bridge_gets_the_nodes_reachable_servers():
    assert resolv_conf(attached(BRIDGE), HOST) == (
        "nameserver 192.0.2.53\nnameserver fe80::1\nsearch lan example.org\noptions edns0\n"
    )
    assert resolv_conf(attached(BRIDGE), "nameserver 127.0.0.1\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_a_user_defined_network_gets_its_resolver():
    assert resolv_conf(attached(FRONT, BRIDGE), HOST, dns=["192.0.2.1"]) == (
        "nameserver 172.18.0.1\nsearch lan example.org\noptions edns0 ndots:0\n"
    )


def test_what_was_asked_for_replaces_what_the_node_has():
    text = resolv_conf(attached(BRIDGE), HOST, dns=["192.0.2.1"], search=["."], options=["ndots:3"])
    assert text == "nameserver 192.0.2.1\noptions ndots:3\n"


def test_the_host_network_keeps_the_nodes_file():
    assert resolv_conf(attached(Endpoint("e", "n", "host", "host")), HOST) == HOST


def test_hosts_names_the_container_on_each_network_and_the_extra_hosts():
    text = hosts(attached(FRONT, BRIDGE), "web1", "lan", ["gw:host-gateway", "db:192.0.2.7", "six=[fd00::7]"])
    lines = dict(reversed(line.split("\t")) for line in text.splitlines())
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert (lines["gw"], lines["db"], lines["six"]) == ("172.18.0.1", "192.0.2.7", "fd00::7")
    assert text.endswith("172.18.0.2\tweb1.lan web1\n172.17.0.2\tweb1.lan web1\n")


def test_a_container_without_network_still_has_its_name():
    assert hosts(attached(Endpoint("e", "n", "none", "null")), "web1").endswith("127.0.0.1\tweb1\n")
