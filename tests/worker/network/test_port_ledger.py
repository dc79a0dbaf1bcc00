"""worker.network.port_ledger: who holds which host port. The binding of sockets is replaced; test_node has the real one."""

from __future__ import annotations

import errno

import pytest

from covey.errors import InvalidArgument
from worker.network.endpoint import BoundPort, PortBinding
from worker.network.port_ledger import EPHEMERAL, PortAllocated, PortLedger


class Node:
    """Stands for the node's sockets: ``busy`` ports belong to other processes."""

    def __init__(self, *busy: int) -> None:
        self.busy = set(busy)
        self.held: list[tuple[str, str, int]] = []

    def hold(self, protocol: str, host_ip: str, port: int):
        if port in self.busy:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.held.append((protocol, host_ip, port))


def test_a_binding_without_address_takes_both_families():
    node = Node()
    bound = PortLedger(node.hold).claim("a", [PortBinding(80, host_port=8080)])
    assert bound == (BoundPort(80, "tcp", "0.0.0.0", 8080), BoundPort(80, "tcp", "::", 8080))
    assert node.held == [("tcp", "0.0.0.0", 8080), ("tcp", "::", 8080)]


def test_a_port_of_another_container_or_process_is_refused_in_dockers_words():
    ledger = PortLedger(Node(9090).hold)
    ledger.claim("a", [PortBinding(80, host_port=8080)])
    words = (
        r"driver failed programming external connectivity on endpoint web \(e\): "
        r"Bind for 0\.0\.0\.0:{} failed: port is already allocated"
    )
    with pytest.raises(PortAllocated, match=words.format(8080)) as caught:
        ledger.claim("b", [PortBinding(80, host_port=8080)], label="web (e)")
    assert caught.value.status == 500
    with pytest.raises(PortAllocated, match=words.format(9090)):
        ledger.claim("b", [PortBinding(80, host_port=9090)], label="web (e)")


def test_a_failed_claim_holds_nothing():
    ledger = PortLedger(Node(9090).hold)
    with pytest.raises(PortAllocated):
        ledger.claim("a", [PortBinding(80, host_port=8080), PortBinding(81, host_port=9090)])
    ledger.claim("b", [PortBinding(80, host_port=8080)])


def test_protocols_and_addresses_are_apart_but_a_wildcard_excludes_an_address():
    ledger = PortLedger(Node().hold)
    ledger.claim("a", [PortBinding(80, host_port=8080, host_ip="127.0.0.1")])
    ledger.claim("b", [PortBinding(80, host_port=8080, host_ip="192.0.2.1")])
    ledger.claim("c", [PortBinding(80, "udp", host_port=8080)])
    ledger.claim("d", [PortBinding(80, host_port=8080, host_ip="[::1]")])
    with pytest.raises(PortAllocated, match=r"Bind for 0\.0\.0\.0:8080"):
        ledger.claim("e", [PortBinding(80, host_port=8080)])
    with pytest.raises(PortAllocated, match=r"Bind for \[::1\]:8080"):
        ledger.claim("e", [PortBinding(80, host_port=8080, host_ip="::1")])


def test_a_free_port_is_chosen_from_the_ephemeral_range_past_busy_ones():
    choices = iter([40000, 40001, 40002])
    ledger = PortLedger(Node(40000).hold, lambda: next(choices))
    assert {one.host_port for one in ledger.claim("a", [PortBinding(80)])} == {40001}
    assert {one.host_port for one in ledger.claim("b", [PortBinding(80)])} == {40002}
    assert range(32768, 61000) == EPHEMERAL


def test_a_range_takes_its_first_free_port():
    ledger = PortLedger(Node(7000, 7001).hold)
    assert ledger.claim("a", [PortBinding(80, host_port=7000, host_port_end=7003)])[0].host_port == 7002
    assert ledger.claim("b", [PortBinding(80, host_port=7000, host_port_end=7003)])[0].host_port == 7003
    with pytest.raises(PortAllocated):
        ledger.claim("c", [PortBinding(80, host_port=7000, host_port_end=7003)])


def test_a_group_shares_its_port_and_the_last_member_frees_it():
    node = Node()
    ledger = PortLedger(node.hold)
    for owner in "abc":
        ledger.claim(owner, [PortBinding(80, host_port=8080, group="web")])
    assert len(node.held) == 2
    with pytest.raises(PortAllocated):
        ledger.claim("x", [PortBinding(80, host_port=8080, group="other")])
    ledger.release("a")
    ledger.release("b")
    with pytest.raises(PortAllocated):
        ledger.claim("x", [PortBinding(80, host_port=8080)])
    ledger.release("c")
    ledger.claim("x", [PortBinding(80, host_port=8080)])


def test_a_group_without_a_chosen_port_shares_the_one_its_first_member_got():
    ledger = PortLedger(Node().hold)
    first = ledger.claim("a", [PortBinding(80, group="web"), PortBinding(443, group="web")])
    assert ledger.claim("b", [PortBinding(80, group="web"), PortBinding(443, group="web")]) == first
    assert len({one.host_port for one in first}) == 2


def test_ports_of_an_earlier_life_are_held_again_and_lost_ones_named():
    ledger = PortLedger(Node(9090).hold)
    bound = [BoundPort(80, "tcp", "0.0.0.0", 8080), BoundPort(81, "tcp", "0.0.0.0", 9090)]
    assert ledger.restore("a", bound) == ["0.0.0.0:9090/tcp (Address already in use)"]
    with pytest.raises(PortAllocated):
        ledger.claim("b", [PortBinding(80, host_port=8080)])
    ledger.release("a")
    ledger.claim("b", [PortBinding(80, host_port=8080)])


@pytest.mark.parametrize(
    ("binding", "match"),
    [
        (PortBinding(80, "icmp"), "invalid protocol icmp of port 80"),
        (PortBinding(0), "invalid container port 0"),
        (PortBinding(80, host_port=70000), "invalid host port 70000"),
        (PortBinding(80, host_ip="here"), "invalid host ip here"),
    ],
)
def test_a_binding_that_cannot_be_is_refused_by_name(binding: PortBinding, match: str):
    with pytest.raises(InvalidArgument, match=match):
        PortLedger(Node().hold).claim("a", [binding])
