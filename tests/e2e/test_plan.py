"""Plans and explanations of a real cluster: what is planned is what then happens, and planning changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import IMAGE, SLEEP, command, create, service

pytestmark = pytest.mark.e2e


def planned(lab: Lab, *words: str, code: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(lab.manager, "cluster", *words, "--plan", "--format", "json", code=code).stdout)
    return found


def whereabouts(lab: Lab, name: str) -> dict[str, str]:
    """Task name → host name of the tasks that run."""
    hosts = lab.hostnames()
    return {f"{name}.{task['Slot']}": hosts[task["NodeID"]] for task in lab.running(name)}


def version(lab: Lab, name: str) -> int:
    return int(lab.manager.client.get(f"/services/{name}")["Version"]["Index"])


def test_the_plan_of_an_update_is_what_then_happens(lab: Lab) -> None:
    policy = {"UpdateConfig": {"Parallelism": 2, "Monitor": 10**6}}
    before = {task["Slot"]: task["ID"] for task in create(lab, service("web", replicas=4, **policy))}
    at = version(lab, "web")
    change = ("--env-add", "COLOUR=red", "--replicas", "5", "--reserve-memory", "16M")
    plan = planned(lab, "service", "update", *change, "web")
    (web,) = plan["Services"]
    assert version(lab, "web") == at
    assert {task["Slot"]: task["ID"] for task in lab.running("web")} == before
    assert web["Tasks"] == {"Create": 1, "Replace": 4, "InPlace": 0, "Destroy": 0, "Waiting": 0}
    assert (web["Batches"], web["Parallelism"], web["Order"]) == (2, 2, "stop-first")
    assert {edit["Path"] for edit in web["Diff"]} == {
        "Mode.Replicated.Replicas",
        "TaskTemplate.ContainerSpec.Env[COLOUR]",
        "TaskTemplate.Resources.Reservations.MemoryBytes",
    }
    command(lab.manager, "cluster", "service", "update", *change, "web")
    lab.wait_until(lambda: len(fresh(lab)) == 5, 20, "the update is through")
    assert whereabouts(lab, "web") == {step["Name"]: step["To"] for step in web["Steps"]}
    assert {step["Name"]: step["TaskID"] for step in web["Steps"] if step["Action"] == "replace"} == {
        f"web.{slot}": task for slot, task in before.items()
    }
    again = planned(lab, "service", "update", "--env-add", "COLOUR=red", "web", code=0)
    assert not again["Changes"]
    said = command(lab.manager, "cluster", "service", "update", "--plan", "--replicas", "2", "web", code=1).stdout
    assert "~ service web: update" in said
    assert "tasks: 2 left in place, 3 to destroy" in said


def fresh(lab: Lab) -> list[dict[str, Any]]:
    tasks = lab.running("web")
    return [task for task in tasks if task["Spec"]["ContainerSpec"].get("Env") == ["COLOUR=red"]]


STACK = f"""
services:
  app:
    image: {IMAGE}
    command: {json.dumps(SLEEP)}
    init: true
    stop_grace_period: 1s
    secrets: [key]
    networks: [back]
    deploy: {{replicas: 2}}
networks: {{back: {{}}}}
secrets: {{key: {{file: ./key.txt}}}}
"""


def test_the_plan_of_a_stack_is_what_then_happens(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("hunter2")
    file = tmp_path / "stack.yml"
    file.write_text(STACK)
    plan = planned(lab, "stack", "deploy", "-c", str(file), "s")
    assert (plan["Networks"], plan["Secrets"]) == (["s_back"], ["s_key"])
    assert "hunter2" not in json.dumps(plan)
    assert not lab.manager.client.get("/services")
    assert not [one for one in lab.manager.client.get("/networks") if one["Name"] == "s_back"]
    try:
        command(lab.manager, "cluster", "stack", "deploy", "-c", str(file), "s")
        assert whereabouts(lab, "s_app") == {step["Name"]: step["To"] for step in plan["Services"][0]["Steps"]}
        done = command(lab.manager, "cluster", "stack", "deploy", "--plan", "-c", str(file), "s")
        assert done.stdout == "Nothing to do.\n"
    finally:
        command(lab.manager, "cluster", "stack", "rm", "s", code=None)


def test_a_task_that_finds_no_node_is_explained_and_the_advice_holds(lab: Lab) -> None:
    big = service("big", task={"Resources": {"Reservations": {"NanoCPUs": 512 * 10**9}}})
    lab.manager.client.post("/services/create", json=big)

    def waits() -> Any:
        return next((task for task in lab.tasks("big") if task["Status"].get("Err")), None)

    task = lab.wait_until(waits, 10, "the task says why it waits")
    told = json.loads(command(lab.manager, "cluster", "explain", "--format", "json", "big.1", code=1).stdout)
    assert told["Message"] == task["Status"]["Err"] == "no suitable node (insufficient resources on 3 nodes)"
    assert {node["Hostname"] for node in told["Nodes"]} == set(lab.nodes)
    assert all(node["Filter"] == "resources" and "512 CPUs" in node["Reason"] for node in told["Nodes"])
    said = command(lab.manager, "cluster", "explain", task["ID"], code=1).stdout
    assert "reserve at most" in said
    cpus = told["Advice"][0].removeprefix("reserve at most ").partition(" CPUs")[0]
    command(lab.manager, "cluster", "service", "update", "--reserve-cpu", cpus, "big")
    assert len(lab.running("big")) == 1
    placed = command(lab.manager, "cluster", "explain", "big.1").stdout
    assert f"It is on {whereabouts(lab, 'big')['big.1']}" in placed
    assert command(lab.manager, "cluster", "explain", "nosuch", code=255).stderr == "cluster: task nosuch not found\n"
