"""Live changes of limits and policy, and what is watched of a running container: top and stats in Docker's shape."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import CONTROLLERS, Node, wait_until
from .states_and_verbs import STREAMS, Caller

pytestmark = pytest.mark.root

MIB = 1 << 20
UNIX_COLUMNS = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")


def limit_of(node: Node, ref: str, name: str) -> str:
    """A file of the container's own cgroup, as its processes see it."""
    return node.out("exec", ref, "cat", f"/sys/fs/cgroup/{name}")


def update(node: Node, ref: str, **body: Any) -> Any:
    return Caller(node.socket).call("POST", f"/containers/{ref}/update", body)


@pytest.fixture
def running(node: Node) -> str:
    node.run("--name", "one", "--memory", "64m", "--memory-swap", "128m", "busybox", "sleep", "100")
    return "one"


@pytest.mark.skipif(not (CONTROLLERS / "memory").is_dir(), reason="the files named are cgroup v1's, and this kernel has v2")
def test_every_field_reaches_the_kernel(node: Node, running: str) -> None:
    fields = {
        "Memory": 96 * MIB, "MemorySwap": 192 * MIB, "MemoryReservation": 32 * MIB, "CpuShares": 512, "CpuPeriod": 50_000,
        "CpuQuota": 25_000, "CpusetCpus": "0", "CpusetMems": "0", "PidsLimit": 77,
    }  # fmt: skip
    assert update(node, running, **fields).status == 200
    files = {
        "memory/memory.limit_in_bytes": str(96 * MIB), "memory/memory.memsw.limit_in_bytes": str(192 * MIB),
        "memory/memory.soft_limit_in_bytes": str(32 * MIB), "cpu/cpu.shares": "512", "cpu/cpu.cfs_period_us": "50000",
        "cpu/cpu.cfs_quota_us": "25000", "cpuset/cpuset.cpus": "0", "cpuset/cpuset.mems": "0", "pids/pids.max": "77",
    }  # fmt: skip
    assert {name: limit_of(node, running, name) for name in files} == files
    shown = node.inspect(running)["HostConfig"]
    assert {key: shown[key] for key in fields} == fields
    assert update(node, running, PidsLimit=-1).status == 200
    assert limit_of(node, running, "pids/pids.max") == "max"


def test_what_conflicts_is_refused_and_changes_nothing(node: Node, running: str) -> None:
    before = node.inspect(running)["HostConfig"]
    for body, code, words in (
        ({"Memory": 256 * MIB}, 409, "Memory limit should be smaller than already set memoryswap limit"),
        ({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -1}}, 400, "maximum retry count cannot be negative"),
        ({"CpuQuota": 10}, 400, "CPU cfs quota can not be less than 1ms"),
        ({"CpusetCpus": "0,99"}, 400, "Requested CPUs are not available - requested 0,99, available: 0"),
        ({"CpusetCpus": "x"}, 400, "Invalid value x for cpuset cpus"),
        ({"CpusetMems": "99"}, 500, "cpu.mems"),
    ):
        answer = update(node, running, **body)
        assert (answer.status, words in answer.text) == (code, True), (body, answer)
    assert node.inspect(running)["HostConfig"] == before
    assert update(node, running, NanoCpus=500_000_000).status == 200
    answer = update(node, running, CpuQuota=25_000)
    assert answer.status == 409
    assert "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set" in answer.text
    node.run("--name", "gone", "--rm", "busybox", "sleep", "100")
    answer = update(node, "gone", RestartPolicy={"Name": "always"})
    assert (answer.status, "AutoRemove is enabled" in answer.text) == (400, True)


@pytest.mark.skipif(not (CONTROLLERS / "memory").is_dir(), reason="cgroup v2 takes a limit below usage and reclaims")
def test_memory_below_what_is_used_is_refused_and_the_limits_stay(node: Node) -> None:
    hold = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo held; while :; do sleep 0.1; done"
    node.run("--name", "fat", "--memory", "128m", "--memory-swap", "128m", "busybox", "sh", "-c", hold)
    wait_until(lambda: node.out("logs", "fat") == "held", "it holds 30 MB")
    answer = update(node, "fat", Memory=8 * MIB, MemorySwap=8 * MIB, CpuShares=300)
    assert answer.status == 500
    assert answer.text.startswith("Cannot update container ")
    assert "memory.limit" in answer.text
    assert limit_of(node, "fat", "memory/memory.limit_in_bytes") == str(128 * MIB)
    assert limit_of(node, "fat", "memory/memory.memsw.limit_in_bytes") == str(128 * MIB)
    assert node.inspect("fat")["HostConfig"]["Memory"] == 128 * MIB
    assert node.state("fat")["Running"]


def test_what_an_update_cannot_change_is_said(node: Node, running: str) -> None:
    answer = update(node, running, CpuShares=100, OomKillDisable=True, Ulimits=[{"Name": "nofile", "Soft": 1, "Hard": 1}])
    assert answer.status == 200
    assert "OomKillDisable cannot be changed by an update" in answer.text
    assert "Ulimits cannot be changed by an update" in answer.text


def test_a_new_policy_holds_at_the_next_exit(node: Node) -> None:
    node.run("--name", "one", "busybox", "sh", "-c", "while ! test -f /go; do sleep 0.02; done; exit 1")
    node.docker("update", "--restart", "on-failure:2", "one")
    node.docker("exec", "one", "touch", "/go")
    wait_until(lambda: (node.state("one")["Status"], node.inspect("one")["RestartCount"]) == ("exited", 2), "two restarts")


def test_an_update_of_a_stopped_container_holds_at_its_start(node: Node) -> None:
    node.docker("create", "--name", "one", "busybox", "sleep", "100")
    assert update(node, "one", PidsLimit=33).status == 200
    node.docker("start", "one")
    name = "pids/pids.max" if (CONTROLLERS / "pids").is_dir() else "pids.max"
    assert limit_of(node, "one", name) == "33"


def test_top_takes_the_arguments_of_ps(node: Node, running: str) -> None:
    caller = Caller(node.socket)
    assert caller.must("GET", f"/containers/{running}/top")["Titles"] == [
        "UID",
        "PID",
        "PPID",
        "C",
        "STIME",
        "TTY",
        "TIME",
        "CMD",
    ]
    found = caller.must("GET", f"/containers/{running}/top?ps_args=-o%20pid,comm")
    assert found["Titles"] == ["PID", "COMMAND"]
    assert found["Processes"] == [[str(node.state(running)["Pid"]), "sleep"]]
    refused = caller.call("GET", f"/containers/{running}/top?ps_args=--nonsense")
    assert (refused.status, "ps --nonsense failed" in refused.text) == (400, True)


def test_statistics_have_dockers_shape(node: Node) -> None:
    burn = "dd if=/dev/zero of=/f bs=1M count=2 2>/dev/null; while :; do :; done"
    node.run("--name", "busy", "--memory", "64m", "--pids-limit", "50", "busybox", "sh", "-c", burn)
    caller = Caller(node.socket)
    once = caller.must("GET", "/containers/busy/stats?stream=0&one-shot=1")
    assert once["preread"] == "0001-01-01T00:00:00Z"
    assert (once["name"], once["pids_stats"]["limit"]) == ("/busy", 50)
    pair = caller.must("GET", "/containers/busy/stats?stream=0")
    assert pair["precpu_stats"]["cpu_usage"]["total_usage"] > 0
    used = pair["cpu_stats"]["cpu_usage"]["total_usage"] - pair["precpu_stats"]["cpu_usage"]["total_usage"]
    assert used > 100_000_000, "a second of a busy loop between the two"
    assert pair["cpu_stats"]["system_cpu_usage"] > pair["precpu_stats"]["system_cpu_usage"]
    assert (pair["memory_stats"]["limit"], pair["memory_stats"]["usage"] > 0) == (64 * MIB, True)
    keys = {"rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"}
    assert set(pair["networks"]) == {"eth0"}
    assert keys <= set(pair["networks"]["eth0"])
    assert {"io_service_bytes_recursive", "io_serviced_recursive"} <= set(pair["blkio_stats"])
    assert pair["num_procs"] == 0
    stream = caller.call("GET", "/containers/busy/stats", patience=0.5)
    assert stream.text == STREAMS
    node.docker("stop", "-t", "0", "busy")
    assert caller.must("GET", "/containers/busy/stats?stream=0&one-shot=1")["memory_stats"] == {}
