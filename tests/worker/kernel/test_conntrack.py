"""worker.kernel.conntrack: a tracked flow's bytes. What forgetting does is shown in tests/worker/network/test_node.py."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from worker.kernel.conntrack import parse_flow
from worker.kernel.netlink_codec import attribute, nested


def message(protocol: int, source: bytes, destination: bytes, server: bytes) -> bytes:
    v6 = 2 if len(source) == 16 else 0
    ports = attribute(2, struct.pack(">H", 5555)), attribute(3, struct.pack(">H", 8080))
    transport = nested(2, attribute(1, bytes([protocol])), *ports)
    original = nested(1, nested(1, attribute(1 + v6, source), attribute(2 + v6, destination)), transport)
    reply = nested(2, nested(1, attribute(1 + v6, server), attribute(2 + v6, source)), transport)
    return struct.pack("=BBH", 10 if v6 else 2, 0, 0) + original + reply


@pytest.mark.parametrize(
    ("client", "node", "server"), [("192.0.2.2", "192.0.2.1", "172.17.0.2"), ("fd00::2", "fd00::1", "fd01::2")]
)
def test_a_udp_flow_says_where_it_was_sent_and_who_answers(client: str, node: str, server: str):
    ends = [ipaddress.ip_address(text) for text in (client, node, server)]
    body = message(17, *(one.packed for one in ends))
    flow = parse_flow(body)
    assert flow is not None
    assert (flow.destination, flow.port, flow.server) == (ends[1], 8080, ends[2])
    assert body.startswith(flow.key)


def test_other_protocols_and_broken_messages_are_no_flows():
    assert parse_flow(message(6, b"\1\2\3\4", b"\1\2\3\4", b"\1\2\3\4")) is None
    assert parse_flow(b"\2\0\0\0") is None
