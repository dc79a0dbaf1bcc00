"""Updates and rollbacks on a real cluster: every failure action and order, each command, a manager that dies meanwhile."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from covey.clock import parse_rfc3339
from covey.model.resources import NANO
from covey.testing.lab import Lab

from .conftest import command, create, service
from .looking import slot_history
from .test_services import DOCKERS, PROGRAMS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PROFILE = "default"

GOOD = ["sleep", "1000"]
BETTER = ["sleep", "2000"]
BAD = ["sh", "-c", "echo this will not do; exit 3"]


def policy(seconds: float = 1.0, **fields: Any) -> dict[str, Any]:
    """An UpdateConfig whose monitor is ``seconds``."""
    return {"Parallelism": 1, "Monitor": int(seconds * NANO), "FailureAction": "pause", "Order": "stop-first", **fields}


def update(lab: Lab, name: str, change: Callable[[dict[str, Any]], None], **query: Any) -> None:
    """Change the service's spec as a client does: read, alter, write."""
    found = lab.manager.client.get(f"/services/{name}")
    change(found["Spec"])
    lab.manager.client.post(f"/services/{name}/update", {"version": found["Version"]["Index"], **query}, found["Spec"])


def runs(args: list[str]) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        spec["TaskTemplate"]["ContainerSpec"]["Command"] = args

    return change


def status(lab: Lab, name: str = "web") -> dict[str, Any]:
    return lab.manager.client.get(f"/services/{name}").get("UpdateStatus") or {}


def wait_state(lab: Lab, state: str, seconds: float = 20.0) -> dict[str, Any]:
    return lab.wait_until(lambda: found if (found := status(lab)).get("State") == state else None, seconds, f"it is {state}")


def commands(lab: Lab, name: str = "web") -> list[list[str]]:
    return sorted(task["Spec"]["ContainerSpec"]["Command"] for task in lab.running(name))


def test_an_update_is_told_as_docker_tells_it(lab: Lab) -> None:
    create(lab, service("web", GOOD, replicas=3, UpdateConfig=policy()))
    assert status(lab) == {}
    update(lab, "web", runs(BETTER))
    began = wait_state(lab, "updating")
    assert began["Message"] == "update in progress"
    assert "CompletedAt" not in began
    ended = wait_state(lab, "completed")
    assert ended["Message"] == "update completed"
    assert ended["StartedAt"] == began["StartedAt"]
    assert commands(lab) == [BETTER] * 3


def test_a_failing_update_pauses_and_the_next_one_goes_on(lab: Lab) -> None:
    create(lab, service("web", GOOD, replicas=3, UpdateConfig=policy(Delay=NANO), delay=30))
    update(lab, "web", runs(BAD))
    paused = wait_state(lab, "paused")
    failed = re.fullmatch(r"update paused due to failure or early termination of task (\w{25})", paused["Message"])
    assert failed is not None
    assert lab.manager.client.get(f"/tasks/{failed[1]}")["Status"]["ContainerStatus"]["ExitCode"] == 3
    assert commands(lab) == [GOOD] * 2
    update(lab, "web", runs(BETTER))
    wait_state(lab, "completed")
    assert commands(lab) == [BETTER] * 3


def test_with_action_continue_every_task_is_replaced(lab: Lab) -> None:
    create(lab, service("web", GOOD, replicas=2, UpdateConfig=policy(FailureAction="continue"), delay=30))
    update(lab, "web", runs(BAD))
    wait_state(lab, "completed")
    assert commands(lab) == []


def test_a_failing_update_is_rolled_back(lab: Lab) -> None:
    spec = service("web", GOOD, replicas=3, RollbackConfig=policy(Parallelism=0))
    spec["UpdateConfig"] = policy(FailureAction="rollback", Delay=NANO)
    create(lab, spec)
    before = lab.manager.client.get("/services/web")
    untouched = {task["ID"] for task in lab.running("web")}
    update(lab, "web", runs(BAD))
    ended = wait_state(lab, "rollback_completed")
    assert ended["Message"] == "rollback completed"
    after = lab.manager.client.get("/services/web")
    assert after["Spec"] == before["Spec"]
    assert "PreviousSpec" not in after
    assert after["Version"]["Index"] > before["Version"]["Index"]
    assert commands(lab) == [GOOD] * 3
    assert len(untouched & {task["ID"] for task in lab.running("web")}) == 2


def test_an_update_outlives_the_manager_that_began_it(lab: Lab) -> None:
    create(lab, service("web", GOOD, replicas=4, UpdateConfig=policy(Delay=1 * NANO)))
    update(lab, "web", runs(BETTER))
    lab.wait_until(lambda: commands(lab).count(BETTER) == 1, 10, "one is replaced")
    began = status(lab)["StartedAt"]
    lab.node("m1").kill_process("manager")
    fewest = 4

    def done() -> bool:
        nonlocal fewest
        fewest = min(fewest, len(lab.running("web")))
        return status(lab).get("State") == "completed"

    lab.wait_until(done, 40, "it is completed by the next leader")
    assert commands(lab) == [BETTER] * 4
    assert status(lab)["StartedAt"] == began
    assert fewest == 3
    assert len(lab.tasks("web")) == 8, "each slot was replaced once"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_rollback_by_request_from_every_command(lab: Lab, program: str) -> None:
    create(lab, service("web", GOOD, replicas=2, UpdateConfig=policy(), RollbackConfig=policy()))
    changed = command(lab.manager, program, "service", "update", "--detach=false", "--args", "2000", "web")
    assert lab.manager.client.get("/services/web")["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"] == ["2000"], changed.stdout
    back = command(lab.manager, program, "service", "rollback", "--detach=false", "web")
    assert "rolled back" in back.stdout.replace("rollback", "rolled back"), back.stdout
    assert "Args" not in lab.manager.client.get("/services/web")["Spec"]["TaskTemplate"]["ContainerSpec"]
    wait_state(lab, "rollback_completed")
    assert len(lab.running("web")) == 2


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("action", ["pause", "rollback"])
def test_every_command_says_that_an_update_failed(lab: Lab, program: str, action: str) -> None:
    create(lab, service("web", ["sh", "-c"], replicas=2, container={"Args": ["sleep 1000"]}, delay=20, UpdateConfig=policy()))
    options = ("--update-failure-action", action, "--args", '"exit 3"', "--detach=false")
    done = command(lab.manager, program, "service", "update", *options, "web", code=None)
    said = done.stdout + done.stderr
    if action == "pause":
        assert done.returncode != 0, said
        assert "update paused due to failure or early termination of task" in said
    else:
        assert "update rolled back due to failure or early termination of task" in said
        wait_state(lab, "rollback_completed")
        assert len(lab.running("web")) == 2


REQUESTS = """
import sys, time, urllib.request
ok = 0
while True:
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=3) as page:
            page.read()
        ok += 1
    except Exception as error:
        print("lost", repr(error), flush=True)
    print("ok", ok, flush=True)
    time.sleep(0.01)
"""


def test_start_first_drops_no_request(lab: Lab) -> None:
    page = "mkdir -p /w; echo $VERSION > /w/index.html; trap 'sleep 1; exit 0' TERM; httpd -f -p 80 -h /w & wait $!; sleep 1"
    container = {
        "Env": ["VERSION=one"],
        "StopGracePeriod": 5 * NANO,
        "Healthcheck": {"Test": ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"], "Interval": NANO // 5},
    }
    spec = service(
        "web",
        ["sh", "-c", page],
        replicas=2,
        container=container,
        task={"Placement": {"Constraints": ["node.hostname == w1"]}},
        EndpointSpec={"Ports": [{"TargetPort": 80, "PublishedPort": 8087}]},
        UpdateConfig=policy(Order="start-first", Delay=NANO // 2),
    )
    create(lab, spec)
    node = lab.node("w1")
    url = f"http://{node.address}:8087/"
    lab.wait_until(lambda: node.fetch(url).status == 200, 5, "it answers")
    script = f"timeout 14 {sys.executable} -c '{REQUESTS}' {url}"

    def change(spec: dict[str, Any]) -> None:
        spec["TaskTemplate"]["ContainerSpec"]["Env"] = ["VERSION=two"]

    said: list[str] = []
    asking = threading.Thread(target=lambda: said.append(lab.run_in_client("sh", "-c", script, timeout=40).stdout))
    asking.start()
    time.sleep(1)
    update(lab, "web", change)
    wait_state(lab, "completed", 25)
    asking.join()
    lines = said[0].splitlines()
    assert [line for line in lines if line.startswith("lost")] == []
    assert int(lines[-1].split()[1]) > 100
    assert node.fetch(url).text.strip() == "two"


def test_stop_start_and_restart_keep_the_count(lab: Lab) -> None:
    create(lab, service("web", GOOD, replicas=3, UpdateConfig=policy(Parallelism=0)))
    first = {task["ID"] for task in lab.running("web")}
    command(lab.manager, "cluster", "service", "stop", "web")
    assert lab.running("web") == []
    for program in PROGRAMS:
        shown = command(lab.manager, program, "service", "ls", "--format", "{{.Name}} {{.Replicas}}").stdout
        assert shown == "web 0/3\n"
    command(lab.manager, "cluster", "service", "start", "web")
    second = {task["ID"] for task in lab.running("web")}
    assert len(second) == 3
    assert not first & second
    command(lab.manager, "cluster", "service", "restart", "web")
    third = {task["ID"] for task in lab.running("web")}
    assert len(third) == 3
    assert not second & third
    wait_state(lab, "completed")


def test_a_service_goes_back_to_any_version_it_had(lab: Lab) -> None:
    create(lab, service("web", GOOD, UpdateConfig=policy(0.2), RollbackConfig=policy(0.2)))
    for number in (2, 3):
        command(lab.manager, "cluster", "service", "update", "--env-add", f"N={number}", "web")
    command(lab.manager, "cluster", "service", "scale", "web=2")
    shown = command(lab.manager, "cluster", "service", "history", "--format", "{{.Version}} {{.Changed}}", "web").stdout
    assert shown.splitlines() == ["4 (current) ContainerSpec.Env, Replicated.Replicas", "2 ContainerSpec.Env", "1 "]
    refused = command(lab.manager, "cluster", "service", "rollback", "--to", "9", "web", code=1)
    assert "service web has no version 9 to roll back to (kept: 1, 2)" in refused.stderr
    command(lab.manager, "cluster", "service", "rollback", "--to", "1", "web")
    (task,) = lab.running("web")
    assert not task["Spec"]["ContainerSpec"].get("Env")


def test_a_crash_loop_is_restarted_less_and_less_often(lab: Lab) -> None:
    spec = service("web", BAD, delay=0.2)
    spec["TaskTemplate"]["RestartPolicy"]["BackoffLimit"] = 2 * NANO
    lab.manager.client.post("/services/create", json=spec)
    lab.wait_until(lambda: len(slot_history(lab, "web")) == 6 and not lab.running("web"), 20, "it has crashed often", poll=0.1)
    time.sleep(4)
    history = slot_history(lab, "web")
    ended = [parse_rfc3339(task["Status"]["Timestamp"]) for task in history if task["Status"]["State"] == "failed"]
    gaps = [after - before for before, after in pairwise(ended)]
    assert max(gaps) >= 1.5, gaps
    assert max(gaps) <= 4, gaps


def test_there_is_a_docker_command_to_agree_with() -> None:
    assert DOCKERS
