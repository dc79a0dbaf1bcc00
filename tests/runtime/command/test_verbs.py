"""Each verb, the states in which it may be used, and what it answers otherwise."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from worker.runtime.command.main import RELEASE

pytestmark = pytest.mark.root


def wrong(done, *words):
    """The error is one line on stderr that says all of ``words``."""
    assert done.out == ""
    assert all(word in done.err for word in words), done.err
    assert done.err.count("\n") == 1


def test_a_life(runtime):
    runtime.create("a", ["sleep", "1000"], annotations={"org.example": "yes"})
    created = runtime.state("a")
    assert created["status"] == "created"
    assert created["id"] == "a"
    assert created["bundle"] == str(runtime.base / "bundle-a")
    assert created["ociVersion"] == "1.0.2"
    assert created["annotations"] == {"org.example": "yes"}
    assert created["rootfs"] == str(runtime.rootfs)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", created["created"])
    comm = Path(f"/proc/{created['pid']}/comm")
    assert comm.read_text() == "covey-runtime\n"
    runtime.call("start", "a")
    assert runtime.state("a") == {**created, "status": "running"}
    assert comm.read_text() == "sleep\n"
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    assert runtime.state("a")["pid"] == 0
    runtime.call("delete", "a")
    wrong(runtime.call("state", "a", code=1), "'a' does not exist")
    assert not runtime.group("a").exists()


def test_a_process_in_its_state_directory_is_closed_to_others(runtime):
    runtime.create("a")
    assert os.stat(runtime.root).st_mode & 0o777 == 0o700
    assert os.stat(runtime.root / "a").st_mode & 0o777 == 0o700


@pytest.mark.parametrize("verb", ["start", "state", "kill", "delete", "ps", "pause", "resume", "exec", "update", "events"])
def test_an_unknown_container(runtime, verb):
    more = {"exec": ["true"], "update": ["--memory", "100m"]}.get(verb, [])
    options = more if verb == "update" else []
    words = [] if verb == "update" else more
    done = runtime.call(verb, *options, "nobody", *words, code=None)
    assert done.code == (255 if verb == "exec" else 1)
    wrong(done, "'nobody' does not exist")


@pytest.mark.parametrize("ident", ["a/b", "..", ".", "", ".hidden", "a b", "ä", "x" * 300])
def test_a_bad_id(runtime, ident):
    wrong(runtime.call("create", "--bundle", runtime.bundle("x", ["true"]), ident, code=1), "invalid character", "container ID")
    wrong(runtime.call("delete", "--force", ident, code=1), "invalid character", "container ID")


def test_start_needs_a_created_container(runtime):
    runtime.start("a")
    wrong(runtime.call("start", "a", code=1), "is running")
    runtime.call("pause", "a")
    wrong(runtime.call("start", "a", code=1), "is paused")
    runtime.call("delete", "--force", "a")
    runtime.start("b", ["true"])
    runtime.wait_status("b", "stopped")
    wrong(runtime.call("start", "b", code=1), "is stopped")


def test_kill(runtime):
    runtime.start("a", ["sh", "-c", "trap 'exit 0' USR1; while true; do sleep 0.01; done"])
    wrong(runtime.call("kill", "a", "NOPE", code=1), "unknown signal 'NOPE'")
    wrong(runtime.call("kill", "a", "0", code=1), "unknown signal '0'")
    wrong(runtime.call("kill", "a", "SIGRTMIN+99", code=1), "unknown signal")
    # As pid 1 without a handler it takes no notice of TERM, the default.
    runtime.call("kill", "a")
    assert runtime.state("a")["status"] == "running"
    runtime.call("kill", "a", "SIGUSR1")
    runtime.wait_status("a", "stopped")
    wrong(runtime.call("kill", "a", "KILL", code=1), "container not running")


def test_kill_of_a_created_container(runtime):
    runtime.create("a")
    runtime.call("kill", "a", "9")
    runtime.wait_status("a", "stopped")


def test_kill_all_reaches_every_process(runtime):
    """Without a pid namespace of its own the container's other processes outlive the first."""
    namespaces = [{"type": kind} for kind in ("network", "ipc", "uts", "mount")]
    state = runtime.start("a", ["sh", "-c", "sleep 1000 & sleep 1000"], linux={"namespaces": namespaces})
    group = runtime.group("a")
    others = [pid for pid in group.pids() if pid != state["pid"]]
    assert others
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    assert set(others) <= set(group.pids())
    runtime.call("kill", "--all", "a", "KILL")
    runtime.wait_for("end of all", lambda: not any(runtime.runs(pid) for pid in others))
    runtime.call("delete", "a")


def test_delete_follows_runc(runtime):
    runtime.start("a")
    wrong(runtime.call("delete", "a", code=1), "not stopped", "is running")
    runtime.call("pause", "a")
    wrong(runtime.call("delete", "a", code=1), "not stopped", "is paused")
    runtime.call("delete", "--force", "a")
    runtime.create("b")
    pid = runtime.state("b")["pid"]
    runtime.call("delete", "b")
    assert not runtime.runs(pid)
    runtime.call("delete", "--force", "nobody")
    assert runtime.ids() == []


def test_delete_removes_groups_the_container_made(runtime):
    runtime.start("a")
    for directory in runtime.group("a").directories():
        os.mkdir(f"{directory}/inner")
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    runtime.call("delete", "a")
    assert not runtime.group("a").exists()


def test_delete_by_a_pattern(runtime):
    for ident in ("one-a", "one-b", "two"):
        runtime.create(ident)
    runtime.call("delete", "--force", "--regex", "^one-.$")
    assert runtime.ids() == ["two"]
    wrong(runtime.call("delete", "--regex", "(", code=1), "--regex")


def test_delete_of_one_frozen_by_somebody_else(runtime):
    """A cgroup v1 process that was put into a frozen group that is not its container's does not even die by KILL."""
    pid = runtime.start("a")["pid"]
    group = runtime.group("a")
    freezer = group.directory("freezer")
    if group.version != 1 or freezer is None:
        pytest.skip("a process is frozen apart from its other cgroups on cgroup v1 only")
    foreign = Path(freezer).parent / "foreign"
    foreign.mkdir()
    try:
        (foreign / "cgroup.procs").write_text(str(pid))
        (foreign / "freezer.state").write_text("FROZEN")
        runtime.call("delete", "--force", "a")
        assert not runtime.runs(pid)
    finally:
        (foreign / "freezer.state").write_text("THAWED")
        runtime.wait_for("removal", lambda: foreign.rmdir() is None)


def test_pause_and_resume(runtime):
    runtime.start("a")
    wrong(runtime.call("resume", "a", code=1), "is running")
    runtime.call("pause", "a")
    assert runtime.state("a")["status"] == "paused"
    wrong(runtime.call("pause", "a", code=1), "is paused")
    done = runtime.call("exec", "a", "true", code=255)
    wrong(done, "paused", "--ignore-paused")
    runtime.call("resume", "a")
    assert runtime.state("a")["status"] == "running"
    runtime.call("pause", "a")
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    wrong(runtime.call("pause", "a", code=1), "is stopped")


def test_list(runtime):
    assert json.loads(runtime.call("list", "--format", "json").out) == []
    assert runtime.call("list").out.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    runtime.create("one")
    state = runtime.start("two")
    listed = json.loads(runtime.call("list", "-f", "json").out)
    assert [entry["id"] for entry in listed] == ["one", "two"]
    assert listed[1] == state
    assert runtime.call("list", "-q").out == "one\ntwo\n"
    head, *lines = runtime.call("list").out.splitlines()
    assert lines[1].split()[:3] == ["two", str(state["pid"]), "running"]
    assert head.index("STATUS") == lines[1].index("running")
    wrong(runtime.call("list", "--format", "xml", code=1), "use table or json")


def test_ps(runtime):
    state = runtime.start("a", ["sh", "-c", "sleep 1000 & sleep 1000"])
    pids = json.loads(runtime.call("ps", "--format", "json", "a").out)
    assert state["pid"] in pids
    assert pids == runtime.group("a").pids()
    head, *lines = runtime.call("ps", "a").out.splitlines()
    assert head.split()[:2] == ["UID", "PID"]
    assert {int(line.split()[1]) for line in lines} == set(pids)
    assert runtime.call("ps", "a", "-o", "pid,args").out.splitlines()[0].split() == ["PID", "COMMAND"]
    wrong(runtime.call("ps", "a", "-o", "comm", code=1), "no PID column")


def test_update_shows_in_the_cgroup(runtime):
    runtime.start("a", linux={"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 10}}})
    group = runtime.group("a")
    if group.version != 1:
        pytest.skip("files of cgroup v1; limits of v2 are tested in tests/runtime/test_limits.py")

    def read(controller, file):
        return Path(f"{group.directory(controller)}/{file}").read_text().strip()

    runtime.call("update", "--memory", "128m", "--cpu-share", "512", "a")
    assert read("memory", "memory.limit_in_bytes") == str(128 << 20)
    assert read("cpu", "cpu.shares") == "512"
    assert read("pids", "pids.max") == "10"
    limits = {"memory": {"limit": 96 << 20}, "pids": {"limit": 7}, "cpu": None, "devices": None}
    runtime.call("update", "--resources", "-", "a", stdin=json.dumps(limits))
    assert (read("memory", "memory.limit_in_bytes"), read("pids", "pids.max")) == (str(96 << 20), "7")
    file = runtime.base / "limits.json"
    file.write_text(json.dumps({"cpu": {"quota": 50000, "period": 100000}}))
    runtime.call("update", "-r", str(file), "a")
    assert read("cpu", "cpu.cfs_quota_us") == "50000"
    recorded = json.loads((runtime.root / "a/config.json").read_text())["linux"]["resources"]
    assert recorded["memory"]["limit"] == 96 << 20
    assert recorded["cpu"] == {"shares": 512, "quota": 50000, "period": 100000}
    wrong(runtime.call("update", "a", code=1), "--resources FILE")
    wrong(runtime.call("update", "--memory", "lots", "a", code=1), "not a number of bytes")
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    wrong(runtime.call("update", "--memory", "64m", "a", code=1), "is stopped")


def test_events_stats(runtime):
    runtime.start("a", linux={"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 10}}})
    event = json.loads(runtime.call("events", "--stats", "a").out)
    assert (event["type"], event["id"]) == ("stats", "a")
    data = event["data"]
    assert set(data) == {"cpu", "memory", "pids", "blkio", "hugetlb"}
    assert set(data["cpu"]["usage"]) == {"total", "percpu", "kernel", "user"}
    assert set(data["cpu"]["throttling"]) == {"periods", "throttledPeriods", "throttledTime"}
    assert {"limit", "usage", "max", "failcnt"} <= set(data["memory"]["usage"])
    assert data["memory"]["usage"]["limit"] == 64 << 20
    assert data["cpu"]["usage"]["total"] > 0
    assert data["pids"] == {"current": 1, "limit": 10}
    wrong(runtime.call("events", "--interval", "soon", "a", code=1), "not a duration")


def test_events_follow_until_the_end(runtime):
    """Statistics at each interval, the out-of-memory event, and an end with the container's."""
    script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; tail /dev/zero; sleep 1000"
    runtime.start("a", ["sh", "-c", script], linux={"resources": {"memory": {"limit": 16 << 20}}})
    log = runtime.base / "events"
    with open(log, "w") as file:
        following = subprocess.Popen(runtime.line("events", "--interval", "100ms", "a"), stdout=file)
    try:

        def kinds():
            return [json.loads(line)["type"] for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]

        runtime.wait_for("two intervals", lambda: kinds().count("stats") >= 2)
        runtime.call("exec", "a", "touch", "/tmp/go")
        runtime.wait_for("the event", lambda: "oom" in kinds())
        runtime.call("kill", "a", "KILL")
        assert following.wait(10) == 0
    finally:
        following.kill()
        following.wait()


def test_spec_makes_a_bundle_that_runs(runtime, tmp_path):
    bundle = tmp_path / "fresh"
    bundle.mkdir()
    runtime.call("spec", "--bundle", bundle)
    wrong(runtime.call("spec", "-b", bundle, code=1), "exists: remove it first")
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "rootfs").symlink_to(runtime.rootfs)
    config["process"].update(terminal=False, args=["sh", "-c", "hostname; id -u"])
    config["linux"]["cgroupsPath"] = f"{runtime.parent}/fresh"
    (bundle / "config.json").write_text(json.dumps(config))
    assert runtime.call("run", "fresh", cwd=bundle).out == "covey\n0\n"


def test_features(runtime):
    """features-schema.json's required fields; what they say is tested with worker.runtime.features."""
    body = json.loads(runtime.call("features").out)
    assert body["ociVersionMin"].startswith("1.0")
    assert body["ociVersionMax"].startswith("1.")
    assert {"createRuntime", "poststop"} <= set(body["hooks"])
    assert "bind" in body["mountOptions"]
    assert {"pid", "mount"} <= set(body["linux"]["namespaces"])
    assert body["linux"]["cgroup"]["systemd"] is False
    assert body["linux"]["seccomp"]["enabled"] is True


def test_version_is_the_projects():
    """Three lines, as go-runc parses them."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["version"]
    assert project == RELEASE


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_version(runtime, option):
    lines = runtime.call(option).out.splitlines()
    assert lines[0] == f"covey-runtime version {RELEASE}"
    assert lines[1].startswith("commit: ")
    assert re.fullmatch(r"spec: 1\.\d+\.\d+", lines[2])
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--systemd-cgroup", "list"], "cgroupfs"),
        (["--cgroup-manager", "systemd", "list"], "cgroupfs"),
        (["--cgroup-manager=other", "list"], "cgroupfs"),
        (["--log-format", "xml", "list"], "text or json"),
        (["--log-level", "loud", "list"], "debug, info, warn or error"),
        (["frobnicate"], "not a command"),
    ],
)
def test_refused_lines(runtime, line, words):
    wrong(runtime.call(*line, code=1), words)


def test_accepted_global_options(runtime):
    runtime.call("--cgroup-manager", "cgroupfs", "--rootless", "false", "--debug=false", "--log-level", "error", "list")


def test_the_log_is_what_containerd_reads(runtime):
    for form in ("json", "text"):
        log = runtime.base / f"{form}.log"
        done = runtime.call("--log", log, "--log-format", form, "state", "nobody", code=1)
        assert "does not exist" in done.err
        line = log.read_text()
        if form == "json":
            entry = json.loads(line)
            assert set(entry) == {"level", "msg", "time"}
            assert entry["level"] == "error"
            assert "does not exist" in entry["msg"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["time"])
        else:
            assert re.fullmatch(r'time="[^"]+" level=error msg="container .nobody. does not exist.*"\n', line)


def test_a_log_that_cannot_be_written(runtime):
    wrong(runtime.call("--log", runtime.base / "no/log", "list", code=1), "--log", "No such file")
    wrong(runtime.call("--log", "syslog:x", "list", code=1, cwd=runtime.base), "only a file")
    assert not (runtime.base / "syslog:x").exists()
    runtime.call("--log", f"file:{runtime.base}/log", "state", "nobody", code=1)
    assert "does not exist" in (runtime.base / "log").read_text()


def test_debug_says_what_is_done(runtime):
    log = runtime.base / "debug.log"
    runtime.call("--debug", "--log", log, "--log-format", "json", "list")
    assert [json.loads(line)["level"] for line in log.read_text().splitlines()] == ["debug"]


def test_a_signal_reaches_nobody_who_got_the_pid_later(runtime):
    """A record whose start time is not that of the process: the container has stopped, and the other is left alone."""
    runtime.start("a")
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            file = runtime.root / "a/state.json"
            before = file.read_text()
            file.write_text(json.dumps({**json.loads(before), "pid": other.pid}))
            assert runtime.state("a")["status"] == "stopped"
            runtime.call("kill", "a", "KILL", code=1)
            runtime.call("delete", "a")
            assert other.poll() is None
        finally:
            other.send_signal(signal.SIGKILL)
