"""A served Engine API on a Unix socket, and what its tests need around it."""

import datetime
import ipaddress

import pytest


@pytest.fixture
def socket_path(tmp_path_factory):
    """Short enough for the kernel, wherever pytest keeps its files."""
    return str(tmp_path_factory.mktemp("s") / "s")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with ca.pem, cert.pem, key.pem as DOCKER_CERT_PATH wants it; the pair serves both ends."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name, key, issuer, signer, extensions):
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            key.public_key(),
            x509.random_serial_number(),
            now - datetime.timedelta(hours=1),
            now + datetime.timedelta(hours=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    (folder / "ca.pem").write_bytes(
        certificate("root", root, "root", root, [x509.BasicConstraints(ca=True, path_length=None), usage])
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "cert.pem").write_bytes(certificate("client-1", key, "root", root, [names]))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder
