"""worker.network.dns: answers checked with dnslib, and that no bytes break it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.network import dns
from worker.network.endpoint import Attachment, Endpoint
from worker.network.network import Network

FRONT = Network("f" * 64, "front", "bridge", "now")
BACK = Network("b" * 64, "back", "bridge", "now", internal=True)
DEFAULT = Network("d" * 64, "bridge", "bridge", "now")


def endpoint(network: Network, ipv4: str, ipv6: str = "", **more) -> Endpoint:
    made = Endpoint(ipv4, network.id, network.name, "bridge", ipv4=ipv4, ipv6=ipv6, internal=network.internal)
    return replace(made, **more)


def container(name: str, *endpoints: Endpoint, **more) -> Attachment:
    return replace(Attachment(f"{name}id".ljust(64, "0"), name, "boot", endpoints, plugged="1"), **more)


CONTAINERS = [
    container("web1", endpoint(FRONT, "172.18.0.2", "fd00::2", aliases=("www",), service="web")),
    container("web2", endpoint(FRONT, "172.18.0.3", service="web")),
    container("web3", endpoint(FRONT, "172.18.0.4", service="web"), serving=False),
    container("db", endpoint(BACK, "172.19.0.2")),
    container("asker", endpoint(FRONT, "172.18.0.9", links=("web1:site",)), endpoint(BACK, "172.19.0.9")),
    container("created", endpoint(FRONT, "172.18.0.10"), plugged=""),
    container("plain", endpoint(DEFAULT, "172.17.0.2")),
]
VIEW = dns.view([FRONT, BACK, DEFAULT], CONTAINERS)


def ask(name: str, kind: str = "A", client: str = "172.18.0.9", turn: int = 0) -> dnslib.DNSRecord | None:
    query = dns.parse(dnslib.DNSRecord.question(name, kind).pack())
    assert query is not None
    found = dns.answer(query, VIEW, VIEW.clients[client], turn)
    return None if found is None else dnslib.DNSRecord.parse(found)


def addresses(name: str, kind: str = "A", **more) -> list[str] | None:
    found = ask(name, kind, **more)
    return None if found is None else [str(one.rdata) for one in found.rr]


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("web1", "A", ["172.18.0.2"]),
        ("WEB1.", "A", ["172.18.0.2"]),
        ("web1", "AAAA", ["fd00::2"]),
        ("web2", "AAAA", []),
        ("web1", "MX", []),
        ("www", "A", ["172.18.0.2"]),
        ("web1id000000", "A", ["172.18.0.2"]),
        ("site", "A", ["172.18.0.2"]),
        ("web", "A", ["172.18.0.2", "172.18.0.3"]),
        ("tasks.web", "A", ["172.18.0.2", "172.18.0.3"]),
        ("web1.front", "A", ["172.18.0.2"]),
        ("tasks.web.front", "A", ["172.18.0.2", "172.18.0.3"]),
        ("db", "A", ["172.19.0.2"]),
        ("web3", "A", ["172.18.0.4"]),
        ("db.front", "A", None),
        ("created", "A", None),
        ("plain", "A", None),
        ("example.org", "A", None),
    ],
)
def test_names_of_the_askers_networks(name: str, kind: str, wanted: list[str] | None):
    assert addresses(name, kind) == wanted


def test_another_networks_names_and_another_containers_links_are_unknown():
    assert addresses("db", client="172.18.0.2") is None
    assert addresses("db.back", client="172.18.0.2") is None
    assert addresses("site", client="172.18.0.2") is None


def test_the_replicas_of_a_service_are_rotated():
    assert [addresses("web", turn=turn)[0] for turn in range(4)] == ["172.18.0.2", "172.18.0.3"] * 2


def test_an_answer_is_a_proper_message():
    found = ask("web")
    assert found is not None
    assert (found.header.qr, found.header.aa, found.header.ra, found.header.rcode) == (1, 1, 1, 0)
    assert str(found.q.qname) == "web."
    assert {(str(one.rname), one.rtype, one.ttl) for one in found.rr} == {("web.", 1, dns.TTL)}


@pytest.mark.parametrize(("address", "name"), [("172.18.0.2", "web1.front."), ("fd00::2", "web1.front.")])
def test_reverse_names(address: str, name: str):
    assert addresses(ipaddress.ip_address(address).reverse_pointer, "PTR") == [name]


def test_reverse_names_of_other_networks_are_asked_upstream():
    assert addresses(ipaddress.ip_address("172.19.0.2").reverse_pointer, "PTR", client="172.18.0.2") is None
    assert addresses(ipaddress.ip_address("192.0.2.1").reverse_pointer, "PTR") is None
    assert addresses("nonsense.in-addr.arpa", "PTR") is None


def test_a_container_on_internal_networks_only_may_not_ask_out():
    assert VIEW.clients["172.19.0.2"].outward is False
    assert VIEW.clients["172.19.0.9"].outward is True


def test_an_answer_over_the_limit_is_cut_and_marked():
    many = [container(f"r{n}", endpoint(FRONT, f"172.18.1.{n}", service="big")) for n in range(1, 60)]
    view = dns.view([FRONT], many)
    for limit, cut in ((None, True), (1232, False)):
        question = dnslib.DNSRecord.question("big")
        if limit:
            question.add_ar(dnslib.EDNS0(udp_len=limit))
        query = dns.parse(question.pack())
        assert query is not None
        whole = dns.answer(query, view, view.clients["172.18.1.1"])
        assert whole is not None
        sent = dnslib.DNSRecord.parse(dns.truncated(query, whole))
        assert (bool(sent.header.tc), len(sent.rr)) == ((True, 0) if cut else (False, 59))


def test_failures_carry_the_question_and_the_code():
    question = dnslib.DNSRecord.question("example.org")
    failed = dnslib.DNSRecord.parse(dns.failure(question.pack(), dns.SERVER_FAILURE))
    assert (failed.header.id, failed.header.rcode, str(failed.q.qname)) == (question.header.id, 2, "example.org.")


@given(st.binary(max_size=64), st.sampled_from(["A", "PTR"]), st.integers(0, 60))
def test_no_bytes_break_the_parser(noise: bytes, kind: str, at: int):
    data = bytearray(dnslib.DNSRecord.question("web.front", kind).pack())
    data[at:at] = noise
    query = dns.parse(bytes(data))
    if query is not None:
        reply = dns.answer(query, VIEW, VIEW.clients["172.18.0.9"])
        assert reply is None or reply[:2] == bytes(data[:2])
    dns.failure(bytes(data), dns.FORMAT_ERROR)
    dns.parse(noise)
