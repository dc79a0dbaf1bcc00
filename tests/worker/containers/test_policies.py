"""Restart policies with Docker's back-off, also across a daemon's restart; health checks by Docker's rules."""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime

import pytest

from worker.containers import health
from worker.containers.record import Health, Probe

from .conftest import Node, wait_until
from .states_and_verbs import Caller


def starts(node: Node, ref: str) -> list[float]:
    """When each run began: every run says one line."""
    lines = node.out("logs", "-t", ref).splitlines()
    return [datetime.fromisoformat(line.split()[0][:26] + "+00:00").timestamp() for line in lines]


@pytest.mark.root
def test_the_waits_between_restarts_double(node: Node) -> None:
    node.run("--name", "loop", "--restart", "always", "busybox", "sh", "-c", "echo run; exit 1")
    wait_until(lambda: len(starts(node, "loop")) >= 6, "five restarts")
    waits = [later - earlier for earlier, later in zip(starts(node, "loop"), starts(node, "loop")[1:], strict=False)]
    # Each holds a start and a run beside its wait, so only their least is known.
    assert all(wait >= 0.1 * 2**number for number, wait in enumerate(waits)), waits
    assert waits[4] < 1.6 + 1.0, waits
    assert node.inspect("loop")["RestartCount"] >= 5


@pytest.mark.root
def test_a_stop_ends_the_waiting_and_a_start_begins_anew(node: Node) -> None:
    node.run("--name", "loop", "--restart", "always", "busybox", "sh", "-c", "echo run; exit 1")
    wait_until(lambda: node.inspect("loop")["RestartCount"] >= 4, "it has been restarted")
    wait_until(lambda: node.state("loop")["Status"] == "restarting", "it waits")
    node.docker("stop", "loop")
    assert node.state("loop")["Status"] == "exited"
    count = len(starts(node, "loop"))
    node.docker("start", "loop")
    wait_until(lambda: len(starts(node, "loop")) >= count + 3, "its waits are short again")
    first, second = starts(node, "loop")[count : count + 2]
    assert second - first < 0.8
    assert node.inspect("loop")["RestartCount"] <= 4


@pytest.mark.root
def test_a_stop_at_any_moment_of_a_restart_loop_is_final(node: Node) -> None:
    """Also one that comes while the policy's start is under way."""
    caller = Caller(node.socket)
    node.docker("create", "--name", "loop", "--restart", "always", "busybox", "sh", "-c", "echo run; exit 1")
    for number in range(25):
        node.docker("start", "loop")
        begun = len(starts(node, "loop"))
        wait_until(lambda begun=begun: len(starts(node, "loop")) > begun, "its policy starts it")
        time.sleep(number * 0.007)
        assert caller.call("POST", "/containers/loop/stop?t=0").status in (204, 304)
        state = node.state("loop")
        assert (state["Status"], state["Restarting"]) == ("exited", False), number
    count = len(starts(node, "loop"))
    time.sleep(0.5)
    assert len(starts(node, "loop")) == count, "none comes later"


@pytest.mark.root
def test_a_manual_start_has_all_its_tries_again(node: Node) -> None:
    node.run("--name", "few", "--restart", "on-failure:1", "busybox", "sh", "-c", "echo run; exit 1")
    wait_until(lambda: (node.state("few")["Status"], len(starts(node, "few"))) == ("exited", 2), "one restart")
    node.docker("start", "few")
    wait_until(lambda: (node.state("few")["Status"], len(starts(node, "few"))) == ("exited", 4), "and one more")


@pytest.mark.root
@pytest.mark.parametrize(
    ("policy", "code", "stopped", "again"),
    [
        ("no", 1, False, False),
        ("on-failure", 1, False, True),
        ("on-failure", 0, False, False),
        ("always", 0, False, True),
        ("unless-stopped", 0, False, True),
        ("always", 0, True, False),
    ],
)
def test_who_is_restarted(node: Node, policy: str, code: int, stopped: bool, again: bool) -> None:
    script = f"trap 'exit {code}' TERM; echo run; while ! test -f /go; do sleep 0.02; done; rm /go; exit {code}"
    node.run("--name", "one", "--restart", policy, "busybox", "sh", "-c", script)
    wait_until(lambda: node.out("logs", "one") == "run", "it runs")
    if stopped:
        node.docker("stop", "one")
    else:
        node.docker("exec", "one", "touch", "/go")
    if again:
        wait_until(lambda: node.out("logs", "one").split() == ["run", "run"], "it runs again")
    else:
        wait_until(lambda: node.state("one")["Status"] == "exited", "it stays down")
        assert node.out("logs", "one") == "run"


@pytest.mark.root
def test_policies_across_a_daemons_restart(node: Node) -> None:
    """The wait goes on where it was; who was stopped by hand stays down unless it is always; a run is not repeated."""
    loop = "echo run; exit 1"
    node.run("--name", "waits", "--restart", "always", "busybox", "sh", "-c", loop)
    for name, policy in (("always", "always"), ("unless", "unless-stopped"), ("failed", "on-failure"), ("no", "no")):
        node.run("--name", name, "--restart", policy, "busybox", "sleep", "100")
        node.docker("stop", "-t", "0", name)
    wait_until(lambda: node.inspect("waits")["RestartCount"] >= 5, "its waits are long")
    wait_until(lambda: node.state("waits")["Status"] == "restarting", "it waits")
    before = starts(node, "waits")
    node.kill(signal.SIGKILL)
    node.start()
    wait_until(lambda: len(starts(node, "waits")) > len(before), "it is started again")
    assert starts(node, "waits")[len(before)] - before[-1] >= 1.6, "the daemon's restart did not shorten its wait"
    wait_until(lambda: node.state("always")["Status"] == "running", "always means also after a stop")
    assert [node.state(name)["Status"] for name in ("unless", "failed", "no")] == ["exited"] * 3


@pytest.mark.root
def test_a_probe_that_hangs_is_killed_and_told(node: Node) -> None:
    options = ("--health-cmd", "echo $$ > /pid; exec sleep 77", "--health-interval", "100ms", "--health-timeout", "300ms")
    node.run("--name", "one", *options, "--health-retries", "1", "busybox", "sleep", "100")
    wait_until(lambda: node.state("one")["Health"]["Status"] == "unhealthy", "it hangs")
    probe = node.state("one")["Health"]["Log"][0]
    assert probe["ExitCode"] == -1
    assert probe["Output"] == "Health check exceeded timeout (300ms)"
    Caller(node.socket).must("POST", "/containers/one/update", {"CpuShares": 512})
    node.docker("stop", "-t", "0", "one")
    assert node.state("one")["Health"]["Status"] == "unhealthy"


@pytest.mark.root
def test_no_probe_of_a_killed_check_is_left(node: Node) -> None:
    options = ("--health-cmd", "sleep 77", "--health-interval", "50ms", "--health-timeout", "100ms")
    node.run("--name", "one", *options, "busybox", "sleep", "100")
    wait_until(lambda: len(node.state("one")["Health"]["Log"]) >= 3, "three probes hung")
    listed = node.out("top", "one", "-eo", "pid,args").splitlines()
    sleepers = [line for line in listed if line.split()[1:] == ["sleep", "77"]]
    assert len(sleepers) <= 1, "what the probes before had started is gone"


@pytest.mark.root
def test_log_of_five_with_four_kilobytes_and_none(node: Node) -> None:
    options = ("--health-cmd", "head -c 9000 /dev/zero | tr '\\0' x", "--health-interval", "50ms")
    node.run("--name", "one", *options, "busybox", "sleep", "100")
    wait_until(lambda: len(node.state("one")["Health"]["Log"]) == 5, "five probes")
    first = node.state("one")["Health"]["Log"][0]["Start"]
    wait_until(lambda: node.state("one")["Health"]["Log"][0]["Start"] != first, "the oldest goes")
    log = node.state("one")["Health"]["Log"]
    assert [len(probe["Output"]) for probe in log] == [4096] * 5
    assert len(log) == 5
    node.run("--name", "none", "--no-healthcheck", "busybox", "sleep", "100")
    assert "Health" not in node.state("none")
    assert node.inspect("none")["Config"]["Healthcheck"]["Test"] == ["NONE"]


@pytest.mark.root
def test_the_start_period_forgives(node: Node) -> None:
    check = {
        "Test": ["CMD-SHELL", "test -f /ok"], "Interval": 50_000_000, "Timeout": 10**9, "Retries": 1,
        "StartPeriod": 1_500_000_000, "StartInterval": 50_000_000,
    }  # fmt: skip
    caller = Caller(node.socket)
    body = {"Image": "busybox", "Cmd": ["sleep", "100"], "Healthcheck": check}
    began = time.time()
    caller.must("POST", "/containers/create?name=one", body)
    caller.must("POST", "/containers/one/start")
    wait_until(lambda: len(node.state("one")["Health"]["Log"]) >= 3, "it fails in its start period")
    seen = node.state("one")["Health"]
    assert time.time() - began < 1.5, "too slow to say anything about the start period"
    assert (seen["Status"], seen["FailingStreak"]) == ("starting", 0)
    wait_until(lambda: node.state("one")["Health"]["Status"] == "unhealthy", "after it, failures count")
    assert json.loads(node.out("inspect", "--format", "{{json .State.Health.FailingStreak}}", "one")) >= 1


def probe(code: int) -> Probe:
    return Probe(start=1.0, end=2.0, exit_code=code, output="")


def test_durations_are_gos() -> None:
    spans = {0.3: "300ms", 1: "1s", 1.5: "1.5s", 30: "30s", 90: "1m30s", 3600: "1h0m0s"}
    assert {seconds: health.span(seconds) for seconds in spans} == spans


def test_judgement() -> None:
    found = Health()
    health.judge(found, probe(1), 2, in_start_period=True)
    assert (found.status, found.failing_streak) == ("starting", 0)
    health.judge(found, probe(0), 2, in_start_period=True)
    assert found.status == "healthy"
    health.judge(found, probe(1), 2, in_start_period=True)
    health.judge(found, probe(1), 2, in_start_period=True)
    assert (found.status, found.failing_streak) == ("unhealthy", 2), "after a success the start period forgives no more"
