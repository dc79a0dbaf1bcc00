"""worker.network.topology: wanted against seen links."""

from __future__ import annotations

import ipaddress

import pytest

from worker.network.topology import Bridge, NameTaken, Operation, Seen, Wanted, missing_ports, operations

GATEWAY = ipaddress.ip_interface("172.18.0.1/16")
OTHER = ipaddress.ip_interface("172.19.0.1/16")
BRIDGE = Bridge("02:42:00:00:00:01", 1500, frozenset({GATEWAY}))
PORT = "cv01234567890"


def test_a_missing_bridge_is_made_then_addressed():
    assert operations(Wanted({"cv-a": BRIDGE}, {}), Seen()) == [
        Operation("bridge", "cv-a", BRIDGE),
        Operation("address", "cv-a", GATEWAY),
    ]


def test_what_agrees_needs_nothing():
    wanted = Wanted({"cv-a": BRIDGE}, {PORT: "cv-a"})
    seen = Seen({"cv-a": BRIDGE}, {PORT: "cv-a"}, owned=frozenset({"cv-a", PORT}))
    assert operations(wanted, seen) == []
    assert missing_ports(wanted, seen) == []


def test_differences_are_repaired_without_touching_the_bridge_itself():
    seen = Seen(
        {"cv-a": Bridge("02:42:00:00:00:09", 1400, frozenset({OTHER, ipaddress.ip_interface("fe80::1/64")}), up=False)},
        {PORT: ""},
        owned=frozenset({"cv-a", PORT}),
    )
    assert operations(Wanted({"cv-a": BRIDGE}, {PORT: "cv-a"}), seen) == [
        Operation("mac", "cv-a", BRIDGE.mac),
        Operation("mtu", "cv-a", 1500),
        Operation("up", "cv-a", True),
        Operation("unaddress", "cv-a", OTHER),
        Operation("address", "cv-a", GATEWAY),
        Operation("master", PORT, "cv-a"),
    ]


def test_only_links_of_ours_are_removed_ports_before_bridges():
    seen = Seen(
        {"cv-old": BRIDGE, "docker0": BRIDGE},
        {PORT: "cv-old", "veth1": "docker0"},
        owned=frozenset({"cv-old", PORT}),
    )
    assert operations(Wanted({}, {}), seen) == [Operation("delete", PORT), Operation("delete", "cv-old")]


def test_someone_elses_bridge_is_used_but_not_reshaped():
    theirs = Bridge("02:00:00:00:00:05", 9000, frozenset({OTHER}))
    assert operations(Wanted({"br0": BRIDGE}, {}), Seen({"br0": theirs})) == [Operation("address", "br0", GATEWAY)]


def test_a_name_held_by_another_kind_of_link_is_refused():
    with pytest.raises(NameTaken, match="eth0 exists and is no bridge"):
        operations(Wanted({"eth0": BRIDGE}, {}), Seen(others=frozenset({"eth0"})))


def test_a_port_whose_link_is_gone_is_named():
    assert missing_ports(Wanted({"cv-a": BRIDGE}, {PORT: "cv-a"}), Seen({"cv-a": BRIDGE})) == [PORT]
