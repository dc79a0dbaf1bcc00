"""worker.network.ipam: subnets and addresses of a node."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import Forbidden, InvalidArgument, Unavailable
from worker.network.endpoint import Subnet
from worker.network.ipam import Pool, checked_subnet, choose_subnet, default_subnets, ula_subnets

net = ipaddress.ip_network


def pool(subnet: str = "172.17.0.0/16", **more) -> Pool:
    return Pool("front", Subnet(subnet, str(net(subnet)[1]), **more))


def test_the_default_pools_are_dockers():
    pools = list(default_subnets())
    assert [str(one) for one in pools[:2]] == ["172.17.0.0/16", "172.18.0.0/16"]
    assert [str(one) for one in pools[14:17]] == ["172.31.0.0/16", "192.168.0.0/20", "192.168.16.0/20"]
    assert len(pools) == 31


def test_a_subnet_avoids_other_networks_and_routes_but_not_the_default_route():
    taken = [net("0.0.0.0/0"), net("172.17.0.0/16"), net("172.18.3.0/24"), net("fd00::/8")]
    assert choose_subnet(default_subnets(), taken) == net("172.19.0.0/16")


def test_when_nothing_is_left_the_error_says_what_and_what_to_do():
    with pytest.raises(InvalidArgument, match=r"all predefined address pools have been fully subnetted.*31.*--subnet"):
        choose_subnet(default_subnets(), [net("172.16.0.0/12"), net("192.168.0.0/16")])


def test_ula_subnets_lie_in_the_nodes_own_prefix():
    first, second = itertools.islice(ula_subnets(0x123456789A), 2)
    assert (str(first), str(second)) == ("fd12:3456:789a::/64", "fd12:3456:789a:1::/64")


@pytest.mark.parametrize(
    ("given_subnet", "match"),
    [
        (Subnet("10.0.0.1/24", ""), "invalid subnet 10.0.0.1/24"),
        (Subnet("10.0.0.0/31", ""), "too small"),
        (Subnet("10.0.0.0/24", "10.0.1.1"), "invalid gateway 10.0.1.1"),
        (Subnet("10.0.0.0/24", "nonsense"), "invalid gateway nonsense"),
        (Subnet("10.0.0.0/24", "", "10.0.1.0/25"), "invalid ip-range 10.0.1.0/25"),
        (Subnet("10.0.0.0/24", "10.0.0.1", "", {"router": "10.1.0.9"}), "invalid router 10.1.0.9"),
    ],
)
def test_a_subnet_that_cannot_be_is_refused_by_name(given_subnet: Subnet, match: str):
    with pytest.raises(InvalidArgument, match=match):
        checked_subnet(given_subnet, [], [])


def test_a_users_subnet_may_not_overlap_a_network_or_a_link_of_the_node():
    with pytest.raises(Forbidden, match=r"Pool overlaps.*10\.0\.0\.0/16 of another network"):
        checked_subnet(Subnet("10.0.5.0/24", ""), [net("10.0.0.0/16")], [])
    with pytest.raises(Forbidden, match="this node is connected to"):
        checked_subnet(Subnet("10.0.0.0/8", ""), [], [net("10.0.5.0/24")])
    assert checked_subnet(Subnet("10.0.5.0/24", ""), [], []).gateway == "10.0.5.1"


def test_addresses_begin_behind_the_gateway_and_are_not_reused_at_once():
    addresses = pool()
    assert str(addresses.lease("a")) == "172.17.0.2"
    addresses.release("a")
    assert str(addresses.lease("b")) == "172.17.0.3"


def test_an_exhausted_pool_says_which_network_and_how_many():
    addresses = pool("10.0.0.0/29")
    assert [str(addresses.lease(str(number))) for number in range(5)] == [f"10.0.0.{number}" for number in range(2, 7)]
    with pytest.raises(Unavailable, match=r"no available IPv4 addresses.*network front, 10\.0\.0\.0/29 has 5 leases"):
        addresses.lease("late")
    addresses.release("3")
    assert str(addresses.lease("late")) == "10.0.0.5"


def test_a_wanted_address_is_given_once_and_only_inside_the_subnet():
    addresses = pool()
    assert str(addresses.lease("a", "172.17.9.9")) == "172.17.9.9"
    assert str(addresses.lease("a", "172.17.9.9")) == "172.17.9.9"
    with pytest.raises(Forbidden, match=r"Address already in use: 172.17.9.9 of network front is held by a"):
        addresses.lease("b", "172.17.9.9")
    with pytest.raises(Forbidden, match="held by the network itself"):
        addresses.lease("b", "172.17.0.1")
    with pytest.raises(InvalidArgument, match="does not belong to network front"):
        addresses.lease("b", "10.0.0.1")


def test_range_and_auxiliary_addresses_are_respected():
    addresses = pool("10.0.0.0/24", ip_range="10.0.0.128/30", auxiliary={"router": "10.0.0.129"})
    assert {str(addresses.lease(owner)) for owner in "abc"} == {"10.0.0.128", "10.0.0.130", "10.0.0.131"}
    with pytest.raises(Unavailable):
        addresses.lease("d")
    assert str(addresses.lease("d", "10.0.0.7")) == "10.0.0.7"


def test_restored_leases_are_held_and_new_ones_come_behind_them():
    addresses = pool()
    addresses.restore("old", "172.17.0.7")
    assert str(addresses.lease("new")) == "172.17.0.8"
    assert addresses.leases() == {"172.17.0.7": "old", "172.17.0.8": "new"}


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=60))
def test_no_address_is_ever_held_twice(steps):
    addresses = pool("10.0.0.0/28")
    held: dict[str, set[str]] = {}
    for owner, take in steps:
        if take:
            try:
                address = str(addresses.lease(owner))
            except Unavailable:
                assert sum(map(len, held.values())) == 13
                continue
            assert not any(address in other for other in held.values())
            held.setdefault(owner, set()).add(address)
        else:
            addresses.release(owner)
            held.pop(owner, None)
    assert addresses.leases() == {address: owner for owner, mine in held.items() for address in mine}
