"""Identities on the cluster port: join tokens, keys and certificate requests, TLS 1.3 contexts, who a peer is.

Used by both ends: workers (who cannot import the manager) and managers. It signs nothing: that is manager.ca's. It opens no
socket. cryptography is imported where it is used, because most processes need it only when they join.

How a worker joins: connect with ``pinning_context()`` (nothing verified yet), send ``Hello(purpose="join")``, take the CA from
``Welcome.ca_pem``, call ``check_pin(ca_pem, token, leaf)`` with the leaf the handshake proved, and only then send the token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from covey.errors import InvalidArgument, Unauthorized
from covey.ids import base36

TOKEN_PREFIX = "SWMTKN"
TOKEN_VERSION = "1"
DIGEST_DIGITS = 50
SECRET_DIGITS = 25

#: Organizational units of certificates, by role (SwarmKit ca/certificates.go).
UNITS = {"manager": "swarm-manager", "worker": "swarm-worker"}
ROLES = {unit: role for role, unit in UNITS.items()}


class Token(NamedTuple):
    """A join token taken apart: base-36 SHA-256 of the root CA's certificate, and the secret."""

    digest: str
    secret: str

    def __str__(self) -> str:
        return f"{TOKEN_PREFIX}-{TOKEN_VERSION}-{self.digest}-{self.secret}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a certificate of the cluster speaks for."""

    node_id: str
    role: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's key and certificate with the root CA they belong to, all PEM."""

    key_pem: str
    certificate_pem: str
    ca_pem: str

    @classmethod
    def load(cls, directory: Path) -> Identity | None:
        """The identity kept in ``directory`` (``node.key``, ``node.crt``, ``ca.crt``), or None when there is none."""
        try:
            return cls(*((directory / name).read_text() for name in ("node.key", "node.crt", "ca.crt")))
        except FileNotFoundError:
            return None

    def save(self, directory: Path) -> None:
        """Keep the identity in ``directory`` (0700), each file replaced atomically, the certificate last."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("ca.crt", self.ca_pem), ("node.key", self.key_pem), ("node.crt", self.certificate_pem)):
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, directory / name)


def parse_token(text: str) -> Token:
    """The token ``text`` says. Raises InvalidArgument for another shape."""
    parts = text.strip().split("-")
    if len(parts) != 4 or parts[:2] != [TOKEN_PREFIX, TOKEN_VERSION]:
        raise InvalidArgument(f"invalid join token: it looks like {TOKEN_PREFIX}-{TOKEN_VERSION}-…; see `cluster join-token`")
    digest, secret = parts[2:]
    if (len(digest), len(secret)) != (DIGEST_DIGITS, SECRET_DIGITS) or not (digest + secret).isalnum():
        raise InvalidArgument("invalid join token: a part of it is missing; see `cluster join-token`")
    return Token(digest, secret)


def ca_digest(ca_pem: str) -> str:
    """The token's digest of a root CA: SHA-256 over its certificate (DER), 50 base-36 digits."""
    der = ssl.PEM_cert_to_DER_cert(ca_pem)
    return base36(int.from_bytes(hashlib.sha256(der).digest()), DIGEST_DIGITS)


def make_key_and_request(common_name: str = "") -> tuple[str, str]:
    """A fresh ECDSA P-256 key and a PKCS #10 request for it, both PEM. The CA chooses the subject itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem.decode(), request.public_bytes(serialization.Encoding.PEM).decode()


def check_pin(ca_pem: str, token: Token, leaf_der: bytes | None) -> None:
    """Refuse unless ``ca_pem`` is the CA the token names and has signed ``leaf_der``, a manager's certificate.

    ``leaf_der`` is the certificate the TLS handshake was made with (``getpeercert(True)``), so its key is proven.
    Raises Unauthorized: somebody else answers at that address.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    try:
        if not hmac.compare_digest(ca_digest(ca_pem), token.digest):
            raise Unauthorized("remote CA does not match fingerprint: the token is of another cluster, or another host answers")
        if leaf_der is None:
            raise Unauthorized("the manager showed no certificate: is this the cluster port (2377)?")
        leaf = x509.load_der_x509_certificate(leaf_der)
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem.encode()))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Unauthorized(f"the manager's certificate is not of the cluster the token names: {error}") from None
    units = [str(attribute.value) for attribute in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    if units != [UNITS["manager"]]:
        raise Unauthorized(f"who answers is no manager of the cluster ({', '.join(units) or 'no role'}): check the address")


def renew_at(certificate_pem: str, fraction: float) -> float:
    """When to renew: at ``fraction`` (the caller draws 0.5 … 0.8) of the certificate's life, in seconds since the epoch."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return start + (end - start) * fraction


def pinning_context() -> ssl.SSLContext:
    """A client context for joining: TLS 1.3, nothing verified; ``check_pin`` must follow before anything secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """A client context of a node with a certificate. Names are not checked: call ``require_manager`` on the peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.ca_pem)
    load_chain(context, identity)
    return context


def server_context(identity: Identity) -> ssl.SSLContext:
    """The cluster port's context: TLS 1.3; a client certificate is optional (joining has none), but checked when shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=identity.ca_pem)
    load_chain(context, identity)
    return context


def peer_of(certificate: Mapping[str, Any] | None) -> Peer | None:
    """Who the verified certificate ``getpeercert()`` speaks for; None without one.

    Raises Unauthorized for a certificate without node, role and cluster.
    """
    if not certificate:
        return None
    subject = {name: value for part in certificate.get("subject", ()) for name, value in part}
    role = ROLES.get(subject.get("organizationalUnitName", ""), "")
    node_id, cluster_id = subject.get("commonName", ""), subject.get("organizationName", "")
    if not (role and node_id and cluster_id):
        raise Unauthorized("the certificate names no node, role and cluster: join the cluster again")
    return Peer(node_id=node_id, role=role, cluster_id=cluster_id)


def require_manager(certificate: Mapping[str, Any] | None) -> Peer:
    """As ``peer_of``, for a worker that has connected. Raises Unauthorized when the peer is no manager."""
    peer = peer_of(certificate)
    if peer is None or peer.role != "manager":
        raise Unauthorized("the peer is no manager of this cluster: check the manager's address")
    return peer


def load_chain(context: ssl.SSLContext, identity: Identity) -> None:
    """Give ``context`` the identity's key and certificate; handshakes from now on use them."""
    # OpenSSL's binding loads keys from files only; the file is private and gone before this returns.
    handle, path = tempfile.mkstemp(prefix="covey-identity-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(identity.key_pem.strip() + "\n" + identity.certificate_pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
