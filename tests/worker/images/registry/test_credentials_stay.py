"""Logins reach the registry they are for and nobody else: not who it redirects to, not a mirror, not a foreign token server."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from aiohttp import web

from covey.credentials import ANONYMOUS, Credentials
from covey.errors import CoveyError, NotFound
from worker.images import reference
from worker.images.pull import Puller
from worker.images.registry import endpoints, inquiries
from worker.images.registry.access import Registries
from worker.images.registry.auth import Authorizer
from worker.images.registry.challenge import Challenge
from worker.images.registry.endpoints import Endpoint, RegistryOptions
from worker.images.registry.errors import NoCredentials, Refused, Unsound

from .conftest import TIMING, Node
from .scripted import Asked, ScriptedRegistry, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]

SECRET = base64.b64encode(b"user:secret").decode()


def authorizations(registry: ScriptedRegistry) -> set[str]:
    return {one.headers["Authorization"] for one in registry.asked if "Authorization" in one.headers}


async def test_basic_login(registry: ScriptedRegistry, node: Node, credentials: Credentials) -> None:
    registry.user = ("user", "secret")
    registry.add("app", "v1", made())
    with pytest.raises(NoCredentials, match="no basic auth credentials"):
        await node.pull(f"{registry.address}/app:v1")
    with pytest.raises(NoCredentials, match="does not take this user name and password"):
        await node.pull(f"{registry.address}/app:v1", Credentials("user", "wrong"))
    await node.pull(f"{registry.address}/app:v1", credentials)


async def test_token_login(registry: ScriptedRegistry, node: Node, credentials: Credentials) -> None:
    registry.user = ("user", "secret")
    registry.want_tokens()
    registry.add("team/app", "v1", made())
    with pytest.raises(Refused, match="incorrect username or password"):
        await node.pull(f"{registry.address}/team/app:v1")
    registry.asked.clear()
    await node.pull(f"{registry.address}/team/app:v1", credentials)
    (token,) = registry.of("GET", "/token")
    assert (token.query["scope"], token.query["service"]) == ("repository:team/app:pull", "scripted")
    assert token.headers["Authorization"] == f"Basic {SECRET}"
    assert all(one.headers["Authorization"].startswith("Bearer ") for one in registry.of("GET", "/blobs/"))


async def test_an_anonymous_token_carries_no_login(registry: ScriptedRegistry, node: Node) -> None:
    registry.want_tokens()
    registry.add("app", "v1", made())
    await node.pull(f"{registry.address}/app:v1")
    assert "Authorization" not in registry.of("GET", "/token")[0].headers


async def test_a_registry_token_is_sent_as_it_is(registry: ScriptedRegistry, node: Node) -> None:
    registry.want_tokens()
    assert registry.tokens is not None
    registry.tokens.add("given")
    registry.add("app", "v1", made())
    await node.pull(f"{registry.address}/app:v1", Credentials(registry_token="given"))
    assert authorizations(registry) == {"Bearer given"}
    with pytest.raises(NoCredentials, match="registry token"):
        await node.pull(f"{registry.address}/app:v1", Credentials(registry_token="stale"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("tokens", [False, True])
async def test_who_the_registry_redirects_to_gets_no_login(
    registry: ScriptedRegistry, node: Node, credentials: Credentials, status: int, tokens: bool
) -> None:
    image = made()
    registry.add("app", "v1", image)
    registry.user = ("user", "secret")
    if tokens:
        registry.want_tokens()
    async with ScriptedRegistry() as store:
        store.add("app", "v1", image)

        async def redirect(asked: Asked, request: web.Request) -> web.StreamResponse | None:
            if not asked.blob or "Authorization" not in asked.headers:
                return None
            return web.Response(status=status, headers={"Location": f"http://{store.address}{asked.path}?signature=s%2Fs"})

        registry.fault = redirect
        pulled = await node.pull(f"{registry.address}/app:v1", credentials)
        assert pulled.image.id == image.config
        assert len(store.asked) == 2
        assert authorizations(store) == set()
        assert {one.query["signature"] for one in store.asked} == {"s/s"}


async def test_who_it_redirects_to_cannot_ask_for_the_login(
    registry: ScriptedRegistry, node: Node, credentials: Credentials
) -> None:
    image = made()
    registry.add("app", "v1", image)
    async with ScriptedRegistry() as thief:
        thief.user = ("x", "y")
        thief.add("app", "v1", image)

        async def redirect(asked: Asked, request: web.Request) -> web.StreamResponse | None:
            where = {"Location": f"http://{thief.address}{asked.path}"}
            return web.Response(status=307, headers=where) if asked.blob else None

        registry.fault = redirect
        with pytest.raises(Refused, match="authentication required"):
            await node.pull(f"{registry.address}/app:v1", credentials)
        assert authorizations(thief) == set()


async def test_a_login_comes_back_with_the_way_back(registry: ScriptedRegistry, node: Node, credentials: Credentials) -> None:
    """Redirected to another and by it to the registry again, the login goes to the registry alone."""
    image = made()
    registry.add("app", "v1", image)
    registry.user = ("user", "secret")
    async with ScriptedRegistry() as between:

        async def there(asked: Asked, request: web.Request) -> web.StreamResponse | None:
            if not asked.blob or asked.query.get("back"):
                return None
            return web.Response(status=307, headers={"Location": f"http://{between.address}{asked.path}"})

        async def back(asked: Asked, request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=307, headers={"Location": f"http://{registry.address}{asked.path}?back=1"})

        registry.fault, between.fault = there, back
        await node.pull(f"{registry.address}/app:v1", credentials)
        assert authorizations(between) == set()


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://", "", "//"])
async def test_a_redirect_to_nowhere_is_refused(registry: ScriptedRegistry, node: Node, location: str) -> None:
    registry.add("app", "v1", made())

    async def redirect(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=307, headers={"Location": location} if location else {}) if asked.blob else None

    registry.fault = redirect
    with pytest.raises(CoveyError):
        await node.pull(f"{registry.address}/app:v1")
    assert node.files() == set()


async def test_redirects_have_an_end(registry: ScriptedRegistry, node: Node) -> None:
    registry.add("app", "v1", made())

    async def again(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=302, headers={"Location": asked.path}) if asked.blob else None

    registry.fault = again
    with pytest.raises(Unsound, match="redirects more than 10 times"):
        await node.pull(f"{registry.address}/app:v1")


async def test_a_mirror_gets_no_login_and_a_dead_one_is_passed_over(
    registry: ScriptedRegistry, node: Node, monkeypatch: pytest.MonkeyPatch, credentials: Credentials
) -> None:
    image = made()
    async with ScriptedRegistry() as hub:
        hub.add("library/app", "v1", image)
        hub.user = ("user", "secret")
        monkeypatch.setattr(endpoints, "HUB", hub.address)
        options = RegistryOptions(mirrors=("http://127.0.0.1:1", f"http://{registry.address}"), certificates=(), timing=TIMING)
        async with Registries(options) as registries:
            puller = Puller(node.store, registries)
            try:
                pulled = await puller.pull(reference.parse("app:v1"), auth=credentials)
                assert pulled.image.repo_tags == ("app:v1",)
                assert authorizations(registry) == set()
                assert authorizations(hub) == {f"Basic {SECRET}"}
                hub.asked.clear()
                registry.add("library/app", "v1", image)
                await puller.pull(reference.parse("app:v1"), auth=credentials)
                assert hub.asked == []
            finally:
                puller.close()


async def test_a_digest_from_a_mirror_that_lies_comes_from_the_registry(
    registry: ScriptedRegistry, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, other = made({"a": b"1"}), made({"a": b"2"})
    registry.repository("library/app").manifests[image.digest] = (other.media_type, other.manifest)
    async with ScriptedRegistry() as hub:
        hub.add("library/app", "v1", image)
        monkeypatch.setattr(endpoints, "HUB", hub.address)
        options = RegistryOptions(mirrors=(f"http://{registry.address}",), certificates=(), timing=TIMING)
        async with Registries(options) as registries:
            puller = Puller(node.store, registries)
            try:
                assert (await puller.pull(reference.parse(f"app@{image.digest}"))).image.id == image.config
            finally:
                puller.close()


REALMS = [
    (Endpoint("https://registry.example"), "https://auth.example/token", True),
    (Endpoint("https://registry.example"), "http://auth.example/token", False),
    (Endpoint("https://registry.example"), "http://127.0.0.1:1/token", True),
    (Endpoint("http://127.0.0.1:5000", verified=False, loopback=True), "https://auth.example/token", True),
    (Endpoint("http://127.0.0.1:5000", verified=False, loopback=True), "http://localhost:1/token", True),
    (Endpoint("http://127.0.0.1:5000", verified=False, loopback=True), "http://auth.example/token", False),
    (Endpoint("http://registry.example", verified=False), "http://registry.example:5001/token", True),
    (Endpoint("http://registry.example", verified=False), "http://auth.example/token", False),
    (Endpoint("http://registry.example"), "https://auth.example/token", False),
]


@pytest.mark.parametrize(("endpoint", "realm", "may"), REALMS, ids=[f"{one[0].base} {one[1]}" for one in REALMS])
@pytest.mark.parametrize(
    "login", [Credentials("user", "secret"), Credentials(identity_token="kept")], ids=["password", "token"]
)
async def test_where_a_token_server_may_be(endpoint: Endpoint, realm: str, may: bool, login: Credentials) -> None:
    sent: list[Any] = []

    async def ask(*request: Any) -> bytes:
        sent.append(request)
        return b'{"token": "t"}'

    authorizer = Authorizer(endpoint, login, ask, lambda: 0.0)
    await authorizer.challenged([Challenge("bearer", {"realm": realm, "service": "s"})], frozenset({"x"}), None)
    if may:
        assert await authorizer.header(frozenset({"x"})) == "Bearer t"
        assert sent
        return
    with pytest.raises(NoCredentials, match="are not sent to the token server"):
        await authorizer.header(frozenset({"x"}))
    assert sent == []


@pytest.mark.parametrize("realm", ["ftp://auth.example", "https://user:pw@auth.example", "token", "https://"])
async def test_a_token_server_that_is_no_address_is_refused(realm: str) -> None:
    async def ask(*request: Any) -> bytes:
        raise AssertionError(f"asked {request}")

    authorizer = Authorizer(Endpoint("https://registry.example"), ANONYMOUS, ask, lambda: 0.0)
    await authorizer.challenged([Challenge("bearer", {"realm": realm})], frozenset(), None)
    with pytest.raises(Unsound, match="no http address"):
        await authorizer.header(frozenset())


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 7}', b'{"token": "a\\nb"}', '{"token": "\u00fc"}'.encode()])
async def test_a_token_server_that_gives_no_token_is_refused(answer: bytes) -> None:
    async def ask(*request: Any) -> bytes:
        return answer

    authorizer = Authorizer(Endpoint("https://registry.example"), ANONYMOUS, ask, lambda: 0.0)
    await authorizer.challenged([Challenge("bearer", {"realm": "https://auth.example"})], frozenset(), None)
    with pytest.raises(Unsound, match="without a token"):
        await authorizer.header(frozenset())


async def test_a_token_is_asked_for_again_when_it_is_over() -> None:
    now, count = 0.0, 0

    async def ask(*request: Any) -> bytes:
        nonlocal count
        count += 1
        return b'{"token": "t%d", "expires_in": 100}' % count

    authorizer = Authorizer(Endpoint("https://registry.example"), ANONYMOUS, ask, lambda: now)
    await authorizer.challenged([Challenge("bearer", {"realm": "https://auth.example"})], frozenset(), None)
    assert [await authorizer.header(frozenset()) for _ in range(2)] == ["Bearer t1", "Bearer t1"]
    now = 91.0
    assert await authorizer.header(frozenset()) == "Bearer t2"
    await authorizer.challenged([Challenge("bearer", {"realm": "https://auth.example"})], frozenset(), "Bearer t2")
    assert await authorizer.header(frozenset()) == "Bearer t3"


async def test_a_login_is_checked_and_gives_an_identity_token(registry: ScriptedRegistry, node: Node) -> None:
    registry.user = ("user", "secret")
    given = Credentials("user", "secret", server=registry.address)
    assert await inquiries.log_in(node.registries, given) == ""
    with pytest.raises(CoveyError, match="does not take") as refused:
        await inquiries.log_in(node.registries, Credentials("user", "wrong", server=registry.address))
    assert refused.value.status == 401
    registry.want_tokens()

    async def with_refresh(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.path != "/token":
            return None
        assert asked.query["offline_token"] == "true"
        assert registry.tokens is not None
        registry.tokens.add("t")
        return web.json_response({"token": "t", "refresh_token": "keep-me"})

    registry.fault = with_refresh
    assert await inquiries.log_in(node.registries, given) == "keep-me"


async def test_an_identity_token_is_exchanged(registry: ScriptedRegistry, node: Node) -> None:
    registry.want_tokens()
    registry.add("app", "v1", made())
    forms: list[dict[str, Any]] = []

    async def exchange(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.path != "/token":
            return None
        forms.append(dict(await request.post()))
        assert registry.tokens is not None
        registry.tokens.add("t")
        return web.json_response({"access_token": "t"})

    registry.fault = exchange
    await node.pull(f"{registry.address}/app:v1", Credentials(identity_token="kept"))
    assert forms[0]["grant_type"] == "refresh_token"
    assert forms[0]["refresh_token"] == "kept"
    assert forms[0]["scope"] == "repository:app:pull"


async def test_no_secret_shows_in_what_is_printed(credentials: Credentials) -> None:
    shown = repr(Credentials("user", "secret", "identity", "registry"))
    assert "user" in shown
    assert not [word for word in ("secret", "identity'", "registry'") if word in shown]


async def test_a_token_that_allows_too_little_is_a_denial(registry: ScriptedRegistry, node: Node) -> None:
    """As Docker Hub answers for what is not there, or not for us."""
    registry.want_tokens()
    registry.add("app", "v1", made())

    async def deny(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" not in asked.path or "Authorization" not in asked.headers:
            return None
        field = f'Bearer realm="{registry.realm}",service="scripted",error="insufficient_scope"'
        return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers={"WWW-Authenticate": field})

    registry.fault = deny
    with pytest.raises(NotFound) as refused:
        await node.pull(f"{registry.address}/app:v1")
    assert refused.value.message == (
        f"pull access denied for {registry.address}/app, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )
    assert len(registry.of("GET", "/manifests/")) <= 4, "a fresh token that does not do is not asked for again"


async def test_a_damaged_mirror_is_passed_over(registry: ScriptedRegistry, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made({"a": b"1"})
    registry.add("library/app", "v1", image)
    registry.repository("library/app").blobs[image.layers[0]] = bytes(len(image.blobs[image.layers[0]]))
    async with ScriptedRegistry() as hub:
        hub.add("library/app", "v1", image)
        monkeypatch.setattr(endpoints, "HUB", hub.address)
        options = RegistryOptions(mirrors=(f"http://{registry.address}",), certificates=(), timing=TIMING)
        async with Registries(options) as registries:
            puller = Puller(node.store, registries)
            try:
                assert (await puller.pull(reference.parse("app:v1"))).image.id == image.config
            finally:
                puller.close()
    assert len(registry.of("GET", image.layers[0])) == 1


async def test_a_registry_that_asks_for_ever_other_logins_is_given_up(
    registry: ScriptedRegistry, node: Node, credentials: Credentials
) -> None:
    kinds = ["Basic realm=a", f'Bearer realm="http://{registry.address}/token"']
    registry.tokens = set()

    async def ask(asked: Asked, request: web.Request) -> web.StreamResponse | None:
        if asked.path == "/token":
            return web.json_response({"token": "t"})
        kinds.append(kinds.pop(0))
        return web.Response(status=401, headers={"WWW-Authenticate": kinds[0]})

    registry.fault = ask
    with pytest.raises(CoveyError):
        await node.pull(f"{registry.address}/app:v1", credentials)
    assert len(registry.asked) < 12
