"""How a registry is reached: certificates, plain http where it may be, proxies; and the calls no pull or push makes."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from covey.credentials import ANONYMOUS
from worker.images.registry import connection, inquiries
from worker.images.registry.access import Registries
from worker.images.registry.connection import Connection, tls_context
from worker.images.registry.endpoints import Endpoint, RegistryOptions
from worker.images.registry.errors import RegistryError, Unreachable, Unsound
from worker.images.registry.repository import Repository

from .conftest import TIMING, Node
from .scripted import ScriptedRegistry, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]


def certificate(directory: Path) -> ssl.SSLContext:
    """A server's context with a certificate of its own for 127.0.0.1; the certificate lies in ``directory/ca.crt``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scripted")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "ca.crt", directory / "key.pem")
    return context


async def test_a_registry_on_this_machine_may_have_any_certificate(tmp_path: Path, node: Node) -> None:
    async with ScriptedRegistry(certificate(tmp_path)) as registry:
        registry.add("app", "v1", made())
        await node.pull(f"{registry.address}/app:v1")


async def test_a_certificate_is_checked_against_the_directory_of_its_registry(tmp_path: Path) -> None:
    async with ScriptedRegistry(certificate(tmp_path)) as registry, aiohttp.ClientSession() as session:
        image = made()
        registry.add("app", "v1", image)
        endpoint = Endpoint(f"https://{registry.address}")

        def repository(directories: tuple[Path, ...]) -> Repository:
            return Repository(Connection(session, endpoint, ANONYMOUS, TIMING, tls_context(endpoint, directories)), "app")

        with pytest.raises(Unreachable, match="tls: failed to verify certificate"):
            await repository(()).manifest("v1")
        place = tmp_path / "certs.d" / registry.address
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
        assert (await repository((tmp_path / "certs.d",)).manifest("v1")).digest == image.digest
        (place / "broken.crt").write_text("no certificate")
        with pytest.raises(RegistryError, match=f"cannot use the certificates in {place}"):
            repository((tmp_path / "certs.d",))


async def test_what_serves_over_plain_http_is_asked_so_at_once_the_next_time(registry: ScriptedRegistry, node: Node) -> None:
    registry.add("app", "v1", made())
    tried: list[str] = []
    real = node.registries.connection

    def noted(endpoint: Endpoint, *rest: object, **more: object) -> Connection:
        tried.append(endpoint.base.partition(":")[0])
        return real(endpoint, *rest, **more)  # type: ignore[arg-type]

    node.registries.connection = noted  # type: ignore[method-assign]
    for _ in range(2):
        await node.pull(f"{registry.address}/app:v1")
    assert tried == ["https", "http", "http"]


async def test_a_verified_registry_is_never_asked_over_plain_http(registry: ScriptedRegistry, node: Node) -> None:
    registry.add("app", "v1", made())
    async with aiohttp.ClientSession() as session:
        endpoint = Endpoint(f"https://{registry.address}")
        one = Repository(Connection(session, endpoint, ANONYMOUS, TIMING, tls_context(endpoint, ())), "app")
        with pytest.raises(Unreachable, match="tls"):
            await one.manifest("v1")
    assert registry.asked == []


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://reg.example/v2/", {"https_proxy": "http://proxy:1"}, "http://proxy:1"),
        ("http://reg.example/v2/", {"https_proxy": "http://proxy:1"}, None),
        ("https://127.0.0.1:5000/v2/", {"https_proxy": "http://proxy:1"}, None),
        ("https://a.lab.example/v2/", {"https_proxy": "http://proxy:1", "no_proxy": "lab.example"}, None),
        ("https://reg.example/v2/", {}, None),
    ],
)
async def test_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str, environ: dict[str, str], expected: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert connection._proxy(url) == expected


async def test_referrers(registry: ScriptedRegistry, node: Node) -> None:
    image, signature = made(), made({"s": b""})
    registry.add("app", "v1", image)
    endpoint = Endpoint(f"http://{registry.address}", verified=False, loopback=True)
    repository = Repository(node.registries.connection(endpoint, ANONYMOUS), "app")
    assert await repository.referrers(image.digest) == ()
    entry = {"mediaType": image.media_type, "digest": signature.digest, "size": 5, "artifactType": "application/sig"}
    other = {**entry, "artifactType": "application/sbom"}
    registry.referrers[image.digest] = [entry, other]
    assert [one.artifact_type for one in await repository.referrers(image.digest)] == ["application/sig", "application/sbom"]
    # The registry need not filter: it may leave that to us.
    assert [one.digest for one in await repository.referrers(image.digest, "application/sig")] == [signature.digest]


async def test_a_list_of_tags_that_does_not_end_is_given_up(registry: ScriptedRegistry, node: Node) -> None:
    from aiohttp import web

    async def again(asked: object, request: web.Request) -> web.StreamResponse:
        return web.json_response({"tags": ["a"]}, headers={"Link": f'<{request.path}>; rel="next"'})

    registry.fault = again
    endpoint = Endpoint(f"http://{registry.address}", verified=False, loopback=True)
    with pytest.raises(Unsound, match="does not end"):
        await Repository(node.registries.connection(endpoint, ANONYMOUS), "app").tags()


async def test_search_at_a_registry_that_has_one(registry: ScriptedRegistry, node: Node) -> None:
    from aiohttp import web

    rows = [{"name": f"app{stars}", "star_count": stars, "is_official": stars > 1, "description": None} for stars in (1, 2, 3)]

    async def serve(asked: object, request: web.Request) -> web.StreamResponse:
        assert request.path == "/v1/search"
        return web.json_response({"results": [*rows, 7, {"name": 7}], "query": request.rel_url.query["q"]})

    registry.fault = serve

    async def names(limit: int = 25, **filters: list[str]) -> list[str]:
        chosen = {name.replace("_", "-"): values for name, values in filters.items()}
        return [
            one["name"] for one in await inquiries.search(node.registries, f"{registry.address}/app", limit, chosen, ANONYMOUS)
        ]

    assert await names() == ["app1", "app2", "app3"]
    assert await names(limit=2) == ["app1", "app2"]
    assert await names(stars=["3"]) == ["app3"]
    assert await names(is_official=["false"]) == ["app1"]


async def test_credentials_of_the_daemon_s_own_file_serve_pulls_that_bring_none(
    registry: ScriptedRegistry, node: Node, tmp_path: Path
) -> None:
    import base64
    import json

    from worker.images import reference
    from worker.images.pull import Puller

    registry.user = ("user", "secret")
    registry.add("app", "v1", made())
    file = tmp_path / "config.json"
    async with Registries(RegistryOptions(certificates=(), timing=TIMING, config=file)) as registries:
        puller = Puller(node.store, registries)
        try:
            with pytest.raises(RegistryError, match="no basic auth credentials"):
                await puller.pull(reference.parse(f"{registry.address}/app:v1"))
            # Read at each pull: what is written there later counts.
            auth = base64.b64encode(b"user:secret").decode()
            file.write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
            await puller.pull(reference.parse(f"{registry.address}/app:v1"))
        finally:
            puller.close()
