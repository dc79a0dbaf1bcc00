"""Tokens, certificates and contexts: who may join, who is believed, and what is pinned."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from covey import tls
from covey.errors import InvalidArgument, Unauthorized
from covey.model.objects import Cluster
from manager.ca import authority, tokens

NOW = 1_750_000_000.0
KEY, ROOT = authority.make_root(NOW)
OTHER_KEY, OTHER_ROOT = authority.make_root(NOW)


def cluster() -> Cluster:
    return Cluster(id="c1", ca_certificate=ROOT, ca_key=KEY, tokens=tokens.fresh_secrets())


def leaf(key: str, root: str, role: str) -> bytes:
    identity = authority.make_identity(key, root, "n1", role, "c1", NOW)
    return ssl.PEM_cert_to_DER_cert(identity.certificate_pem)


def test_a_token_has_swarms_shape_and_admits_its_role() -> None:
    held = cluster()
    for role in tokens.ROLES:
        text = tokens.token_of(held, role)
        prefix, version, digest, secret = text.split("-")
        assert (prefix, version, len(digest), len(secret)) == ("SWMTKN", "1", 50, 25)
        assert str(tls.parse_token(f" {text}\n")) == text
        assert tokens.admitted_role(held, text) == role


def test_a_rotated_token_admits_nobody_and_the_other_still_does() -> None:
    held = cluster()
    worker, manager = (tokens.token_of(held, role) for role in tokens.ROLES)
    rotated = tokens.rotate(held, ("worker",))
    with pytest.raises(Unauthorized):
        tokens.admitted_role(rotated, worker)
    assert tokens.admitted_role(rotated, manager) == "manager"
    assert tokens.admitted_role(rotated, tokens.token_of(rotated, "worker")) == "worker"


def test_the_right_secret_with_another_clusters_digest_is_refused() -> None:
    held = cluster()
    secret = tls.parse_token(tokens.token_of(held, "worker")).secret
    with pytest.raises(Unauthorized):
        tokens.admitted_role(held, str(tls.Token(tls.ca_digest(OTHER_ROOT), secret)))


@pytest.mark.parametrize(
    "text", ["", "SWMTKN-1-a-b", "SWMTKN-2-" + "0" * 50 + "-" + "0" * 25, "x" * 80, "SWMTKN-1-" + "0" * 76]
)
def test_what_is_no_token_is_refused_by_its_shape(text: str) -> None:
    with pytest.raises(InvalidArgument, match="join token"):
        tls.parse_token(text)


def test_certificates_say_node_role_and_cluster_and_last_ninety_days() -> None:
    identity = authority.make_identity(KEY, ROOT, "n1", "worker", "c1", NOW)
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem.encode())
    assert certificate.subject.rfc4514_string() == "CN=n1,OU=swarm-worker,O=c1"
    assert (certificate.not_valid_after_utc.timestamp() - NOW) == 90 * 86400
    assert NOW + 44 * 86400 < tls.renew_at(identity.certificate_pem, 0.5) < NOW + 46 * 86400
    root = x509.load_pem_x509_certificate(ROOT.encode())
    assert root.not_valid_after_utc.timestamp() - NOW == 20 * 365 * 86400
    certificate.verify_directly_issued_by(root)


def test_a_request_chooses_only_its_key() -> None:
    _, request = tls.make_key_and_request("somebody-else")
    signed = authority.sign_node(KEY, ROOT, request, "n1", "worker", "c1", NOW)
    assert "somebody-else" not in x509.load_pem_x509_certificate(signed.encode()).subject.rfc4514_string()
    with pytest.raises(InvalidArgument, match="n1"):
        authority.sign_node(KEY, ROOT, "garbage", "n1", "worker", "c1", NOW)
    broken = request.replace("M", "N", 1)
    with pytest.raises(InvalidArgument):
        authority.sign_node(KEY, ROOT, broken, "n1", "worker", "c1", NOW)


def test_the_pin_takes_a_manager_of_the_tokens_cluster_and_nobody_else() -> None:
    token = tls.parse_token(tokens.token_of(cluster(), "worker"))
    tls.check_pin(ROOT, token, leaf(KEY, ROOT, "manager"))
    for ca, certificate, why in (
        (OTHER_ROOT, leaf(OTHER_KEY, OTHER_ROOT, "manager"), "fingerprint"),
        (ROOT, leaf(OTHER_KEY, OTHER_ROOT, "manager"), "not of the cluster"),
        (ROOT, leaf(KEY, ROOT, "worker"), "no manager"),
        (ROOT, None, "no certificate"),
    ):
        with pytest.raises(Unauthorized, match=why):
            tls.check_pin(ca, token, certificate)


def test_an_identity_is_kept_private_and_read_back(tmp_path: Path) -> None:
    identity = authority.make_identity(KEY, ROOT, "n1", "worker", "c1", NOW)
    assert tls.Identity.load(tmp_path / "certificates") is None
    identity.save(tmp_path / "certificates")
    assert tls.Identity.load(tmp_path / "certificates") == identity
    assert (tmp_path / "certificates" / "node.key").stat().st_mode & 0o077 == 0


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = tls.peer_of(writer.get_extra_info("peercert"))
        writer.write(f"{peer.role if peer else 'nobody'} {writer.get_extra_info('ssl_object').version()}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.asyncio
async def test_the_cluster_port_believes_certificates_of_its_own_ca_only() -> None:
    long_ago = 1_700_000_000.0
    key, root = authority.make_root(_wall())
    manager = authority.make_identity(key, root, "m", "manager", "c1", _wall())
    worker = authority.make_identity(key, root, "w", "worker", "c1", _wall())
    expired = authority.make_identity(key, root, "w", "worker", "c1", long_ago)
    stranger = authority.make_identity(OTHER_KEY, OTHER_ROOT, "w", "worker", "c1", _wall())
    async with listening(tls.server_context(manager)) as port:

        async def ask(context: ssl.SSLContext) -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                return (await reader.read()).decode()
            finally:
                writer.close()

        assert await ask(tls.client_context(worker)) == "worker TLSv1.3"
        assert await ask(tls.pinning_context()) == "nobody TLSv1.3"
        for wrong in (expired, stranger):
            context = tls.client_context(tls.Identity(wrong.key_pem, wrong.certificate_pem, root))
            told = ""
            with contextlib.suppress(OSError):  # an alert, or the end of the connection: TLS 1.3 refuses after its handshake
                told = await ask(context)
            assert told == ""
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(tls.client_context(stranger))


def _wall() -> float:
    import time

    return time.time()
