"""A shim that runs but does not answer (stopped, or frozen) holds up no daemon; its container runs on and can be ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from worker.containers.shim_client import ANSWER_SECONDS

from .conftest import Node, wait_until

pytestmark = pytest.mark.root

ANSWERED = ANSWER_SECONDS + 8.0
SILENT = "does not answer: let it and its child covey-shim go on (kill -CONT), or kill the container"


def run_directory(node: Node, ref: str) -> Path:
    return node.root / "run" / "containers" / str(node.inspect(ref)["Id"])


def shim_of(node: Node, ref: str) -> list[int]:
    """Its keeper, and the worker if there is one."""
    return processes_of(int(json.loads((run_directory(node, ref) / "shim.json").read_text())["pid"]))


def processes_of(keeper: int) -> list[int]:
    children = [int(pid) for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
    return [keeper, *(pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "covey-shim")]


def process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def held(node: Node, ref: str, *, at_work: bool) -> list[int]:
    """Stops the shim of ``ref``: all of it, with or without a worker."""
    if at_work:
        node.docker("exec", "-d", ref, "sleep", "100")
    wanted = 2 if at_work else 1
    wait_until(lambda: len(shim_of(node, ref)) == wanted, f"the shim is {wanted} processes")
    pids = shim_of(node, ref)
    assert len(pids) == wanted
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(process_state(pid) == "T" for pid in pids), "the shim is stopped")
    return pids


def restarted(node: Node) -> None:
    node.kill(signal.SIGKILL)
    began = time.monotonic()
    node.start()
    assert time.monotonic() - began < ANSWERED, "a shim that does not answer holds up the daemon"


@pytest.mark.parametrize("at_work", [False, True])
def test_it_runs_unreachable_and_is_taken_over_when_it_answers(node: Node, at_work: bool) -> None:
    serve = "mkdir /w; echo hello > /w/index.html; httpd -p 80 -h /w; while ! test -f /go; do sleep 0.05; done; exit 5"
    node.run("--name", "held", "-p", "8080:80", "busybox", "sh", "-c", serve)
    node.run("--name", "other", "busybox", "sleep", "100")
    before = node.inspect("held")
    pids = held(node, "held", at_work=at_work)
    restarted(node)
    after = node.inspect("held")
    for key in ("Pid", "StartedAt", "Status", "Running"):
        assert after["State"][key] == before["State"][key], key
    assert f"its shim, process {pids[0]}, {SILENT}" in after["State"]["Error"]
    assert after["NetworkSettings"]["IPAddress"] == before["NetworkSettings"]["IPAddress"]
    fetch = node.inside("curl", "-s", "--max-time", "3", "127.0.0.1:8080")
    assert subprocess.run(fetch, capture_output=True, text=True).stdout == "hello\n", "its port is still published"
    for verb in ("exec held true", "pause held", "top held", "update --pids-limit 9 held"):
        refused = node.docker(*verb.split(), code=None)
        assert refused.returncode != 0, verb
        assert SILENT in refused.stderr, verb
    assert SILENT in node.call("POST", "/containers/held/attach?stream=1&stdout=1")["message"]
    assert node.out("exec", "other", "echo", "ok") == "ok"
    assert f"container {before['Id'][:12]} runs, but its shim, process {pids[0]}, {SILENT}" in node.errors.read_text()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: node.state("held")["Error"] == "", "the shim is heard again")
    assert node.out("exec", "held", "echo", "ok") == "ok"
    node.docker("exec", "held", "touch", "/go")
    wait_until(lambda: node.state("held")["Status"] == "exited", "its end is known")
    assert node.state("held")["ExitCode"] == 5
    assert node.events("event=die", "container=held") == ["die"]


@pytest.mark.parametrize("how", ["kill", "stop", "rm", "shim dies"])
@pytest.mark.parametrize("at_work", [False, True])
def test_it_can_be_ended(node: Node, how: str, at_work: bool) -> None:
    node.run("--name", "held", "--restart", "on-failure:1", "busybox", "sleep", "100")
    pids = [*held(node, "held", at_work=at_work), node.state("held")["Pid"]]
    directory = run_directory(node, "held")
    restarted(node)
    if how == "shim dies":
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: node.inspect("held")["RestartCount"] == 1, "its policy is kept")
    elif how == "rm":
        node.docker("rm", "-f", "held")
        wait_until(lambda: not directory.exists(), "its run directory is gone")
    else:
        node.docker(*(["stop", "-t", "1", "held"] if how == "stop" else ["kill", "held"]))
        state = node.state("held")
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 137, "shim died")
        node.docker("start", "held")
    if how != "rm":
        wait_until(lambda: node.state("held")["Running"], "it runs again")
        assert node.out("exec", "held", "echo", "ok") == "ok"
    assert all(process_state(pid) in "XZ" for pid in pids), "nothing of the first run is left"
    assert node.events("event=die", "container=" + directory.name) == ["die"]


def test_one_whose_end_is_on_record_or_that_nobody_knows_goes(node: Node) -> None:
    """No wait for what a shim cannot say any more, and none for a container that is not registered."""
    node.run("--name", "ended", "busybox", "sh", "-c", "while ! test -f /go; do sleep 0.05; done; exit 4")
    node.run("--name", "unknown", "busybox", "sleep", "100")
    ended, unknown = run_directory(node, "ended"), run_directory(node, "unknown")
    inside = node.state("ended")["Pid"]
    keepers = [shim_of(node, name)[0] for name in ("ended", "unknown")]
    node.kill(signal.SIGKILL)
    Path(f"/proc/{inside}/root/go").touch()
    wait_until((ended / "exit.json").exists, "its end is on record")
    # The worker that has written it, too.
    shims = [pid for keeper in keepers for pid in processes_of(keeper)]
    for pid in shims:
        os.kill(pid, signal.SIGSTOP)
    shutil.rmtree(node.root / "data" / "containers" / unknown.name)
    began = time.monotonic()
    node.start()
    assert time.monotonic() - began < 2 * ANSWER_SECONDS + 8.0
    assert (node.state("ended")["Status"], node.state("ended")["ExitCode"]) == ("exited", 4)
    assert not unknown.exists()
    assert all(process_state(pid) in "XZ" for pid in shims)
