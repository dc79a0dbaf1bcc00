"""Plan and explain through the real chassis: what they answer, what they refuse, and that they write nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import Cluster, service_spec, wait_until

from covey.errors import Conflict, InvalidArgument, NotFound, NotImplementedYet

pytestmark = pytest.mark.asyncio


async def plan(cluster: Cluster, *services: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await cluster.client.call("covey_plan", json={"Services": list(services), **more})
    return answer


async def _rests(cluster: Cluster) -> bool:
    before = cluster.database.revision
    await asyncio.sleep(0.1)
    return cluster.database.revision == before


def counts(shown: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in shown["Tasks"].items() if count}


def template(cpus: float = 0, **more: Any) -> dict[str, Any]:
    return {"Resources": {"Reservations": {"NanoCPUs": int(cpus * 1e9)}}, **more}


async def test_a_create_is_planned_with_nodes_and_nothing_is_written(cluster: Cluster) -> None:
    async with cluster.workers(2):
        await wait_until("a store at rest", lambda: _rests(cluster))
        before = cluster.database.revision
        answer = await plan(cluster, {"Spec": service_spec("web", 2)})
        assert cluster.database.revision == before
        assert answer["Changes"]
        assert answer["Complete"]
        (web,) = answer["Services"]
        assert (web["Name"], web["ID"], web["Action"], counts(web)) == ("web", "", "create", {"Create": 2})
        assert {step["To"] for step in web["Steps"]} == {"w0", "w1"}
        assert [step["Name"] for step in web["Steps"]] == ["web.1", "web.2"]
        assert {"Path": "TaskTemplate.ContainerSpec.Image", "Kind": "added", "New": "busybox"} in web["Diff"]
        assert web["Explained"]["Node"] == web["Steps"][0]["To"]
        assert await cluster.client.call("service_list") == []


async def test_an_update_is_planned_and_then_happens_so(cluster: Cluster) -> None:
    async with cluster.workers(3):
        service_id = await cluster.create("web", 3)
        before = {task["Slot"]: task for task in await cluster.wait_running("web", 3)}
        new = service_spec("web", 4, container={"Image": "busybox:2"})
        answer = await plan(cluster, {"ID": service_id, "Spec": new})
        (web,) = answer["Services"]
        assert (web["Action"], counts(web), web["Batches"]) == ("update", {"Create": 1, "Replace": 3}, 3)
        assert [edit["Path"] for edit in web["Diff"]] == ["Mode.Replicated.Replicas", "TaskTemplate.ContainerSpec.Image"]
        found = await cluster.client.call("service_inspect", {"id": service_id})
        await cluster.client.call("service_update", {"id": service_id}, {"version": str(found["Version"]["Index"])}, new)

        async def updated() -> Any:
            tasks = await cluster.running("web")
            fresh = [task for task in tasks if task["Spec"]["ContainerSpec"]["Image"] == "busybox:2"]
            return fresh if len(fresh) == len(tasks) == 4 else []

        nodes = {node["ID"]: node["Description"]["Hostname"] for node in await cluster.client.call("node_list")}
        after = {task["Slot"]: nodes[task["NodeID"]] for task in await wait_until("the update", updated)}
        assert {f"web.{slot}": host for slot, host in after.items()} == {step["Name"]: step["To"] for step in web["Steps"]}
        replaced = {step["Name"]: step["TaskID"] for step in web["Steps"] if step["Action"] == "replace"}
        assert replaced == {f"web.{slot}": task["ID"] for slot, task in before.items()}
        again = await plan(cluster, {"Name": "web", "Spec": new})
        assert not again["Changes"]
        assert again["Services"][0]["Action"] == "none"


async def test_what_means_the_same_replaces_nothing_neither_planned_nor_done(cluster: Cluster) -> None:
    async with cluster.workers(1):
        service_id = await cluster.create("web", 1)
        (before,) = await cluster.wait_running("web", 1)
        wordy = service_spec("web", 1, container={"Env": None, "TTY": False}, template={"Placement": {}, "ForceUpdate": 0})
        answer = await plan(cluster, {"ID": service_id, "Spec": wordy})
        assert not answer["Changes"]
        assert answer["Services"][0]["Diff"] == []
        found = await cluster.client.call("service_inspect", {"id": service_id})
        await cluster.client.call("service_update", {"id": service_id}, {"version": str(found["Version"]["Index"])}, wordy)
        await cluster.create("other", 1)
        await cluster.wait_running("other", 1)
        assert [task["ID"] for task in await cluster.running("web")] == [before["ID"]]


async def test_removals_come_first_and_free_what_they_hold(cluster: Cluster) -> None:
    async with cluster.workers(1):
        port = {"EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]}}
        await cluster.create("old", 2, **port)
        await cluster.wait_running("old", 2)
        new = {"Spec": service_spec("new", 1, **port)}
        with pytest.raises(InvalidArgument, match="service new: port '8080' is already in use by service 'old'"):
            await plan(cluster, new)
        answer = await plan(cluster, new, Remove=["old"])
        shown = {one["Name"]: (one["Action"], counts(one)) for one in answer["Services"]}
        assert shown == {"new": ("create", {"Create": 1}), "old": ("remove", {"Destroy": 2})}
        assert all(step.get("To") for step in answer["Services"][0]["Steps"])


async def test_what_would_be_made_before_is_taken_to_be_there(cluster: Cluster) -> None:
    async with cluster.workers(1):
        secret = {"SecretID": "planned-key", "SecretName": "key", "File": {"Name": "key"}}
        spec = service_spec("web", 1, container={"Secrets": [secret]}, template={"Networks": [{"Target": "back"}]})
        with pytest.raises(InvalidArgument, match="service web: secret not found: key"):
            await plan(cluster, {"Spec": spec})
        assumed = {"Secrets": ["planned-key"]}
        with pytest.raises(NotFound, match="service web: network back not found"):
            await plan(cluster, {"Spec": spec}, Assume=assumed)
        assumed["Networks"] = [{"Name": "back", "Driver": "overlay"}]  # type: ignore[list-item]
        answer = await plan(cluster, {"Spec": spec}, Assume=assumed)
        assert answer["Services"][0]["Steps"][0]["To"] == "w0"
        with pytest.raises(InvalidArgument, match="a network has no Name"):
            await plan(cluster, {"Spec": spec}, Assume={"Networks": [{}]})


async def test_a_proposal_is_refused_as_the_change_would_be(cluster: Cluster) -> None:
    with pytest.raises(InvalidArgument, match="nothing is proposed"):
        await plan(cluster)
    with pytest.raises(NotFound, match="service nosuch not found"):
        await plan(cluster, Remove=["nosuch"])
    with pytest.raises(NotFound, match="service nosuch not found"):
        await plan(cluster, {"ID": "nosuch", "Spec": service_spec("web")})
    with pytest.raises(InvalidArgument, match=r"Services\[0\].Spec: is required"):
        await plan(cluster, {"Name": "web"})
    with pytest.raises(InvalidArgument, match="has no name"):
        await plan(cluster, {"Spec": {"TaskTemplate": {"ContainerSpec": {"Image": "i"}}}})
    with pytest.raises(InvalidArgument, match=r"service web: .*ContainerSpec.Image"):
        await plan(cluster, {"Name": "web", "Spec": {"TaskTemplate": {"ContainerSpec": {}}}})
    with pytest.raises(InvalidArgument, match="service web is proposed twice"):
        await plan(cluster, {"Spec": service_spec("web")}, {"Spec": service_spec("web")})
    service_id = await cluster.create("web")
    with pytest.raises(Conflict, match="service web already exists"):
        await plan(cluster, {"Create": True, "Spec": service_spec("web")})
    with pytest.raises(NotImplementedYet, match="mode change is not allowed"):
        await plan(cluster, {"ID": service_id, "Spec": {**service_spec("web"), "Mode": {"Global": {}}}})
    with pytest.raises(NotImplementedYet, match="renaming services is not supported"):
        await plan(cluster, {"ID": service_id, "Spec": service_spec("other")})


async def test_a_service_to_be_created_needs_no_name(cluster: Cluster) -> None:
    answer = await plan(cluster, {"Create": True, "Spec": {"TaskTemplate": {"ContainerSpec": {"Image": "i"}}}})
    (shown,) = answer["Services"]
    assert shown["Name"]
    assert shown["Tasks"]["Waiting"] == 1


async def test_a_task_that_waits_is_explained_node_by_node_with_what_would_help(cluster: Cluster) -> None:
    async with cluster.workers(2):
        await cluster.create("big", 1, template=template(cpus=1000))

        async def waits() -> Any:
            tasks = await cluster.client.call("task_list")
            return [task for task in tasks if task["Status"].get("Err")]

        (task,) = await wait_until("the reason", waits)
        told = await cluster.client.call("covey_task_explain", {"id": task["ID"][:10]})
        assert (told["Name"], told["State"], told["Waits"], told["Node"]) == ("big.1", "pending", True, "")
        assert told["Message"] == told["TaskMessage"] == task["Status"]["Err"]
        workers = [node for node in told["Nodes"] if node["Hostname"].startswith("w")]
        assert all(not node["Fits"] and node["Filter"] == "resources" for node in workers)
        assert all("1000 CPUs" in node["Reason"] and node["Remedy"] for node in workers)
        assert told["Advice"][0].startswith("reserve at most ")
        with pytest.raises(NotFound, match="task nosuch not found"):
            await cluster.client.call("covey_task_explain", {"id": "nosuch"})


async def test_a_task_that_runs_is_explained_with_scores(cluster: Cluster) -> None:
    async with cluster.workers(2):
        await cluster.create("web", 2)
        tasks = await cluster.wait_running("web", 2)
        told = await cluster.client.call("covey_task_explain", {"id": tasks[0]["ID"]})
        assert (told["Waits"], told["NodeID"], told["Advice"]) == (False, tasks[0]["NodeID"], [])
        fitting = [node for node in told["Nodes"] if node["Fits"]]
        assert [node["Rank"] for node in fitting] == [1, 2]
        assert told["Nodes"][: len(fitting)] == fitting
        assert all(node["Replicas"] == 1 for node in fitting)


async def test_plans_of_a_world_that_moves_on_are_of_one_revision(cluster: Cluster) -> None:
    async with cluster.workers(2):
        proposals = [plan(cluster, {"Spec": service_spec(f"web{number}", 40)}) for number in range(3)]
        made, *answers = await asyncio.gather(cluster.create("other", 3), *proposals)
        assert made
        assert all(answer["Changes"] and answer["Services"][0]["Tasks"]["Create"] == 40 for answer in answers)
