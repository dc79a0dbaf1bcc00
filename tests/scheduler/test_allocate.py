"""Addresses and ports: unique, honoured where asked for, free again when their owner is gone."""

import ipaddress

from covey.model.objects import Cluster
from covey.model.task_states import TaskState as S
from scheduler.addresses import unique_local_prefix
from tests.scheduler.apply import World


def attached(*networks: str) -> dict[str, object]:
    return {"ContainerSpec": {"Image": "x"}, "Networks": [{"Target": name, "Aliases": ["a"]} for name in networks]}


def cluster() -> World:
    world = World()
    for number in range(3):
        world.node(f"n{number}")
    return world


def publishing(*ports: int, target: int = 80) -> dict[str, object]:
    return {"Ports": [{"TargetPort": target + at, "PublishedPort": port} for at, port in enumerate(ports)]}


def published(world: World, service: str) -> list[int]:
    return [port.published for port in world.snapshot.service_allocations[service].ports]


def message(world: World, service: str) -> str:
    return next(t.message for t in world.tasks(service) if t.state == S.NEW)


def test_networks_get_subnets_that_do_not_overlap() -> None:
    world = cluster()
    world.network("mine", IPAM={"Config": [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.9"}]})
    for number in range(4):
        world.network(f"net{number}")
    world.settle()
    given = {key: (n.subnets, n.gateways) for key, n in world.snapshot.network_allocations.items()}
    assert given == {
        "mine": (("10.0.1.0/24",), ("10.0.1.9",)),
        "net0": (("10.0.0.0/24",), ("10.0.0.1",)),
        "net1": (("10.0.2.0/24",), ("10.0.2.1",)),
        "net2": (("10.0.3.0/24",), ("10.0.3.1",)),
        "net3": (("10.0.4.0/24",), ("10.0.4.1",)),
    }
    assert len({n.vxlan_id for n in world.snapshot.network_allocations.values()}) == 5
    world.drop("network", "net1")
    world.network("later")
    world.settle()
    assert world.snapshot.network_allocations["later"].subnets == ("10.0.5.0/24",), "freed in the same pass at the soonest"


def test_pools_that_are_used_up_say_so() -> None:
    world = cluster()
    world.put(Cluster(id="c", address_pools=("10.9.0.0/24",), subnet_size=25), key="cluster")
    for number in range(3):
        world.network(f"net{number}")
    world.service("web", template=attached("net2"))
    world.settle()
    assert message(world, "web").startswith("no /25 subnet is left in the address pools 10.9.0.0/24 for network net2")
    world.drop("network", "net0")
    world.run()
    assert len(world.running("web")) == 1


def test_tasks_get_unique_addresses_behind_the_gateway() -> None:
    world = cluster()
    world.network("net", IPAM={"Config": [{"Subnet": "10.7.0.0/29"}]})
    world.service("web", replicas=7, template=attached("net"), EndpointSpec={"Mode": "dnsrr"})
    world.run()
    addresses = [t.networks[0].addresses[0] for t in world.running("web")]
    assert addresses == [f"10.7.0.{host}/29" for host in (2, 3, 4, 5, 6)]
    assert message(world, "web").startswith("every address of subnet 10.7.0.0/29 of network net is taken")
    assert world.running("web")[0].networks[0].aliases == ("a",)


def test_an_address_is_free_again_when_the_worker_says_the_task_is_over_and_not_before() -> None:
    world = cluster()
    world.network("net", IPAM={"Config": [{"Subnet": "10.7.0.0/30"}]})
    world.service("web", replicas=1, template=attached("net"), EndpointSpec={"Mode": "dnsrr"})
    world.run()
    node = world.running("web")[0].node_id
    world.drop("session", node)
    world.settle()
    world.now += 60
    world.run()
    assert not world.running("web"), "the lost container may still have the only address"
    world.session(node)
    world.run()
    assert len(world.running("web")) == 1
    world.report(world.running("web")[0].id, S.FAILED)
    world.run()
    world.now += 6
    world.run()
    assert len(world.running("web")) == 1


def test_a_network_that_does_not_exist_is_waited_for_by_name() -> None:
    world = cluster()
    world.service("web", template=attached("net"))
    world.settle()
    assert message(world, "web") == "waiting for network net, which does not exist: create it or update the service"
    world.network("net")
    world.run()
    assert len(world.running("web")) == 1


def test_networks_of_the_node_need_no_address() -> None:
    world = cluster()
    world.service("web", template=attached("host"))
    world.run()
    assert world.running("web")[0].networks == ()


def test_ports_are_chosen_kept_and_unique_by_protocol() -> None:
    world = cluster()
    world.service("web", EndpointSpec=publishing(0, 0))
    world.now += 1
    world.service("own", EndpointSpec=publishing(30001))
    world.service("udp", EndpointSpec={"Ports": [{"TargetPort": 53, "Protocol": "udp"}]})
    world.run()
    assert published(world, "web") == [30000, 30001]
    assert published(world, "udp") == [30000]
    assert message(world, "own") == "port 30001/tcp is already published by service web: choose another"
    world.service("web", EndpointSpec=publishing(0, 8080))
    world.run()
    assert published(world, "web") == [30000, 8080]
    assert published(world, "own") == [30001]
    assert len(world.running("own")) == 1


def test_the_range_of_ports_that_is_used_up_says_so() -> None:
    world = cluster()
    world.settings = type(world.settings)(last_port=30001)
    world.service("web", EndpointSpec=publishing(0, 0, 0))
    world.settle()
    assert message(world, "web").startswith("no tcp port is left between 30000 and 30001 for service web")


def test_a_service_that_publishes_nothing_any_more_gives_its_ports_back() -> None:
    world = cluster()
    world.service("web", EndpointSpec=publishing(8080))
    world.run()
    world.service("web")
    world.run()
    world.service("other", EndpointSpec=publishing(8080))
    world.run()
    assert published(world, "other") == [8080]
    assert len(world.running("other")) == 1


def test_a_service_has_an_address_of_its_own_in_each_network_for_as_long_as_it_is_there() -> None:
    world = cluster()
    for name in ("front", "back"):
        world.network(name)
    world.service("web", replicas=2, template=attached("front", "back", "host"))
    world.run()
    assert world.snapshot.service_allocations["web"].addresses == {"back": "10.0.0.2/24", "front": "10.0.1.2/24"}
    taken = {address for task in world.running("web") for given in task.networks for address in given.addresses}
    assert taken == {f"10.0.{net}.{host}/24" for net in (0, 1) for host in (3, 4)}
    world.service("web", replicas=2, template=attached("front"))
    world.run()
    assert world.snapshot.service_allocations["web"].addresses == {"front": "10.0.1.2/24"}, "what it has it keeps"
    world.service("other", template=attached("back"))
    world.run()
    assert world.snapshot.service_allocations["other"].addresses == {"back": "10.0.0.2/24"}, "what it gave up is free"
    world.service("web", replicas=2, template=attached("front"), EndpointSpec={"Mode": "dnsrr"})
    world.drop("service", "other")
    world.run()
    assert world.snapshot.service_allocations["web"].addresses == {}
    assert "other" not in world.snapshot.service_allocations


def test_a_network_of_both_families_gives_both_addresses_or_none() -> None:
    world = cluster()
    both = {"Config": [{"Subnet": "10.7.0.0/29"}, {"Subnet": "fd01::/126"}]}
    world.network("net", EnableIPv6=True, IPAM=both)
    world.service("web", replicas=3, template=attached("net"), EndpointSpec={"Mode": "dnsrr"})
    world.run()
    given = [task.networks[0].addresses for task in world.running("web")]
    assert given == [("10.7.0.2/29", "fd01::2/126"), ("10.7.0.3/29", "fd01::3/126")]
    assert message(world, "web").startswith("every address of subnet fd01::/126 of network net is taken")
    world.service("own", template=attached("net"), EndpointSpec={"Mode": "vip"})
    world.run()
    assert world.snapshot.service_allocations["own"].addresses == {"net": "10.7.0.4/29"}, "what was not given is not lost"


def test_an_ipv6_subnet_comes_from_the_clusters_own_prefix_or_its_pools() -> None:
    world = cluster()
    world.network("first", EnableIPv6=True)
    world.network("second", EnableIPv6=True, EnableIPv4=False)
    world.network("third", EnableIPv6=True, IPAM={"Config": [{"Subnet": "fd09::/64", "Gateway": "fd09::9"}]})
    world.settle()
    given = {key: held.subnets for key, held in world.snapshot.network_allocations.items()}
    prefix = unique_local_prefix("cluster1")
    assert (prefix.prefixlen, prefix.subnet_of(ipaddress.IPv6Network("fd00::/8"))) == (48, True)
    assert given["first"] == ("10.0.1.0/24", str(next(prefix.subnets(new_prefix=64))))
    assert given["second"] == (str(list(prefix.subnets(new_prefix=64))[1]),)
    assert given["third"] == ("fd09::/64", "10.0.0.0/24"), "who asks for a subnet comes first"
    assert world.snapshot.network_allocations["third"].gateways == ("fd09::9", "10.0.0.1")
    world.put(Cluster(id="c", address_pools=("10.9.0.0/16", "fd77::/63")), key="cluster")
    for number in range(3):
        world.network(f"more{number}", EnableIPv6=True)
    world.service("web", template=attached("more2"))
    world.settle()
    assert world.snapshot.network_allocations["more0"].subnets == ("10.9.0.0/24", "fd77::/64")
    assert message(world, "web").startswith("no /64 subnet is left in the address pools fd77::/63 for network more2")
    assert "more2" not in world.snapshot.network_allocations
    world.drop("network", "more0")
    world.run()
    assert world.snapshot.network_allocations["more2"].subnets == ("10.9.0.0/24", "fd77::/64"), (
        "nothing was kept of the attempt"
    )


def test_addresses_come_from_the_range_asked_for_and_leave_out_what_is_kept_for_others() -> None:
    world = cluster()
    kept = {"router": "10.7.0.9", "printer": "10.7.0.10"}
    config = {"Subnet": "10.7.0.0/24", "IPRange": "10.7.0.8/30", "Gateway": "10.7.0.1", "AuxiliaryAddresses": kept}
    world.network("net", IPAM={"Config": [config]})
    world.service("web", replicas=3, template=attached("net"), EndpointSpec={"Mode": "dnsrr"})
    world.run()
    assert [task.networks[0].addresses for task in world.running("web")] == [("10.7.0.8/24",), ("10.7.0.11/24",)]


def test_a_subnet_that_is_used_up_is_followed_by_the_networks_next() -> None:
    world = cluster()
    world.network("net", IPAM={"Config": [{"Subnet": "10.7.0.0/30"}, {"Subnet": "10.8.0.0/30"}]})
    world.service("web", replicas=3, template=attached("net"), EndpointSpec={"Mode": "dnsrr"})
    world.run()
    assert [task.networks[0].addresses for task in world.running("web")] == [("10.7.0.2/30",), ("10.8.0.2/30",)]
    assert message(world, "web").startswith("every address of subnets 10.7.0.0/30, 10.8.0.0/30 of network net is taken")


def test_vxlan_ids_are_unique_and_come_back() -> None:
    world = cluster()
    for number in range(3):
        world.network(f"net{number}")
    world.settle()
    assert sorted(held.vxlan_id for held in world.snapshot.network_allocations.values()) == [4097, 4098, 4099]
    world.drop("network", "net1")
    world.settle()
    world.network("later")
    world.settle()
    assert world.snapshot.network_allocations["later"].vxlan_id == 4098
    world.network("plain", Driver="bridge")
    world.settle()
    assert world.snapshot.network_allocations["plain"].vxlan_id == 0
