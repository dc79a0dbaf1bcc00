"""Merged calls: the node answers for what it has, and looks for it among things of the kind the path names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from covey.engine_api.aio import Client
from covey.engine_api.answers import Stream
from covey.engine_api.listeners import listen_unix
from covey.engine_api.proxy import connect_unix
from covey.engine_api.routes import MERGED, ROUTES
from covey.engine_api.server import Handler, Server
from covey.errors import CoveyError, Unavailable
from worker.front_door import FrontDoor, Local

NAMED = [route for route in ROUTES if route.place == MERGED and "{id}" in route.path]


@pytest.mark.asyncio
@pytest.mark.parametrize("route", NAMED, ids=[route.name for route in NAMED])
async def test_a_merged_call_is_answered_here_when_this_node_has_the_thing_its_path_names(route: Any) -> None:
    def knows(kind: str) -> Any:
        async def answer(reference: str) -> bool:
            return reference == f"a {kind} of ours"

        return answer

    async def here(call: Any) -> str:
        return "here"

    local = Local({route.name: here}, knows("containers"), knows("exec"), knows("networks"))
    door = FrontDoor(local, cast(Any, SimpleNamespace(is_manager=True)))
    call: Any = SimpleNamespace(params={"id": f"a {route.path.split('/')[1]} of ours"})
    assert await door.handlers()[route.name](call) == "here"


class Life:
    """The node's part in a cluster, as a test wants it."""

    def __init__(self, role: str, manager_socket: Path) -> None:
        self.is_manager = role == "manager"
        self.membership = None if role == "inactive" else SimpleNamespace(role=role)
        self.manager_socket = manager_socket
        self.calls: list[Any] = []

    def swarm_info(self) -> dict[str, Any]:
        return {"NodeID": "n1", "LocalNodeState": "active" if self.membership else "inactive"}

    async def init(self, body: Any) -> str:
        self.calls.append(("init", body))
        return "n1"

    async def leave(self, force: bool) -> None:
        self.calls.append(("leave", force))


@asynccontextmanager
async def node(directory: Path, role: str, manager: dict[str, Handler] | None = None) -> AsyncIterator[tuple[Client, Life]]:
    """A front door on a socket, over a node with container ``here`` and networks; ``manager`` answers if there is one."""

    async def knows(reference: str) -> bool:
        return reference == "here"

    async def local_inspect(call: Any) -> Any:
        return {"Id": call.params["id"], "By": "node"}

    async def local_info(call: Any) -> Any:
        return {"Containers": 3}

    async def local_networks(call: Any) -> Any:
        return [{"Id": "b1", "Name": "bridge"}, {"Id": "shared", "Name": "web", "Scope": "local"}]

    async def local_create(call: Any) -> Any:
        return {"Id": "node", "Body": await call.json()}

    async def local_events(call: Any) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"By":"node"}\n'

        return Stream(pieces())

    handlers: dict[str, Handler] = {
        "container_inspect": local_inspect,
        "system_info": local_info,
        "network_list": local_networks,
        "network_create": local_create,
        "system_events": local_events,
    }
    life = Life(role, directory / "manager.sock")
    door = FrontDoor(Local(handlers, knows, knows, knows), cast(Any, life))
    async with AsyncExitStack() as stack:
        if manager is not None:
            await stack.enter_async_context(listen_unix(Server(manager), life.manager_socket, mode=0o600))
        await stack.enter_async_context(listen_unix(Server(door.handlers(), door.forwards()), directory / "api.sock"))
        yield Client(connect_unix(str(directory / "api.sock"))), life


async def of_manager(call: Any) -> Any:
    return {"Id": call.params.get("id", ""), "By": "manager"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("inactive", 'Use "docker swarm init" or "docker swarm join"'),
        ("worker", "Worker nodes can't be used to view or modify cluster state"),
        ("manager", "this node's manager does not answer: it is being started"),
    ],
)
async def test_cluster_calls_without_a_manager_are_503_and_say_what_to_do(tmp_path: Path, role: str, words: str) -> None:
    async with node(tmp_path, role) as (client, _):
        with pytest.raises(Unavailable, match=words):
            await client.call("service_list")


@pytest.mark.asyncio
async def test_a_container_is_looked_for_here_and_then_in_the_cluster(tmp_path: Path) -> None:
    async with node(tmp_path, "manager", {"container_inspect": of_manager}) as (client, _):
        assert (await client.call("container_inspect", {"id": "here"}))["By"] == "node"
        assert await client.call("container_inspect", {"id": "elsewhere"}) == {"Id": "elsewhere", "By": "manager"}
    async with node(tmp_path, "worker") as (client, _):
        assert (await client.call("container_inspect", {"id": "elsewhere"}))["By"] == "node"


@pytest.mark.asyncio
@pytest.mark.parametrize("role", ["inactive", "worker", "manager"])
async def test_the_bootstrap_route_is_not_reachable_from_outside(tmp_path: Path, role: str) -> None:
    asked: list[Any] = []

    async def bootstrap(call: Any) -> Any:
        asked.append(call)
        return {}

    async with node(tmp_path, role, {"covey_bootstrap": bootstrap}) as (client, _):
        with pytest.raises(CoveyError):
            await client.call("covey_bootstrap", json={})
    assert not asked


@pytest.mark.asyncio
async def test_info_is_the_node_s_with_the_cluster_s_part(tmp_path: Path) -> None:
    async def info(call: Any) -> Any:
        return {"Swarm": {"Nodes": 4, "Managers": 1}}

    async with node(tmp_path, "manager", {"system_info": info}) as (client, _):
        found = await client.call("system_info")
    assert found["Containers"] == 3
    assert found["Swarm"] == {"NodeID": "n1", "LocalNodeState": "active", "Nodes": 4, "Managers": 1}


@pytest.mark.asyncio
async def test_node_calls_answer_while_the_manager_is_away(tmp_path: Path) -> None:
    async with node(tmp_path, "manager") as (client, _):
        assert (await client.call("system_info"))["Swarm"]["LocalNodeState"] == "active"
        assert len(await client.call("network_list")) == 2


@pytest.mark.asyncio
async def test_networks_of_node_and_cluster_are_one_list_and_each_goes_where_it_belongs(tmp_path: Path) -> None:
    async def networks(call: Any) -> Any:
        return [{"Id": "shared", "Name": "web", "Scope": "swarm"}]

    async def create(call: Any) -> Any:
        return {"Id": "manager", "Body": await call.json()}

    async with node(tmp_path, "manager", {"network_list": networks, "network_create": create}) as (client, _):
        found = await client.call("network_list")
        assert sorted((network["Id"], network.get("Scope", "")) for network in found) == [("b1", ""), ("shared", "swarm")]
        for body, where in (({"Name": "a", "Driver": "overlay"}, "manager"), ({"Name": "b"}, "node")):
            assert await client.call("network_create", json=body) == {"Id": where, "Body": body}


@pytest.mark.asyncio
async def test_events_of_both_come_in_one_stream_and_a_manager_that_goes_does_not_end_it(tmp_path: Path) -> None:
    async def events(call: Any) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"By":"manager"}\n'

        return Stream(pieces())

    for manager in ({"system_events": events}, None):
        async with node(tmp_path, "manager", manager) as (client, _), client.stream("system_events") as response:
            seen = b"".join([piece async for piece in response])
            assert sorted(seen.split()) == [b'{"By":"manager"}', b'{"By":"node"}'][0 if manager else 1 :]


@pytest.mark.asyncio
async def test_swarm_verbs_go_to_the_node_s_own_life(tmp_path: Path) -> None:
    async with node(tmp_path, "inactive") as (client, life):
        assert await client.call("swarm_init", json={"AdvertiseAddr": "10.0.0.1"}) == "n1"
        await client.call("swarm_leave", query={"force": "1"})
        assert life.calls == [("init", {"AdvertiseAddr": "10.0.0.1"}), ("leave", True)]
