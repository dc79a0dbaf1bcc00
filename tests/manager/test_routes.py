"""The cluster routes through the real chassis, a real client and a Unix socket; the store is the memory one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
from typing import Any

import pytest
from harness import Cluster, service_spec, wait_until

from covey.errors import Conflict, CoveyError, Forbidden, InvalidArgument, NotFound, NotImplementedYet, Unavailable

pytestmark = pytest.mark.asyncio


def filters(**wanted: list[str]) -> dict[str, str]:
    return {"filters": json.dumps({name.replace("_", "-").strip("-"): value for name, value in wanted.items()})}


async def test_a_manager_without_a_cluster_says_so_and_serves_only_its_owner() -> None:
    async with Cluster() as fresh:
        with pytest.raises(Unavailable, match="not a swarm manager"):
            await fresh.client.call("service_list")
        assert await fresh.client.call("system_ping") == "OK"
        mode = os.stat(fresh.options.socket_path).st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_bootstrap_twice_gives_the_same_node_again(cluster: Cluster) -> None:
    first, identity = cluster.node_id, cluster.identity
    again = await cluster.bootstrap()
    assert again["NodeID"] == first
    assert again["CAPEM"] == identity.ca_pem
    assert again["CertificatePEM"] != identity.certificate_pem


async def test_bootstrap_of_a_foreign_store_is_refused(cluster: Cluster) -> None:
    async with Cluster(cluster.database) as other:
        with pytest.raises(Conflict, match="no part"):
            await other.bootstrap()


async def test_a_created_service_is_found_at_once_by_id_name_and_prefix(cluster: Cluster) -> None:
    for number in range(5):
        service_id = await cluster.create(f"web{number}", 2)
        for reference in (service_id, f"web{number}", service_id[:12]):
            found = await cluster.client.call("service_inspect", {"id": reference})
            assert found["ID"] == service_id
            assert found["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
    with pytest.raises(NotFound, match="service nosuch not found"):
        await cluster.client.call("service_inspect", {"id": "nosuch"})


async def test_unknown_fields_of_a_spec_survive(cluster: Cluster) -> None:
    service_id = await cluster.create("web", container={"FutureField": {"a": [1]}})
    found = await cluster.client.call("service_inspect", {"id": service_id})
    assert found["Spec"]["TaskTemplate"]["ContainerSpec"]["FutureField"] == {"a": [1]}
    filled = await cluster.client.call("service_inspect", {"id": service_id}, {"insertDefaults": "true"})
    assert filled["Spec"]["TaskTemplate"]["RestartPolicy"]["Condition"] == "any"
    assert filled["Spec"]["UpdateConfig"]["Parallelism"] == 1


async def test_a_name_is_given_once_even_to_creates_at_the_same_time(cluster: Cluster) -> None:
    results = await asyncio.gather(*(cluster.create("web") for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 1
    refused = [result for result in results if not isinstance(result, str)]
    assert all(isinstance(error, Conflict) and "service web already exists" in str(error) for error in refused), refused


async def test_an_ingress_port_is_given_once_and_free_again_after_update_and_removal(cluster: Cluster) -> None:
    def published(name: str, port: int) -> dict[str, Any]:
        return service_spec(name, EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": port}]})

    both = (published("a", 8080), published("b", 8080))
    results = await asyncio.gather(*(cluster.client.call("service_create", json=spec) for spec in both), return_exceptions=True)
    assert sum(isinstance(result, InvalidArgument) for result in results) == 1, results
    winner = next(result["ID"] for result in results if isinstance(result, dict))
    held = await cluster.client.call("service_inspect", {"id": winner})
    name = held["Spec"]["Name"]
    with pytest.raises(InvalidArgument, match=f"port '8080' is already in use by service '{name}'"):
        await cluster.client.call("service_create", json=published("c", 8080))
    version = {"version": str(held["Version"]["Index"])}
    await cluster.client.call("service_update", {"id": winner}, version, json=published(name, 9090))
    await cluster.client.call("service_create", json=published("c", 8080))
    with pytest.raises(InvalidArgument, match="9090"):
        await cluster.client.call("service_create", json=published("d", 9090))
    await cluster.client.call("service_delete", {"id": winner})
    await cluster.client.call("service_create", json=published("d", 9090))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Name": "no good"}, "Name"),
        ({"Mode": {"Replicated": {"Replicas": -1}}}, "Replicas"),
        ({"TaskTemplate": {"ContainerSpec": {"Image": "Bad//Image::x"}}}, "Image"),
        (
            {"TaskTemplate": {"ContainerSpec": {"Image": "a"}, "Placement": {"Constraints": ["node.colour==red"]}}},
            "node.colour",
        ),
        ({"TaskTemplate": {"ContainerSpec": {"Image": "a"}, "Resources": {"Limits": {"MemoryBytes": -5}}}}, "MemoryBytes"),
        (
            {"TaskTemplate": {"ContainerSpec": {"Image": "a", "Secrets": [{"SecretID": "x", "SecretName": "nosuch"}]}}},
            "nosuch",
        ),
        ({"EndpointSpec": {"Ports": [{"TargetPort": 70000}]}}, "TargetPort"),
        ({"Mode": {"ReplicatedJob": {"MaxConcurrent": -1}}}, "Maximum concurrent jobs must not be negative"),
        ({"Mode": {"ReplicatedJob": {"TotalCompletions": -1}}}, "Total completed jobs must not be negative"),
        ({"Mode": {"GlobalJob": {}}, "UpdateConfig": {"Parallelism": 2}}, "Jobs may not have an update config"),
    ],
)
async def test_a_spec_that_cannot_be_is_refused_by_the_name_of_its_field(
    cluster: Cluster, change: dict[str, Any], field: str
) -> None:
    with pytest.raises((InvalidArgument, NotImplementedYet), match=field):
        await cluster.client.call("service_create", json={**service_spec("web"), **change})
    assert await cluster.client.call("service_list") == []


async def test_a_network_that_is_not_there_is_not_found_as_docker_says_it(cluster: Cluster) -> None:
    task = {"ContainerSpec": {"Image": "a"}, "Networks": [{"Target": "nosuch"}]}
    with pytest.raises(NotFound, match=r"network nosuch not found \(TaskTemplate.Networks\)"):
        await cluster.client.call("service_create", json={**service_spec("web"), "TaskTemplate": task})
    assert await cluster.client.call("service_list") == []


async def test_a_service_nobody_named_gets_a_name(cluster: Cluster) -> None:
    for _ in range(2):
        await cluster.client.call("service_create", json={**service_spec("web"), "Name": ""})
    listed = [service["Spec"]["Name"] for service in await cluster.client.call("service_list")]
    assert len(set(listed)) == 2
    assert all("_" in name for name in listed)


async def test_an_update_needs_the_version_that_was_read(cluster: Cluster) -> None:
    service_id = await cluster.create("web", 1)
    held = await cluster.client.call("service_inspect", {"id": "web"})
    version = {"version": str(held["Version"]["Index"])}
    await cluster.client.call("service_update", {"id": "web"}, version, json=service_spec("web", 4))
    with pytest.raises(Conflict, match="update out of sequence"):
        await cluster.client.call("service_update", {"id": "web"}, version, json=service_spec("web", 5))
    with pytest.raises(InvalidArgument, match="version"):
        await cluster.client.call("service_update", {"id": "web"}, json=service_spec("web", 5))
    now = await cluster.client.call("service_inspect", {"id": service_id})
    assert now["Spec"]["Mode"]["Replicated"]["Replicas"] == 4
    assert now["PreviousSpec"]["Mode"]["Replicated"]["Replicas"] == 1
    version = {"version": str(now["Version"]["Index"])}
    with pytest.raises(NotImplementedYet, match="renaming"):
        await cluster.client.call("service_update", {"id": "web"}, version, json=service_spec("other"))
    await cluster.client.call("service_update", {"id": "web"}, {**version, "rollback": "previous"}, json={})
    assert (await cluster.client.call("service_inspect", {"id": "web"}))["Spec"]["Mode"]["Replicated"]["Replicas"] == 1


async def test_services_are_listed_by_filter_with_their_status(cluster: Cluster) -> None:
    await cluster.create("web", 2, Labels={"tier": "front"})
    await cluster.create("worker", 0)
    names = [
        service["Spec"]["Name"] for service in await cluster.client.call("service_list", query=filters(label=["tier=front"]))
    ]
    assert names == ["web"]
    listed = await cluster.client.call("service_list", query={**filters(name=["wo"]), "status": "true"})
    assert [service["ServiceStatus"] for service in listed] == [{"RunningTasks": 0, "DesiredTasks": 0, "CompletedTasks": 0}]
    with pytest.raises(InvalidArgument, match="colour"):
        await cluster.client.call("service_list", query=filters(colour=["red"]))


async def test_tasks_show_why_they_wait_and_have_a_story(cluster: Cluster) -> None:
    service_id = await cluster.create("web", 2)

    async def made() -> Any:
        found = await cluster.client.call("task_list", query=filters(service=["web"]))
        return found if len(found) == 2 and all(task["Status"].get("Err") for task in found) else []

    tasks = await wait_until("two pending tasks", made)
    assert {task["Slot"] for task in tasks} == {1, 2}
    assert all(task["ServiceID"] == service_id and task["Status"]["State"] == "pending" for task in tasks)
    assert all(task["PortStatus"] == {} for task in (task["Status"] for task in tasks))
    story = await cluster.client.call("covey_task_story", {"id": tasks[0]["ID"]})
    assert story["Story"], story
    assert await cluster.client.call("task_list", query=filters(desired_state=["shutdown"])) == []
    with pytest.raises(InvalidArgument, match="desired-state"):
        await cluster.client.call("task_list", query=filters(desired_state=["odd"]))
    await cluster.client.call("service_delete", {"id": "web"})

    async def none_left() -> bool:
        return await cluster.client.call("task_list") == []

    await wait_until("no tasks", none_left)


async def test_networks_of_the_cluster(cluster: Cluster) -> None:
    made = await cluster.client.call("network_create", json={"Name": "front", "Driver": "overlay", "Labels": {"a": "b"}})
    assert "bridge on each node" in made["Warning"]
    with pytest.raises(Conflict, match="network with name front already exists"):
        await cluster.client.call("network_create", json={"Name": "front", "Driver": "overlay"})

    async def allocated() -> Any:
        shown = await cluster.client.call("network_inspect", {"id": "front"})
        return shown if shown["IPAM"]["Config"] else None

    shown = await wait_until("a subnet", allocated)
    assert (shown["Id"], shown["Scope"], shown["Driver"]) == (made["Id"], "swarm", "overlay")
    pool = {"Config": [{"Subnet": shown["IPAM"]["Config"][0]["Subnet"]}]}
    with pytest.raises(Forbidden, match="overlaps"):
        await cluster.client.call("network_create", json={"Name": "twin", "Driver": "overlay", "IPAM": pool})
    await cluster.create("web", template={"Networks": [{"Target": "front"}]})
    with pytest.raises(Forbidden, match="in use by service web"):
        await cluster.client.call("network_delete", {"id": "front"})
    await cluster.client.call("service_delete", {"id": "web"})

    async def removed() -> bool:
        try:
            await cluster.client.call("network_delete", {"id": "front"})
        except Forbidden:
            return False
        return True

    await wait_until("the network is free", removed)
    assert await cluster.client.call("network_list") == []


@pytest.mark.parametrize("kind", ["secret", "config"])
async def test_secrets_and_configs(cluster: Cluster, kind: str) -> None:
    data = base64.b64encode(b"hush").decode()
    made = await cluster.client.call(f"{kind}_create", json={"Name": "key", "Data": data})
    with pytest.raises(Conflict, match=f"{kind} key already exists"):
        await cluster.client.call(f"{kind}_create", json={"Name": "key", "Data": data})
    shown = await cluster.client.call(f"{kind}_inspect", {"id": "key"})
    assert shown["ID"] == made["ID"]
    assert shown["Spec"].get("Data") == (None if kind == "secret" else data)
    version = {"version": str(shown["Version"]["Index"])}
    await cluster.client.call(f"{kind}_update", {"id": "key"}, version, json={"Name": "key", "Labels": {"a": "b"}})
    version = {"version": str((await cluster.client.call(f"{kind}_inspect", {"id": "key"}))["Version"]["Index"])}
    other = base64.b64encode(b"loud").decode()
    with pytest.raises(InvalidArgument, match="only updates to Labels"):
        await cluster.client.call(f"{kind}_update", {"id": "key"}, version, json={"Name": "key", "Data": other})
    field, word = f"{kind.capitalize()}s", kind.capitalize()
    reference = {f"{word}ID": made["ID"], f"{word}Name": "key", "File": {"Name": "key"}}
    await cluster.create("web", container={field: [reference]})
    with pytest.raises(InvalidArgument, match="in use by the following service: web"):
        await cluster.client.call(f"{kind}_delete", {"id": "key"})
    await cluster.client.call("service_delete", {"id": "web"})
    await cluster.client.call(f"{kind}_delete", {"id": "key"})
    assert await cluster.client.call(f"{kind}_list") == []
    with pytest.raises(InvalidArgument, match="larger than 0"):
        await cluster.client.call(f"{kind}_create", json={"Name": "empty", "Data": ""})


async def test_the_swarm_and_its_tokens(cluster: Cluster) -> None:
    swarm = await cluster.client.call("swarm_inspect")
    assert swarm["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    assert swarm["JoinTokens"]["Worker"] != swarm["JoinTokens"]["Manager"]
    query = {"version": str(swarm["Version"]["Index"]), "rotateWorkerToken": "true"}
    await cluster.client.call("swarm_update", query=query, json=swarm["Spec"])
    after = await cluster.client.call("swarm_inspect")
    assert after["JoinTokens"]["Worker"] != swarm["JoinTokens"]["Worker"]
    assert after["JoinTokens"]["Manager"] == swarm["JoinTokens"]["Manager"]
    with pytest.raises(Conflict, match="out of sequence"):
        await cluster.client.call("swarm_update", query=query, json=swarm["Spec"])
    info = (await cluster.client.call("system_info"))["Swarm"]
    assert (info["LocalNodeState"], info["ControlAvailable"], info["NodeID"]) == ("active", True, cluster.node_id)
    assert (info["Nodes"], info["Managers"]) == (1, 1)
    assert "JoinTokens" not in info["Cluster"]
    assert (await cluster.client.call("swarm_unlock_key")) == {"UnlockKey": ""}


async def test_nodes_are_updated_and_removed_by_the_rules(cluster: Cluster) -> None:
    worker = await cluster.join("w0")
    node = await cluster.client.call("node_inspect", {"id": worker.node_id})
    spec = {**node["Spec"], "Availability": "drain", "Labels": {"zone": "east"}}
    version = {"version": str(node["Version"]["Index"])}
    await cluster.client.call("node_update", {"id": worker.node_id}, version, json=spec)
    with pytest.raises(Conflict, match="out of sequence"):
        await cluster.client.call("node_update", {"id": worker.node_id}, version, json=spec)
    found = await cluster.client.call("node_list", query=filters(**{"node.label": ["zone=east"]}))
    assert [entry["Spec"]["Availability"] for entry in found] == ["drain"]
    manager = await cluster.client.call("node_inspect", {"id": "self"})
    assert manager["ManagerStatus"]["Leader"] is True
    version = {"version": str(manager["Version"]["Index"])}
    with pytest.raises(InvalidArgument, match="last manager"):
        await cluster.client.call("node_update", {"id": "self"}, version, json={**manager["Spec"], "Role": "worker"})
    with pytest.raises(InvalidArgument, match="must be demoted"):
        await cluster.client.call("node_delete", {"id": "self"}, {"force": "1"})
    async with worker:
        await wait_until("ready", lambda: cluster.are_ready([worker]))
        with pytest.raises(InvalidArgument, match="is not down"):
            await cluster.client.call("node_delete", {"id": worker.node_id})
        await cluster.client.call("node_delete", {"id": worker.node_id}, {"force": "true"})

        async def refused() -> bool:
            return any("not part of the cluster" in fault for fault in worker.faults)

        await wait_until("the removed worker is refused", refused)
    with pytest.raises(NotFound):
        await cluster.client.call("node_inspect", {"id": worker.node_id})


async def test_cluster_events_flow_and_are_kept_for_since(cluster: Cluster) -> None:
    async with cluster.client.stream("system_events", query=filters(type=["service"])) as response:
        lines = response.lines()
        service_id = await cluster.create("web", 1)
        first = await asyncio.wait_for(anext(lines), 5)
        assert (first["Type"], first["Action"], first["scope"]) == ("service", "create", "swarm")
        assert first["Actor"]["ID"] == service_id
        assert first["Actor"]["Attributes"]["name"] == "web"
        version = {"version": str((await cluster.client.call("service_inspect", {"id": "web"}))["Version"]["Index"])}
        await cluster.client.call("service_update", {"id": "web"}, version, json=service_spec("web", 3))
        second = await asyncio.wait_for(anext(lines), 5)
        assert second["Actor"]["Attributes"]["replicas.new"] == "3"
        await cluster.client.call("service_delete", {"id": "web"})
        assert (await asyncio.wait_for(anext(lines), 5))["Action"] == "remove"
    query = {"since": "1", "until": str(second["timeNano"] / 1e9), **filters(service=["web"])}
    async with cluster.client.stream("system_events", query=query) as response:
        kept = [event["Action"] async for event in response.lines()]
    assert kept == ["create", "update"]


async def test_statistics_name_every_part(cluster: Cluster) -> None:
    async def leads() -> Any:
        found = await cluster.client.call("covey_statistics")
        return found if found["office"] else None

    told = await wait_until("an office", leads)
    assert {"candidate", "dispatcher", "mirror", "store", "lateness", "process", "office"} <= told.keys()
    assert set(told["office"]["loops"]) == {"liveness", "tasks", "reap"}
    assert {"reconcile", "allocate", "placement"} <= set(told["office"]["loops"]["tasks"]["seconds"])


async def test_a_route_without_a_handler_says_so(cluster: Cluster) -> None:
    with pytest.raises(CoveyError) as refused:
        await cluster.client.call("volume_update", {"name": "v"}, json={})
    assert refused.value.status == 501


async def test_a_job_is_executed_by_its_creation_and_by_every_update(cluster: Cluster) -> None:
    client = cluster.client
    await client.call("service_create", json={**service_spec("job"), "Mode": {"ReplicatedJob": {"TotalCompletions": 3}}})
    held = await client.call("service_inspect", {"id": "job"})
    assert held["Spec"]["Mode"] == {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 3}}
    assert held["JobStatus"]["JobIteration"] == {"Index": 0}
    assert held["JobStatus"]["LastExecution"] == held["CreatedAt"]
    version = {"version": str(held["Version"]["Index"])}
    await client.call("service_update", {"id": "job"}, version, json={**held["Spec"], "Labels": {"a": "b"}})
    again = await client.call("service_inspect", {"id": "job"}, {"insertDefaults": "true"})
    assert again["JobStatus"]["JobIteration"] == {"Index": 1}
    assert "UpdateConfig" not in again["Spec"], "a job may have none, so a client must not be shown one to send back"
    (listed,) = await client.call("service_list", query={"status": "true"})
    assert listed["ServiceStatus"] == {"RunningTasks": 0, "DesiredTasks": 1, "CompletedTasks": 0}
    version = {"version": str(again["Version"]["Index"])}
    with pytest.raises(NotImplementedYet, match="mode change"):
        await client.call("service_update", {"id": "job"}, version, json=service_spec("job"))


async def test_services_that_would_wait_for_each_other_are_refused(cluster: Cluster) -> None:
    client = cluster.client
    await client.call("service_create", json={**service_spec("web"), "DependsOn": [{"Service": "db", "Condition": "healthy"}]})
    with pytest.raises(InvalidArgument, match="db waits for web waits for db"):
        await client.call("service_create", json={**service_spec("db"), "Labels": {"covey.depends_on": "web"}})
    with pytest.raises(InvalidArgument, match="'happy' is none of"):
        await client.call("service_create", json={**service_spec("db"), "DependsOn": [{"Service": "x", "Condition": "happy"}]})


async def test_a_drain_may_be_told_how_and_stays_so_for_clients_that_do_not_know_it(cluster: Cluster) -> None:
    client = cluster.client

    async def update(**change: Any) -> dict[str, Any]:
        node = (await client.call("node_list"))[0]
        spec = {**{k: v for k, v in node["Spec"].items() if k != "Drain"}, **change}
        await client.call("node_update", {"id": node["ID"]}, {"version": str(node["Version"]["Index"])}, json=spec)
        shown: dict[str, Any] = (await client.call("node_inspect", {"id": node["ID"]}))["Spec"]
        return shown

    how = {"Parallelism": 2, "Order": "start-first", "Deadline": 60 * 10**9}
    assert (await update(Availability="drain", Drain=how))["Drain"] == how
    assert (await update(Labels={"a": "b"}))["Drain"] == how
    assert "Drain" not in await update(Availability="active", Drain=how)
    assert "Drain" not in await update(Availability="drain")
    with pytest.raises(InvalidArgument, match=r"Drain\.Order"):
        await update(Drain={"Order": "sideways"})


async def test_a_rebalance_is_told_and_its_numbers_are_checked(cluster: Cluster) -> None:
    assert await cluster.client.call("covey_rebalance", json={"DryRun": True}) == {"DryRun": True, "Moves": []}
    for body, words in (({"Max": 0}, "Max: 0"), ({"Parallelism": -1}, "Parallelism"), ({"Maximum": 3}, "Maximum is unknown")):
        with pytest.raises(InvalidArgument, match=words):
            await cluster.client.call("covey_rebalance", json=body)
