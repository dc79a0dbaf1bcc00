"""Every verb in every state: Docker's codes and words, over HTTP. The same is asked of dockerd in tests/e2e/compat."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.worker.containers import states_and_verbs
from tests.worker.containers.states_and_verbs import STREAMS, Answer, Caller

from .conftest import Node, wait_until

pytestmark = pytest.mark.root

# verb                       | created running paused restarting exited missing
EXPECTED = states_and_verbs.table("""
create its name again        | 409 409 409 409 409 201
start                        | 204 304 409 304 204 404
stop                         | 304 204 204 204 304 404
restart                      | 204 204 204 204 204 404
kill                         | 409 204 204 204 409 404
kill with a bad signal       | 400 400 400 400 400 400
pause                        | 409 204 409 409 409 404
unpause                      | 409 409 204 409 409 404
rename                       | 204 204 204 204 204 404
rename to its own name       | 400 400 400 400 400 404
rename to a taken name       | 409 409 409 409 409 404
rename to nothing            | 400 400 400 400 400 400
rename to what is no name    | 400 400 400 400 400 404
rm                           | 204 409 409 409 204 404
rm -f                        | 204 204 204 204 204 404
wait                         | 200 200 200 200 200 404
wait for the next exit       | 200 200 200 200 200 404
wait for the removal         | 200 200 200 200 200 404
exec                         | 409 201 409 409 409 404
exec of nothing              | 400 400 400 400 400 400
attach                       | 101 101 409 409 101 404
attach with bad keys         | 400 400 400 400 400 400
exec with bad keys           | 409 400 409 409 409 404
resize                       | 409 200 200 409 409 404
update                       | 200 200 200 200 200 404
update of the policy         | 200 200 200 200 200 404
update to a bad policy       | 400 400 400 400 400 400
update to too little memory  | 400 400 400 400 400 400
top                          | 409 200 200 409 409 404
top without pids             | 409 400 400 409 409 404
stats, one shot              | 200 200 200 200 200 404
stats                        | 200 200 200 200 200 404
logs                         | 200 200 200 200 200 404
logs of no stream            | 400 400 400 400 400 400
cp out                       | 200 200 200 200 200 404
cp out of nothing            | 404 404 404 404 404 404
cp in                        | 200 200 200 200 200 404
cp into nothing              | 404 404 404 404 404 404
diff                         | 200 200 200 200 200 404
export                       | 200 200 200 200 200 404
inspect                      | 200 200 200 200 200 404
""")

#: What a client reads: Docker's words, by verb and state ("": every state that refuses with another code than 404).
WORDS = {
    ("create its name again", ""): 'Conflict. The container name "/NAME" is already in use by container "ID".',
    ("start", "paused"): "cannot start a paused container, try unpause instead",
    ("kill", ""): "cannot kill container: NAME: container ID is not running",
    ("kill with a bad signal", ""): "invalid signal: NOPE",
    ("pause", "created"): "container ID is not running",
    ("pause", "paused"): "container ID is already paused",
    ("pause", "restarting"): "container ID is restarting, wait until the container is running",
    ("unpause", ""): "Container ID is not paused",
    ("rename to its own name", ""): "Renaming a container with the same name as its current name",
    (
        "rename to a taken name",
        "",
    ): 'Error when allocating new name: Conflict. The container name "/sv-taken" is already in',
    ("rename to nothing", ""): "Neither old nor new names may be empty",
    ("rename to what is no name", ""): "Error when allocating new name: Invalid container name (a b), only [a-zA-Z0-9]",
    ("rm", "running"): 'cannot remove container "NAME": container is running: stop the container before removing or force',
    ("rm", "paused"): 'cannot remove container "NAME": container is paused and must be unpaused first',
    ("rm", "restarting"): 'cannot remove container "NAME": container is restarting: stop the container before removing',
    ("exec", "created"): "container ID is not running",
    ("exec", "paused"): "container NAME is paused, unpause the container before exec",
    ("exec", "restarting"): "Container ID is restarting, wait until the container is running",
    ("exec of nothing", ""): "No exec command specified",
    ("attach", "paused"): "container ID is paused, unpause the container before attach",
    ("attach", "restarting"): "container ID is restarting, wait until the container is running",
    ("attach with bad keys", ""): "Invalid detach keys (nope) provided",
    ("exec with bad keys", "running"): "Invalid detach keys (nope) provided",
    ("resize", ""): "container ID is not running",
    ("update to a bad policy", ""): "invalid restart policy",
    ("update to too little memory", ""): "Minimum memory limit allowed is 6MB",
    ("top", "created"): "container ID is not running",
    ("top", "restarting"): "container ID is restarting, wait until the container is running",
    ("top without pids", "running"): "Couldn't find PID field in ps output",
    ("logs of no stream", ""): "Bad parameters: you must choose at least one stream",
    ("cp out of nothing", "running"): "Could not find the file /nothing in container NAME",
    ("cp into nothing", "running"): "Could not find the file /nothing in container NAME",
    ("kill", "missing"): "cannot kill container: NAME: No such container: NAME",
    ("start", "missing"): "No such container: NAME",
}
#: Where an answer begins and goes on: waits until something happens, and streams.
GO_ON = {
    *((state, verb) for state in ("created", "running", "paused", "restarting", "exited")
      for verb in ("wait for the next exit", "wait for the removal", "stats")),
    *((state, "wait") for state in ("running", "paused", "restarting")),
    *((state, "attach") for state in ("created", "running", "exited")),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(_session_node: Node) -> dict[tuple[str, str], Answer]:
    return states_and_verbs.probe(Caller(_session_node.socket), "busybox:latest")


def words_for(state: str, verb: str, code: int) -> str:
    exact = WORDS.get((verb, state), "")
    return exact or (WORDS.get((verb, ""), "") if code >= 400 and code != 404 else "")


@pytest.mark.parametrize("state", states_and_verbs.STATES)
def test_codes_and_words(state: str, answers: dict[tuple[str, str], Answer]) -> None:
    wrong = []
    for (where, verb), code in EXPECTED.items():
        if where != state:
            continue
        answer = answers[state, verb]
        if answer.status != code or words_for(state, verb, code) not in answer.text:
            wrong.append((verb, answer, "expected", code, words_for(state, verb, code)))
        if ((state, verb) in GO_ON) != (answer.text == STREAMS):
            wrong.append((verb, answer, "goes on", (state, verb) in GO_ON))
    assert not wrong
    assert {verb.name for verb in states_and_verbs.VERBS} == {verb for _, verb in EXPECTED}


def record_of(node: Node, ref: str) -> Path:
    return node.root / "data" / "containers" / str(node.inspect(ref)["Id"]) / "config.json"


def test_a_dead_container_can_only_be_removed(node: Node) -> None:
    """Dead is what a removal leaves that failed, and removing what one leaves that was cut off by a crash."""
    node.docker("create", "--name", "dead", "busybox", "true")
    node.docker("create", "--name", "half", "busybox", "true")
    records = {name: record_of(node, name) for name in ("dead", "half")}
    node.kill(signal.SIGKILL)
    for name, status in (("dead", "dead"), ("half", "removing")):
        kept = json.loads(records[name].read_text())
        records[name].write_text(json.dumps({**kept, "state": {**kept["state"], "status": status}}))
    node.start()
    wait_until(lambda: "half" not in node.out("ps", "-a", "--format", "{{.Names}}").split(), "the cut removal is finished")
    caller = Caller(node.socket)
    expected = {
        "POST /containers/dead/start": (409, "container is marked for removal and cannot be started"),
        "POST /containers/dead/stop": (304, ""),
        "POST /containers/dead/kill": (409, "is not running"),
        "POST /containers/dead/pause": (409, "is not running"),
        "POST /containers/dead/exec": (409, "is not running"),
        "POST /containers/dead/update": (409, "container is marked for removal and cannot be updated"),
        "POST /containers/dead/rename?name=other": (409, "is marked for removal and cannot be renamed"),
        "GET /containers/dead/logs?stdout=1": (409, "can not get logs from container which is dead or marked for removal"),
    }
    bodies: dict[str, Any] = {"exec": {"Cmd": ["true"]}, "update": {"Memory": 64 << 20}}
    for request, (code, words) in expected.items():
        method, path = request.split()
        answer = caller.call(method, path, bodies.get(path.split("/")[-1]))
        assert (answer.status, words in answer.text) == (code, True), (request, answer)
    state = node.state("dead")
    assert (state["Status"], state["Dead"], state["Running"]) == ("dead", True, False)
    assert node.out("ps", "-a", "--filter", "status=dead", "--format", "{{.Names}} {{.Status}}") == "dead Dead"
    assert caller.call("DELETE", "/containers/dead").status == 204


def test_wait_is_woken_by_what_it_waits_for(node: Node) -> None:
    caller = Caller(node.socket)
    with ThreadPoolExecutor(1) as beside:
        for condition in ("not-running", "next-exit", "removed"):
            node.run("--name", "waited", "busybox", "sleep", "100")
            query = f"/containers/waited/wait?condition={condition}"
            waiting = beside.submit(caller.call, "POST", query, patience=10.0)
            # Asked once more, so that the first has been registered.
            assert caller.call("POST", query).text == STREAMS
            node.docker(*(("rm", "-f") if condition == "removed" else ("kill",)), "waited")
            assert json.loads(waiting.result().text) == {"StatusCode": 137}, condition
            caller.call("DELETE", "/containers/waited?force=1")


def test_stop_signal_and_timeout_of_the_container_and_of_the_request(node: Node) -> None:
    script = "trap 'echo usr1; exit 11' USR1; trap 'echo term; exit 15' TERM; echo ready; while :; do sleep 0.02; done"

    def begun(*options: str) -> None:
        node.docker("rm", "-f", "st", code=None)
        node.run("--name", "st", *options, "busybox", "sh", "-c", script)
        wait_until(lambda: "ready" in node.out("logs", "st"), "its traps are set")

    begun("--stop-signal", "USR1")
    node.docker("stop", "st")
    assert node.state("st")["ExitCode"] == 11
    begun()
    assert Caller(node.socket).call("POST", "/containers/st/stop?signal=SIGUSR1").status == 204
    assert node.state("st")["ExitCode"] == 11
    begun("--stop-signal", "CHLD", "--stop-timeout", "1")
    began = time.monotonic()
    node.docker("stop", "st")
    assert node.state("st")["ExitCode"] == 137
    assert 0.9 < time.monotonic() - began < 5
    begun("--stop-signal", "USR1")
    node.docker("pause", "st")
    node.docker("kill", "-s", "USR1", "st")
    wait_until(lambda: node.state("st")["Status"] == "exited", "its stop signal thaws a paused container, as Docker's does")
    assert node.state("st")["ExitCode"] == 11
