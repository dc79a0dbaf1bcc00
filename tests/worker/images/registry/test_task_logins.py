"""A task's image is pulled as whoever the cluster says at that moment: the order of logins, and what a refusal says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from covey.credentials import Credentials
from covey.errors import CoveyError, NotFound, Unauthorized
from covey.model.login import RegistryLogin
from covey.wire.messages import AnyMessage, LoginsGiven, LoginsWanted
from worker.agent.registry_logins import RegistryLogins
from worker.images import reference
from worker.images.from_registry import FromRegistry
from worker.images.reference import Reference

from .conftest import Node
from .scripted import ScriptedRegistry, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]


class Cluster:
    """Tells the logins with these passwords, one set a pull, as they are then."""

    def __init__(self, *passwords: str) -> None:
        self.passwords = list(passwords)
        self.asked: list[str] = []

    async def logins(self, wanted: Reference) -> Sequence[Credentials]:
        self.asked.append(str(wanted))
        return [Credentials("user", password, server=wanted.domain) for password in self.passwords]


@pytest.fixture
def private(registry: ScriptedRegistry) -> ScriptedRegistry:
    registry.user = ("user", "secret")
    registry.add("app", "v1", made({"a": b"1" * 1000}))
    return registry


def quiet(current: int, total: int) -> None:
    """Nobody listens."""


async def pull(node: Node, registry: ScriptedRegistry, cluster: Cluster, tag: str = "v1") -> None:
    await FromRegistry(node.puller, cluster.logins).fetch(reference.parse(f"{registry.address}/app:{tag}"), quiet)


@pytest.mark.parametrize("passwords", [("secret",), ("old", "secret"), ("secret", "old")])
async def test_the_first_login_that_is_taken_will_do(private: ScriptedRegistry, node: Node, passwords: tuple[str, ...]) -> None:
    cluster = Cluster(*passwords)
    await pull(node, private, cluster)
    assert cluster.asked == [f"{private.address}/app:v1"]


async def test_a_rotated_password_is_asked_for_anew(private: ScriptedRegistry, node: Node) -> None:
    cluster = Cluster("secret")
    await pull(node, private, cluster)
    private.add("app", "v2", made({"a": b"2" * 1000}))
    private.user = ("user", "rotated")
    with pytest.raises(Unauthorized):
        await pull(node, private, cluster, "v2")
    cluster.passwords = ["rotated"]
    await pull(node, private, cluster, "v2")


@pytest.mark.parametrize(("passwords", "says"), [((), "the cluster has no login to"), (("old", "older"), "none of 2 logins")])
async def test_a_refusal_says_what_to_do_and_no_password(
    private: ScriptedRegistry, node: Node, passwords: tuple[str, ...], says: str
) -> None:
    with pytest.raises(Unauthorized, match=f"{says}.*cluster registry login {private.address}") as refused:
        await pull(node, private, Cluster(*passwords))
    assert not any(password in refused.value.message for password in passwords)


async def test_what_is_not_there_is_not_about_logins(private: ScriptedRegistry, node: Node) -> None:
    with pytest.raises(NotFound, match="manifest unknown"):
        await pull(node, private, Cluster("secret"), "none")


async def test_a_registry_that_is_down_is_not_asked_with_every_login(node: Node) -> None:
    cluster = Cluster("a", "b", "c")
    with pytest.raises(CoveyError, match="connection refused") as down:
        await FromRegistry(node.puller, cluster.logins).fetch(reference.parse("127.0.0.1:1/app:v1"), quiet)
    assert not isinstance(down.value, (NotFound, Unauthorized))


async def test_only_logins_to_the_image_s_own_host_are_used_and_nothing_is_kept() -> None:
    logins = RegistryLogins()
    wanted = reference.parse("reg.example:5000/app:1")
    assert await logins.of_image(wanted) == ()

    async def answer(message: AnyMessage) -> None:
        assert isinstance(message, LoginsWanted)
        assert message.image == "reg.example:5000/app:1"
        told = [RegistryLogin(host=host, username="ann", password=host) for host in ("elsewhere.example", "reg.example:5000")]
        logins.heard(LoginsGiven(request=message.request, logins=tuple(told)))

    async with logins.session(answer):
        [found] = await logins.of_image(wanted)
        assert (found.username, found.password, found.server) == ("ann", "reg.example:5000", "reg.example:5000")
    assert await logins.of_image(wanted) == ()


async def test_a_session_that_ends_leaves_the_pull_to_the_node_s_own_logins() -> None:
    logins = RegistryLogins()

    async def lost(message: AnyMessage) -> None:
        await session.__aexit__(None, None, None)

    session = logins.session(lost)
    await session.__aenter__()
    assert await logins.of_image(reference.parse("reg.example:5000/app:1")) == ()
