"""Logins to registries: given with services and by hand, told to the nodes that need them and to no other, shown to nobody."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from fake_worker import FakeWorker
from harness import Cluster, service_spec, wait_until

from covey.credentials import Credentials
from covey.errors import InvalidArgument, NotFound, from_status
from covey.model.login import RegistryLogin, newest_first
from covey.model.objects import ServiceLogin
from covey.model.task_states import TaskState
from covey.wire.messages import LoginsGiven, LoginsWanted
from manager.logins import after_update, repository

HOST = "reg.example:5000"
IMAGE = f"{HOST}/team/app:1"
SECRET = "correct horse"


def header(password: str = SECRET, user: str = "ann", server: str = HOST) -> dict[str, str]:
    return {"X-Registry-Auth": Credentials(user, password, server=server).to_header()}


async def post(cluster: Cluster, path: str, body: Any, headers: dict[str, str] | None, **query: str) -> Any:
    """A call with headers, as clients of the Engine API make it."""
    connector = aiohttp.UnixConnector(str(cluster.options.socket_path))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post(f"http://manager/v1.44{path}", json=body, headers=headers, params=query) as response:
            answer = await response.json()
    if response.status >= 400:
        raise from_status(response.status, answer["message"])
    return answer


async def create(cluster: Cluster, name: str, headers: dict[str, str] | None = None, image: str = IMAGE) -> str:
    spec = service_spec(name, container={"Image": image})
    return str((await post(cluster, "/services/create", spec, headers))["ID"])


async def update(cluster: Cluster, service: str, headers: dict[str, str] | None = None, **query: str) -> None:
    found = await cluster.client.call("service_inspect", {"id": service})
    version = str(found["Version"]["Index"])
    await post(cluster, f"/services/{service}/update", found["Spec"], headers, version=version, **query)


async def give(cluster: Cluster, password: str, host: str = HOST, user: str = "ann") -> None:
    body = {"username": user, "password": password, "serveraddress": host}
    await cluster.client.call("covey_login_create", json=body)


class Asker:
    """Asks over a worker's session, one request after another."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker, self.requests = worker, 0

    async def __call__(self, image: str = IMAGE) -> LoginsGiven:
        self.requests += 1
        assert self.worker._wire is not None
        await self.worker._wire.send(LoginsWanted(request=self.requests, image=image))

        async def answered() -> Any:
            given = [one for one in self.worker.messages if isinstance(one, LoginsGiven)]
            return next((one for one in given if one.request == self.requests), None)

        found: LoginsGiven = await wait_until("an answer", answered)
        return found

    async def passwords(self, image: str = IMAGE) -> list[str]:
        answer = await self(image)
        assert not answer.error
        return [one.password for one in answer.logins]


@pytest.mark.asyncio
async def test_the_newest_login_is_tried_first_and_goes_with_its_owner(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        ask = Asker(worker)
        service = await create(cluster, "app", header("first"))
        await cluster.wait_running(service, 1)
        assert await ask.passwords() == ["first"]
        await give(cluster, "rotated")
        assert await ask.passwords() == ["rotated", "first"]
        await update(cluster, service, header("newest"))
        assert await ask.passwords() == ["newest", "rotated", "first"]
        await cluster.client.call("covey_login_delete", {"id": HOST})
        assert await ask.passwords() == ["newest", "first"]
        await update(cluster, service)
        assert await ask.passwords() == ["newest", "first"]
        await update(cluster, service, {"X-Registry-Auth": "e30="})
        assert await ask.passwords() == ["newest"]
        with pytest.raises(NotFound, match=f"the cluster has no login to {HOST}"):
            await cluster.client.call("covey_login_delete", {"id": HOST})
        await cluster.client.call("service_delete", {"id": service})
        await give(cluster, "left")
        assert [one["Service"] for one in await cluster.client.call("covey_login_list")] == [""]


@pytest.mark.asyncio
async def test_a_node_without_a_task_for_the_image_is_refused(cluster: Cluster) -> None:
    await give(cluster, SECRET)
    await give(cluster, SECRET, "other.example")
    async with cluster.workers(2) as workers:
        service = await create(cluster, "app", header())
        [task] = await cluster.wait_running(service, 1)
        [holder] = [one for one in workers if one.node_id == task["NodeID"]]
        [other] = [one for one in workers if one is not holder]
        assert await Asker(holder).passwords() == [SECRET]
        for worker, image in ((other, IMAGE), (holder, f"{HOST}/team/app2:1"), (holder, "other.example/x:1"), (holder, HOST)):
            ask = Asker(worker)
            ask.requests = 10 + len(worker.messages)
            refused = await ask(image)
            assert not refused.logins
            assert (
                refused.error
                == f"node {worker.node_id} has no task that needs the image {image}: it is told no login to its registry"
            )


@pytest.mark.asyncio
async def test_a_task_that_is_over_tells_no_login_any_more(cluster: Cluster) -> None:
    async with cluster.workers(1) as (worker,):
        worker.script = lambda assigned: TaskState.COMPLETE
        spec = service_spec("once", container={"Image": IMAGE}, template={"RestartPolicy": {"Condition": "none"}})
        await post(cluster, "/services/create", spec, header())

        async def over() -> bool:
            return [one["Status"]["State"] for one in await cluster.client.call("task_list")] == ["complete"]

        await wait_until("the task to be over", over)
        assert (await Asker(worker)()).error


@pytest.mark.asyncio
async def test_another_service_s_login_is_not_told(cluster: Cluster) -> None:
    """Two tenants at one registry, on one node."""
    async with cluster.workers(1) as (worker,):
        one = await create(cluster, "one", header("of one", "ann"))
        two = await create(cluster, "two", header("of two", "bob"), f"{HOST}/other/app:1")
        await cluster.wait_running(one, 1)
        await cluster.wait_running(two, 1)
        ask = Asker(worker)
        assert await ask.passwords() == ["of one"]
        assert await ask.passwords(f"{HOST}/other/app:1") == ["of two"]


@pytest.mark.asyncio
async def test_nothing_that_is_shown_holds_a_secret(cluster: Cluster) -> None:
    async with cluster.workers(1):
        await give(cluster, SECRET)
        service = await create(cluster, "app", header())
        await cluster.wait_running(service, 1)
        await update(cluster, service, header("another horse"))
        shown = [
            await cluster.client.call("service_inspect", {"id": service}),
            await cluster.client.call("service_list"),
            await cluster.client.call("task_list"),
            await cluster.client.call("covey_login_list"),
            await cluster.client.call("covey_statistics"),
            await cluster.client.call("covey_service_history", {"id": service}),
        ]
        assert "horse" not in json.dumps(shown)
        found = await cluster.client.call("covey_login_list")
        assert [(one["Host"], one["Username"], one["Kind"], one["Service"]) for one in found] == [
            (HOST, "ann", "password", ""),
            (HOST, "ann", "password", "app"),
        ]


@pytest.mark.asyncio
async def test_what_cannot_be_a_login_is_refused_and_changes_nothing(cluster: Cluster) -> None:
    with pytest.raises(InvalidArgument, match=f"is for elsewhere.example and the image {IMAGE} is of {HOST}"):
        await create(cluster, "app", header(server="https://elsewhere.example/v1/"))
    with pytest.raises(InvalidArgument, match="not base64url of JSON") as refused:
        await create(cluster, "app", {"X-Registry-Auth": "?" + SECRET})
    assert SECRET not in refused.value.message
    for body in ({"username": "x", "password": "y"}, {"serveraddress": HOST}, {"username": "x", "serveraddress": "a@b"}):
        with pytest.raises(InvalidArgument):
            await cluster.client.call("covey_login_create", json=body)
    service = await create(cluster, "app")
    with pytest.raises(InvalidArgument, match="unsupported registryAuthFrom value 'there'"):
        await update(cluster, service, registryAuthFrom="there")
    assert await cluster.client.call("covey_login_list") == []
    assert [one["Spec"]["Name"] for one in await cluster.client.call("service_list")] == ["app"]


def one(password: str, host: str = HOST, at: float = 1.0) -> RegistryLogin:
    return RegistryLogin(host=host, username="ann", password=password, given_at=at)


def test_a_service_s_login_after_an_update() -> None:
    first = after_update(None, "s", one("a"), True, "")
    assert first == ServiceLogin(id="s", current=one("a"))
    again = after_update(first, "s", one("a", at=2.0), True, "")
    assert again == ServiceLogin(id="s", current=one("a", at=2.0))
    second = after_update(again, "s", one("b", at=3.0), True, "previous-spec")
    assert second == ServiceLogin(id="s", current=one("b", at=3.0), previous=one("a", at=2.0))
    assert after_update(second, "s", None, False, "spec") == second
    assert after_update(second, "s", None, False, "previous-spec") == ServiceLogin(
        id="s", current=one("a", at=2.0), previous=one("b", at=3.0)
    )
    assert after_update(None, "s", None, True, "") is None


def test_what_is_the_same_is_tried_once_and_no_repr_tells_a_secret() -> None:
    assert newest_first([one("a", at=1.0), one("b", at=2.0), one("a", at=3.0)]) == (one("a", at=3.0), one("b", at=2.0))
    assert "horse" not in repr(LoginsGiven(request=1, logins=(one("correct horse"),)))
    assert "horse" not in repr(ServiceLogin(id="s", current=one("correct horse")))


@pytest.mark.parametrize(
    ("spec", "asked", "told"),
    [
        ("app", "docker.io/library/app:latest", True),
        ("ann/app:2", "docker.io/ann/app:2", True),
        ("index.docker.io/ann/app", "docker.io/ann/app:latest", True),
        (f"{IMAGE}@sha256:{'a' * 64}", IMAGE, True),
        ("localhost/app", "localhost/app:1", True),
        ("app", "docker.io/ann/app:latest", False),
        ("reg.example/app", f"{HOST}/app:latest", False),
        (f"{HOST}/team/app", f"{HOST}/team/app2", False),
    ],
)
def test_which_images_are_of_one_repository(spec: str, asked: str, told: bool) -> None:
    assert (repository(spec) == repository(asked)) is told
