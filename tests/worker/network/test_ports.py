"""worker.network.ports and balance: the nft table's text, and that differences lead where a whole table leads."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import replace

import pytest

from tests.worker.network.namespaces import Namespace
from worker.kernel.nft import Nft
from worker.network import balance
from worker.network.endpoint import Attachment, BoundPort, Endpoint
from worker.network.ports import BridgeRules, Published, changes, delete, flatten, render

ip = ipaddress.ip_address
FRONT = BridgeRules("covey0", (ipaddress.ip_network("172.17.0.0/16"), ipaddress.ip_network("fd00::/64")))
INSIDE = BridgeRules("cv-in", (ipaddress.ip_network("172.18.0.0/16"),), internal=True)


def published(port: int, *addresses: str, protocol: str = "tcp", host: str = "0.0.0.0") -> Published:
    return Published(protocol, ip(host), port, tuple((ip(address), 80) for address in addresses))


STATES = [
    ([], []),
    ([FRONT], []),
    ([FRONT], [published(8080, "172.17.0.2")]),
    ([FRONT, INSIDE], [published(8080, "172.17.0.2", "172.17.0.3", "172.17.0.4")]),
    ([FRONT], [published(8080, "172.17.0.3"), published(8080, "172.17.0.3", host="127.0.0.1")]),
    ([FRONT], [published(53, "172.17.0.3", protocol="udp"), published(9, "172.17.0.3", protocol="sctp")]),
    ([FRONT], [published(80, "fd00::2", "fd00::3", host="::"), published(81, "fd00::2", host="fd01::5")]),
]


def test_a_port_of_every_address_and_one_of_a_chosen_address_go_to_different_maps():
    flat = flatten([], [published(8080, "172.17.0.2"), published(8081, "172.17.0.2", host="192.0.2.1")])
    assert flat.elements["host_ports4"] == {"tcp . 8080 : goto port4_tcp_any_8080"}
    assert flat.elements["address_ports4"] == {"tcp . 192.0.2.1 . 8081 : goto port4_tcp_c0000201_8081"}


def test_several_backends_are_taken_in_turn_and_one_is_named():
    flat = flatten([], [published(1, "172.17.0.3", "172.17.0.2"), published(2, "172.17.0.9")])
    assert flat.chains["port4_tcp_any_1"] == (
        "meta l4proto tcp dnat ip to numgen inc mod 2 map { 0 : 172.17.0.2 . 80, 1 : 172.17.0.3 . 80 }"
    )
    assert flat.chains["port4_tcp_any_2"] == "meta l4proto tcp dnat ip to 172.17.0.9:80"


def test_a_port_nobody_answers_has_no_element():
    flat = flatten([], [published(8080), published(8080, "172.17.0.2", host="::")])
    assert flat.chains == {}
    assert not any(flat.elements.values())


def test_an_internal_bridge_has_no_way_out():
    flat = flatten([FRONT, INSIDE], [])
    assert flat.elements["outward4"] == {"172.17.0.0/16"}
    assert flat.elements["internal"] == {'"cv-in"'}
    assert flat.elements["within"] == {'"covey0" . "covey0"', '"cv-in" . "cv-in"'}


def test_the_same_state_needs_no_commands():
    for bridges, ports in STATES:
        assert changes("t", flatten(bridges, ports), flatten(bridges, reversed(ports))) == ""


def test_changes_delete_elements_before_chains_and_add_chains_before_elements():
    old = flatten([FRONT], [published(1, "172.17.0.2")])
    new = flatten([FRONT], [published(2, "172.17.0.2")])
    assert changes("t", old, new).splitlines() == [
        "delete element inet t host_ports4 { tcp . 1 : goto port4_tcp_any_1 }",
        "flush chain inet t port4_tcp_any_1",
        "delete chain inet t port4_tcp_any_1",
        "add chain inet t port4_tcp_any_2",
        "add rule inet t port4_tcp_any_2 meta l4proto tcp dnat ip to 172.17.0.2:80",
        "add element inet t host_ports4 { tcp . 2 : goto port4_tcp_any_2 }",
    ]


@pytest.mark.root
def test_every_difference_leads_to_the_same_table_as_writing_it_whole():
    def listing(nft: Nft) -> list[str]:
        return sorted(line.strip(" \t,") for line in nft.run("list table inet t").splitlines())

    def work():
        with Nft() as nft:
            nft.run(delete("t"))
            whole = {}
            for number, (bridges, ports) in enumerate(STATES):
                nft.run(render("t", flatten(bridges, ports)))
                whole[number] = listing(nft)
            order = [0, 3, 1, 4, 2, 5, 0, 6, 3, 6, 4, 3, 5, 1, 0]
            nft.run(render("t", flatten(*STATES[0])))
            for old, new in itertools.pairwise(order):
                nft.run(changes("t", flatten(*STATES[old]), flatten(*STATES[new])))
                assert listing(nft) == whole[new], f"from state {old} to {new}"
            nft.run(delete("t"))
            assert nft.run("list tables").strip() == ""

    namespace = Namespace()
    try:
        namespace.run(work)
    finally:
        namespace.close()


def attachment(name: str, address: str, *, plugged: str = "1", **more) -> Attachment:
    endpoint = Endpoint("e" + name, "n", "front", "bridge", "eth0", "cv" + name, ipv4=address, gateway4="172.17.0.1")
    port = BoundPort(80, "tcp", "0.0.0.0", 8080, "web")
    return replace(Attachment(name, name, "boot", (endpoint,), (port,), plugged=plugged), **more)


def test_the_set_of_a_port_holds_the_plugged_and_serving_containers_of_its_group():
    sets = balance.backends(
        [
            attachment("a", "172.17.0.2"),
            attachment("b", "172.17.0.3"),
            attachment("c", "172.17.0.4", plugged=""),
            attachment("d", "172.17.0.5", serving=False),
        ]
    )
    assert sets == {("tcp", "0.0.0.0", 8080): ((ip("172.17.0.2"), 80), (ip("172.17.0.3"), 80))}


def test_a_port_all_of_whose_containers_stopped_serving_stays_known_and_empty():
    assert balance.backends([attachment("a", "172.17.0.2", serving=False)]) == {("tcp", "0.0.0.0", 8080): ()}


def test_only_ipv6_keys_are_relayed():
    sets = {("tcp", "0.0.0.0", 1): (), ("tcp", "::", 1): (), ("udp", "::1", 2): (), ("sctp", "::", 3): ()}
    assert set(balance.relayed(sets)) == {("tcp", "::", 1), ("udp", "::1", 2)}
