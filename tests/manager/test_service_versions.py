"""Rollback, history and verbs through the routes: what is stored, what is shown, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Cluster, service_spec

from covey.errors import Conflict, InvalidArgument, NotFound

pytestmark = pytest.mark.asyncio


async def inspect(cluster: Cluster) -> dict[str, Any]:
    return dict(await cluster.client.call("service_inspect", {"id": "web"}))


async def update(cluster: Cluster, spec: dict[str, Any] | None = None, **query: Any) -> None:
    index = (await inspect(cluster))["Version"]["Index"]
    await cluster.client.call("service_update", {"id": "web"}, {"version": str(index), **query}, json=spec or {})


def image(name: str, replicas: int = 0, **more: Any) -> dict[str, Any]:
    return service_spec("web", replicas, container={"Image": name}, **more)


async def images(cluster: Cluster) -> list[tuple[int, str, bool]]:
    found = await cluster.client.call("covey_service_history", {"id": "web"})
    return [(one["Version"], one["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], one["Current"]) for one in found]


def image_of(service: dict[str, Any]) -> str:
    return str(service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"])


async def test_a_rollback_swaps_the_specs_and_says_so_at_once(cluster: Cluster) -> None:
    await cluster.create("web", 0, container={"Image": "one"})
    with pytest.raises(InvalidArgument, match="does not have a previous spec"):
        await update(cluster, rollback="previous")
    await update(cluster, image("two"))
    await update(cluster, rollback="previous")
    found = await inspect(cluster)
    assert image_of(found) == "one"
    assert found["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "two"
    assert found["UpdateStatus"]["State"] in ("rollback_started", "rollback_completed")
    assert found["UpdateStatus"]["StartedAt"]
    await update(cluster, image("three"))
    assert "UpdateStatus" not in await inspect(cluster), "nothing has run, so there is nothing to update"


async def test_any_kept_version_comes_back_and_the_oldest_are_forgotten(cluster: Cluster) -> None:
    await cluster.create("web", 0, container={"Image": "v1"})
    for number in range(2, 14):
        await update(cluster, image(f"v{number}"))
    assert await images(cluster) == [(number, f"v{number}", number == 13) for number in range(3, 14)]
    await update(cluster, rollback="previous", to="5")
    assert image_of(await inspect(cluster)) == "v5"
    assert (await images(cluster))[-2:] == [(13, "v13", False), (14, "v5", True)]
    with pytest.raises(InvalidArgument, match=r"has no version 1 to roll back to \(kept: 4, 5, "):
        await update(cluster, rollback="previous", to="1")
    with pytest.raises(InvalidArgument, match="to: give a whole number"):
        await update(cluster, rollback="previous", to="yesterday")


async def test_scaling_and_verbs_are_no_versions_to_go_back_to(cluster: Cluster) -> None:
    await cluster.create("web", 0, container={"Image": "one"})
    await update(cluster, image("one", 2))
    for verb in ("stop", "start", "restart"):
        await cluster.client.call(f"covey_service_{verb}", {"id": "web"})
    assert [version for version, _, _ in await images(cluster)] == [5]
    spec = (await inspect(cluster))["Spec"]
    assert spec["TaskTemplate"]["ForceUpdate"] == 1
    assert spec["Labels"] == {}
    assert spec["Mode"] == {"Replicated": {"Replicas": 2}}


async def test_a_stopped_service_shows_none_of_its_replicas(cluster: Cluster) -> None:
    await cluster.create("web", 3)
    await cluster.client.call("covey_service_stop", {"id": "web"})
    before = (await inspect(cluster))["Version"]
    await cluster.client.call("covey_service_stop", {"id": "web"})
    assert (await inspect(cluster))["Version"] == before, "what is stopped is not stopped again"
    (listed,) = await cluster.client.call("service_list", query={"status": "true"})
    assert (listed["ServiceStatus"]["RunningTasks"], listed["ServiceStatus"]["DesiredTasks"]) == (0, 3)
    assert listed["Spec"]["Labels"] == {"covey.stopped": "true"}


async def test_a_rollback_checks_what_an_update_checks(cluster: Cluster) -> None:
    ports = {"EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}}
    await cluster.create("web", 0, **ports)
    await update(cluster, service_spec("web", 0))
    await cluster.create("other", 0, **ports)
    with pytest.raises(InvalidArgument, match="port '8080' is already in use by service 'other'"):
        await update(cluster, rollback="previous")
    with pytest.raises(Conflict, match="update out of sequence"):
        await cluster.client.call("service_update", {"id": "web"}, {"version": "1", "rollback": "previous"}, json={})
    for verb in ("history", "stop", "restart"):
        with pytest.raises(NotFound, match="service nosuch not found"):
            await cluster.client.call(f"covey_service_{verb}", {"id": "nosuch"})


async def test_nothing_is_left_of_a_removed_service(cluster: Cluster) -> None:
    await cluster.create("web", 0, container={"Image": "one"})
    await update(cluster, image("two"))
    await cluster.client.call("service_delete", {"id": "web"})
    for prefix in ("/covey/past_spec/", "/covey/service/"):
        assert cluster.database.range(prefix, 10, "", 0)[0] == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"Labels": {"covey.restart.backoff-limit": "soon"}}, "Labels.covey.restart.backoff-limit"),
        ({"Labels": {"covey.stopped": "perhaps"}}, "neither true nor false"),
        ({"template": {"RestartPolicy": {"BackoffReset": -1}}}, "BackoffReset"),
    ],
)
async def test_extensions_that_say_nothing_are_refused(cluster: Cluster, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await cluster.create("web", 0, **more)
