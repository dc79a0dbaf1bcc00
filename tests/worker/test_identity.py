"""Joining: the token pins the CA before the secret is sent; addresses are tried in turn. What a node remembers survives."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from covey.errors import CoveyError, InvalidArgument, Unavailable
from covey.wire.messages import JoinReply, JoinRequest, Refused
from worker import identity
from worker.identity import Membership, with_port

sys.path.insert(0, str(Path(__file__).parent))

from scripted_manager import CLUSTER, Authority, Peer, port

AUTHORITY = Authority()
MANAGER = AUTHORITY.identity("m1", "manager")


async def admit(peer: Peer) -> None:
    """Take in whoever asks."""
    await peer.welcome(AUTHORITY.certificate)
    request = await peer.receive()
    assert isinstance(request, JoinRequest)
    assert request.token == AUTHORITY.token
    certificate = AUTHORITY.sign(request.request_pem, "w1")
    reply = JoinReply(
        node_id="w1",
        role="worker",
        certificate_pem=certificate,
        ca_pem=AUTHORITY.certificate,
        cluster_id=CLUSTER,
        managers=("10.0.0.1:2377",),
    )
    await peer.send(reply)


@pytest.mark.asyncio
async def test_a_node_gets_a_certificate_that_fits_its_own_key() -> None:
    async with port(MANAGER, admit) as address:
        found, reply = await identity.join([address], AUTHORITY.token, "w1", "active")
    assert (reply.node_id, reply.role, reply.managers) == ("w1", "worker", ("10.0.0.1:2377",))
    from covey.tls import client_context

    client_context(found)


@pytest.mark.asyncio
async def test_addresses_that_do_not_answer_are_passed_over() -> None:
    async with port(MANAGER, admit) as address:
        _, reply = await identity.join(["127.0.0.1:1", address], AUTHORITY.token, "w1", "active")
    assert reply.node_id == "w1"
    with pytest.raises(Unavailable, match=r"no manager answered \(127.0.0.1:1: .*Connection refused.*port 2377"):
        await identity.join(["127.0.0.1:1"], AUTHORITY.token, "w1", "active")


@pytest.mark.asyncio
@pytest.mark.parametrize("lie", ["another cluster", "another CA's words", "a worker"])
async def test_the_secret_is_never_sent_to_who_cannot_prove_the_cluster(lie: str) -> None:
    said: list[Any] = []
    other = Authority()
    server = {
        "another cluster": other.identity("m1", "manager"),
        "another CA's words": other.identity("m1", "manager"),
        "a worker": AUTHORITY.identity("w2", "worker"),
    }[lie]

    async def script(peer: Peer) -> None:
        await peer.welcome(other.certificate if lie == "another cluster" else AUTHORITY.certificate)
        said.append(await peer.receive())

    async with port(server, script) as address:
        with pytest.raises(CoveyError) as refusal:
            await identity.join([address], AUTHORITY.token, "w1", "active")
    assert refusal.value.status == 401
    assert not said


@pytest.mark.asyncio
async def test_a_refusal_is_told_in_the_manager_s_words() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(AUTHORITY.certificate)
        await peer.receive()
        await peer.send(Refused(status=401, message="invalid join token: it was rotated"))

    async with port(MANAGER, script) as address:
        with pytest.raises(CoveyError, match="it was rotated"):
            await identity.join([address], AUTHORITY.token, "w1", "active")


@pytest.mark.asyncio
async def test_bad_words_are_refused_before_anything_is_dialed() -> None:
    with pytest.raises(InvalidArgument, match="invalid join token"):
        await identity.join(["127.0.0.1:1"], "SWMTKN-2-x-y", "w1", "active")
    with pytest.raises(InvalidArgument, match="at least one address"):
        await identity.join([], AUTHORITY.token, "w1", "active")


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("10.0.0.1", "10.0.0.1:2377"),
        ("10.0.0.1:77", "10.0.0.1:77"),
        (" host ", "host:2377"),
        ("fd00::1", "[fd00::1]:2377"),
        ("[fd00::1]", "[fd00::1]:2377"),
        ("[fd00::1]:77", "[fd00::1]:77"),
    ],
)
def test_an_address_gets_the_cluster_port(given: str, full: str) -> None:
    assert with_port(given) == full


@pytest.mark.parametrize("given", ["", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:http"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgument):
        with_port(given)


def test_membership_survives_and_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.json"
    assert identity.load(path) is None
    first = Membership(node_id="n", role="worker", cluster_id="c", managers=("a:1",))
    identity.save(path, first)
    assert identity.load(path) == first
    identity.save(path, Membership(node_id="n", role="manager", cluster_id="c", managers=("b:1",)))
    found = identity.load(path)
    assert found is not None
    assert found.managers == ("b:1",)
    assert [entry.name for entry in path.parent.iterdir()] == ["node.json"]


@pytest.mark.asyncio
async def test_one_that_answers_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "JOIN_TIMEOUT", 0.2)

    async def script(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with port(MANAGER, script) as address:
        with pytest.raises(Unavailable, match="no manager answered"):
            await identity.join([address], AUTHORITY.token, "w1", "active")
