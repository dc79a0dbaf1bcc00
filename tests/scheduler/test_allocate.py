"""Addresses and ports: unique, honoured where asked for, free again when their owner is gone."""

from covey.model.objects import Cluster
from covey.model.task_states import TaskState as S
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
    world.service("web", replicas=7, template=attached("net"))
    world.run()
    addresses = [t.networks[0].addresses[0] for t in world.running("web")]
    assert addresses == [f"10.7.0.{host}/29" for host in (2, 3, 4, 5, 6)]
    assert message(world, "web").startswith("every address of subnet 10.7.0.0/29 of network net is taken")
    assert world.running("web")[0].networks[0].aliases == ("a",)


def test_an_address_is_free_again_when_the_worker_says_the_task_is_over_and_not_before() -> None:
    world = cluster()
    world.network("net", IPAM={"Config": [{"Subnet": "10.7.0.0/30"}]})
    world.service("web", replicas=1, template=attached("net"))
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
