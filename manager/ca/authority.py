"""The cluster's certificate authority: makes the root, signs nodes' certificates. Knows no store and no connection.

Root: ECDSA P-256, 20 years. Nodes: 90 days, subject CN = node id, OU = swarm-manager | swarm-worker, O = cluster id, as
SwarmKit shapes them (ca/certificates.go). The subject is the authority's choice; of a request only its key is taken.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from covey.errors import InvalidArgument
from covey.tls import UNITS, Identity, make_key_and_request

if TYPE_CHECKING:
    from cryptography import x509

ROOT_LIFE = datetime.timedelta(days=20 * 365)
NODE_LIFE = datetime.timedelta(days=90)

#: Certificates begin in the past, so that a node whose clock is behind may use them.
BACKDATE = datetime.timedelta(hours=1)


def make_root(now: float) -> tuple[str, str]:
    """(key, self-signed certificate) of a new root, PEM. ``now``: seconds since the epoch."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")])
    start = _moment(now)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()


def sign_node(ca_key: str, ca_certificate: str, request_pem: str, node_id: str, role: str, cluster_id: str, now: float) -> str:
    """A node's certificate (PEM) for the key of ``request_pem``. Raises InvalidArgument for a request that is none."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        public = request.public_key()
        if not request.is_signature_valid:
            raise InvalidSignature
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InvalidArgument(f"certificate request of node {node_id} cannot be read: send PKCS #10 in PEM ({error})") from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise InvalidArgument(f"certificate request of node {node_id} is not for an elliptic curve key: make one on P-256")
    root = x509.load_pem_x509_certificate(ca_certificate.encode())
    signer = serialization.load_pem_private_key(ca_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    parts = (
        (NameOID.ORGANIZATION_NAME, cluster_id),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, UNITS[role]),
        (NameOID.COMMON_NAME, node_id),
    )
    start = _moment(now)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, value) for oid, value in parts]))
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(min(start + NODE_LIFE, root.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(UNITS[role]), x509.DNSName(node_id)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def make_identity(ca_key: str, ca_certificate: str, node_id: str, role: str, cluster_id: str, now: float) -> Identity:
    """A fresh key with its certificate: what a manager serves the cluster port with."""
    key_pem, request_pem = make_key_and_request(node_id)
    certificate = sign_node(ca_key, ca_certificate, request_pem, node_id, role, cluster_id, now)
    return Identity(key_pem=key_pem, certificate_pem=certificate, ca_pem=ca_certificate)


def trust_info(ca_certificate: str) -> dict[str, str]:
    """The Engine API's TLSInfo of the root: its PEM, its subject and public key as base64 of their DER."""
    import base64

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    root = x509.load_pem_x509_certificate(ca_certificate.encode())
    public = root.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "TrustRoot": ca_certificate,
        "CertIssuerSubject": base64.b64encode(root.subject.public_bytes()).decode(),
        "CertIssuerPublicKey": base64.b64encode(public).decode(),
    }


def _moment(now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(now), datetime.UTC)


def _usage(signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
