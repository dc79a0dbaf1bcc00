"""worker.network.networks: the noun, its errors in Docker's words, and what survives a restart."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path

import pytest

from covey.errors import Conflict, CoveyError, Forbidden, InvalidArgument, NotFound, NotImplementedYet
from worker.network.endpoint import Attachment, BoundPort, EndpointRequest, Subnet
from worker.network.network import BRIDGE_NAME
from worker.network.networks import Networks, Occupied
from worker.network.records import boot_id

C1, C2 = "c1" * 32, "c2" * 32


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    made = Networks(tmp_path)
    made.load(Occupied())
    return made


def again(tmp_path: Path) -> Networks:
    made = Networks(tmp_path)
    made.load(Occupied())
    return made


def attach(networks: Networks, container_id: str, *requests: EndpointRequest) -> Attachment:
    endpoints = [networks.connect(container_id, one, f"eth{number}") for number, one in enumerate(requests)]
    ports = (BoundPort(80, "tcp", "0.0.0.0", 8080, "web"),)
    attachment = Attachment(container_id, "name", boot_id(), tuple(endpoints), ports, plugged="17")
    networks.keep(attachment)
    return attachment


def test_the_predefined_networks_are_there_and_stay_the_same(networks: Networks, tmp_path: Path):
    shapes = {one.name: (one.driver, one.bridge) for one in networks.networks.values()}
    assert shapes == {"bridge": ("bridge", "covey0"), "host": ("host", ""), "none": ("null", "")}
    assert networks.inspect("bridge")["IPAM"]["Config"] == [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    assert networks.find("default") is networks.find("bridge")
    assert again(tmp_path).networks == networks.networks


def test_a_node_that_uses_the_default_subnet_itself_gets_another(tmp_path: Path):
    made = Networks(tmp_path)
    made.load(Occupied(routes=[ipaddress.ip_network("172.17.0.0/16")]))
    assert made.find("bridge").subnets[0].subnet == "172.18.0.0/16"


def test_a_network_is_found_by_name_id_and_prefix_and_inspected_in_dockers_shape(networks: Networks):
    network = networks.create("front", labels={"a": "b"}, enable_ipv6=True)
    assert networks.find("front") == networks.find(network.id) == networks.find(network.id[:9]) == network
    assert network.bridge == f"cv-{network.id[:12]}"
    shown = networks.inspect("front")
    assert (shown["Driver"], shown["Scope"], shown["EnableIPv6"], shown["Labels"]) == ("bridge", "local", True, {"a": "b"})
    assert [one["Subnet"].partition("/")[2] for one in shown["IPAM"]["Config"]] == ["16", "64"]
    assert shown["Containers"] == {}


def test_exposed_is_who_has_names_or_ports_and_nobody_else(networks: Networks, tmp_path: Path):
    front = networks.create("front")
    published = attach(networks, C1, EndpointRequest("bridge"))
    assert set(networks.exposed) == {C1}
    networks.keep(replace(published, ports=()))
    assert networks.exposed == {}
    named = replace(attach(networks, C2, EndpointRequest(front.id)), ports=())
    networks.hold(named)
    assert networks.exposed == {C2: named}
    networks.keep(named)
    assert again(tmp_path).exposed == {C2: named}
    networks.forget(C2)
    assert networks.exposed == {}


@pytest.mark.parametrize(
    ("name", "options", "kind", "match"),
    [
        ("front", {}, Conflict, "network with name front already exists"),
        ("bridge", {}, Forbidden, "operation is not permitted on predefined bridge network"),
        ("bad name", {}, InvalidArgument, 'invalid network name "bad name"'),
        ("other", {"driver": "overlay"}, NotImplementedYet, "overlay driver"),
        ("other", {"driver": "weave"}, NotFound, 'plugin "weave" not found'),
        ("other", {"driver": "host"}, Forbidden, 'only one instance of "host" network is allowed'),
        ("other", {"ipam": [Subnet("172.18.0.0/24", "")]}, Forbidden, "Pool overlaps"),
        ("other", {"ipam": [Subnet("10.0.0.0/24", ""), Subnet("10.1.0.0/24", "")]}, InvalidArgument, "multiple subnets"),
        ("other", {"ipam": [Subnet("fd00::/64", "")]}, InvalidArgument, "--ipv6"),
        ("other", {"options": {BRIDGE_NAME: "covey0"}}, Forbidden, "networks have same bridge name"),
        ("other", {"options": {BRIDGE_NAME: "a name"}}, InvalidArgument, "link name"),
        ("other", {"options": {"com.docker.network.driver.mtu": "x"}}, InvalidArgument, "68 to 65535"),
    ],
)
def test_a_network_that_cannot_be_is_refused(networks: Networks, name, options, kind, match):
    networks.create("front")
    before = dict(networks.networks)
    with pytest.raises(kind, match=match):
        networks.create(name, **options)
    assert networks.networks == before


def test_a_network_in_use_or_predefined_is_not_removed(networks: Networks):
    network = networks.create("front")
    attachment = attach(networks, C1, EndpointRequest("front"))
    words = f"error while removing network: network front id {network.id} has active endpoints"
    with pytest.raises(Forbidden, match=words) as caught:
        networks.remove("front")
    assert attachment.endpoints[0].id[:12] in caught.value.message
    with pytest.raises(Forbidden, match="bridge is a pre-defined network and cannot be removed"):
        networks.remove("bridge")
    networks.forget(C1)
    networks.remove("front")
    with pytest.raises(NotFound, match="network front not found"):
        networks.find("front")


def test_an_endpoint_has_dockers_inspect_shape(networks: Networks):
    networks.create("front", ipam=[Subnet("10.5.0.0/24", "10.5.0.254")])
    request = EndpointRequest("front", ipv4="10.5.0.9", aliases=["www", "www"])
    endpoint = attach(networks, C1, request).endpoints[0]
    shown = endpoint.inspect(C1, "web")
    wanted = {
        "IPAMConfig": {"IPv4Address": "10.5.0.9"},
        "IPAddress": "10.5.0.9",
        "IPPrefixLen": 24,
        "Gateway": "10.5.0.254",
        "MacAddress": "02:42:0a:05:00:09",
        "Aliases": ["www"],
        "DNSNames": ["web", "www", C1[:12]],
        "NetworkID": networks.find("front").id,
    }
    assert {key: shown[key] for key in wanted} == wanted
    assert networks.inspect("front")["Containers"][C1]["IPv4Address"] == "10.5.0.9/24"
    assert len(endpoint.host_link) <= 15


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (EndpointRequest("bridge", ipv4="172.17.0.9"), "user defined networks only"),
        (EndpointRequest("front", ipv4="172.18.0.9"), "user configured subnets"),
        (EndpointRequest("own", ipv6="fd00::9"), "has no IPv6 subnet"),
        (EndpointRequest("own", mac="zz"), "invalid MAC address: zz"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(networks: Networks, request_: EndpointRequest, match: str):
    networks.create("front")
    networks.create("own", ipam=[Subnet("10.5.0.0/24", "")])
    with pytest.raises(InvalidArgument, match=match):
        networks.connect(C1, request_, "eth0")
    assert networks.leases("own") == {}


def test_a_lease_is_taken_back_when_the_other_family_has_none(networks: Networks):
    networks.create("tiny", ipam=[Subnet("10.5.0.0/24", ""), Subnet("fd05::/126", "")], enable_ipv6=True, options={})
    for number in range(2):
        networks.connect(str(number), EndpointRequest("tiny"), "eth0")
    with pytest.raises(CoveyError, match="no available IPv6 addresses"):
        networks.connect("late", EndpointRequest("tiny"), "eth0")
    assert "late" not in networks.leases("tiny").values()


def test_attachments_and_leases_come_back_after_a_restart(networks: Networks, tmp_path: Path):
    networks.create("front")
    one = attach(networks, C1, EndpointRequest("front", aliases=["a"]), EndpointRequest("bridge"))
    restarted = again(tmp_path)
    assert restarted.attachments == {C1: one}
    assert restarted.leases("front") == networks.leases("front") == {one.endpoints[0].ipv4: C1}
    two = attach(restarted, C2, EndpointRequest("front"))
    assert two.endpoints[0].ipv4 != one.endpoints[0].ipv4
    restarted.forget(C1)
    restarted.forget(C1)
    assert list(again(tmp_path).attachments) == [C2]


def test_an_attachment_of_another_boot_or_a_torn_record_means_nothing(networks: Networks, tmp_path: Path):
    attach(networks, C1, EndpointRequest("bridge"))
    path = tmp_path / "attachments" / f"{C1}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "boot": "another"}))
    (tmp_path / "attachments" / f"{C2}.json").write_text('{"version":1,"cont')
    restarted = again(tmp_path)
    assert restarted.attachments == {}
    assert restarted.leases("bridge") == {}
    assert not path.exists()


def test_a_cluster_network_keeps_the_id_it_was_given(networks: Networks):
    network = networks.create("stack_front", network_id="0123456789abcdefghijklmno", scope="swarm")
    assert (network.id, network.bridge) == ("0123456789abcdefghijklmno", "cv-0123456789ab")
    assert networks.inspect("stack_front")["Scope"] == "swarm"
    with pytest.raises(Conflict):
        networks.create("other", network_id="0123456789abcdefghijklmno")


def test_records_of_the_first_release_are_read(tmp_path: Path):
    """Golden bytes: later releases must read them."""
    made = Networks(tmp_path)
    (tmp_path / "networks" / f"{C1}.json").write_text(
        f'{{"id":"{C1}","name":"front","driver":"bridge","created":"2026-11-24T00:00:00Z","scope":"local","subnets":'
        '[{"subnet":"10.5.0.0/24","gateway":"10.5.0.1","ip_range":"","auxiliary":{}}],"bridge":"cv-front","internal":false,'
        '"attachable":true,"enable_ipv6":false,"options":{},"labels":{"a":"b"},"configured":true,"version":1}'
    )
    (tmp_path / "attachments" / f"{C2}.json").write_text(
        f'{{"container_id":"{C2}","name":"web","boot":"{boot_id()}","endpoints":[{{"id":"{C2}","network_id":"{C1}",'
        '"network_name":"front","driver":"bridge","interface":"eth0","host_link":"cvc2c2c2c2c2c","mac":"02:42:0a:05:00:02",'
        '"ipv4":"10.5.0.2","ipv4_prefix":24,"gateway4":"10.5.0.1","ipv6":"","ipv6_prefix":0,"gateway6":"","aliases":["www"],'
        '"links":[],"service":"web","gw_priority":0,"requested_ipv4":"","requested_ipv6":"","internal":false,'
        '"resolver":"10.5.0.1"}],"ports":[{"container_port":80,"protocol":"tcp","host_ip":"0.0.0.0","host_port":8080,'
        '"group":"web"}],"dns":[],"serving":true,"plugged":"17","version":1}'
    )
    made.load(Occupied())
    assert made.find("front").labels == {"a": "b"}
    assert made.attachments[C2].endpoints[0].aliases == ("www",)
    assert made.attachments[C2].ports == (BoundPort(80, "tcp", "0.0.0.0", 8080, "web"),)
    assert made.leases("front") == {"10.5.0.2": C2}
