"""Containers run by the distribution's runc and crun, behind the same shim: the same verbs, streams, exits and adoption."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from covey.errors import InvalidArgument
from worker.containers import runtimes, seccomp

from .conftest import CONTROLLERS, Node, other_runtimes, wait_until
from .states_and_verbs import Caller

OTHERS = ("debian-runc", "debian-crun")


@pytest.fixture(params=OTHERS)
def runtime(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not shutil.which(name.removeprefix("debian-")):
        pytest.skip(f"no {name.removeprefix('debian-')} on this machine: apt-get install it")
    return name


def shim_of(node: Node, ref: str) -> int:
    directory = node.root / "run" / "containers" / str(node.inspect(ref)["Id"])
    return int(json.loads((directory / "shim.json").read_text())["pid"])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.root
def test_run_streams_and_exit_codes(node: Node, runtime: str) -> None:
    done = node.docker("run", "--rm", "--runtime", runtime, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert node.docker("run", "--rm", "-i", "--runtime", runtime, "busybox", "cat", text="through\n").stdout == "through\n"
    done = node.docker("run", "--rm", "--runtime", runtime, "busybox", "nosuch", code=127)
    assert "executable file not found in $PATH" in done.stderr
    done = node.docker("run", "--rm", "--runtime", runtime, "busybox", "/etc/passwd", code=126)
    assert "permission denied" in done.stderr
    assert not [path for path in CONTROLLERS.rglob(f"{node.cgroup.strip('/')}/*") if path.is_dir() and len(path.name) == 64]


@pytest.mark.root
def test_it_is_the_runtime_that_was_asked_for(node: Node, runtime: str) -> None:
    ident = node.run("--name", "theirs", "--runtime", runtime, "busybox", "sleep", "100")
    assert node.inspect("theirs")["HostConfig"]["Runtime"] == runtime
    state = node.root / "run" / "containers" / ident / "runtime"
    assert [path.name for path in state.iterdir()] == [ident]
    info = Caller(node.socket).must("GET", "/info")
    assert runtime in info["Runtimes"]
    assert (info["DefaultRuntime"], info["Runtimes"]["covey"]) == ("covey", {"path": "covey"})


@pytest.mark.root
def test_the_verbs(node: Node, runtime: str) -> None:
    script = "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    node.run("--name", "theirs", "--runtime", runtime, "busybox", "sh", "-c", script)
    wait_until(lambda: node.out("logs", "theirs") == "ready", "it runs")
    node.docker("pause", "theirs")
    assert node.state("theirs")["Status"] == "paused"
    node.docker("unpause", "theirs")
    node.docker("update", "--memory", "64m", "--memory-swap", "-1", "theirs")
    shown = node.out("exec", "theirs", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert int(shown) == 64 << 20
    assert "sleep" in node.out("top", "theirs")
    assert node.out("stats", "--no-stream", "--format", "{{.PIDs}}", "theirs") in ("1", "2")
    node.docker("stop", "theirs")
    assert node.state("theirs")["ExitCode"] == 5
    assert node.out("logs", "theirs") == "ready\nterm"
    node.docker("start", "theirs")
    node.docker("kill", "theirs")
    assert node.state("theirs")["ExitCode"] == 137
    node.docker("rm", "theirs")


@pytest.mark.root
def test_exec(node: Node, runtime: str) -> None:
    node.run("--name", "theirs", "--runtime", runtime, "-e", "GIVEN=1", "busybox", "sleep", "100")
    done = node.docker("exec", "-e", "MORE=2", "theirs", "sh", "-c", "echo $GIVEN$MORE; echo err >&2; exit 9", code=9)
    assert (done.stdout, done.stderr) == ("12\n", "err\n")
    assert node.docker("exec", "-i", "theirs", "cat", text="in\n").stdout == "in\n"
    done = node.docker("exec", "theirs", "nosuch", code=127)
    assert "executable file not found in $PATH" in done.stdout + done.stderr
    for _ in range(10):
        assert node.out("exec", "theirs", "true") == "", "one that ends before its pid is known"
    node.docker("exec", "-d", "theirs", "sh", "-c", "echo 1 > /made; sleep 100")
    (ident,) = [
        one for one in node.inspect("theirs")["ExecIDs"] if Caller(node.socket).must("GET", f"/exec/{one}/json")["Running"]
    ]
    assert Path(f"/proc/{Caller(node.socket).must('GET', f'/exec/{ident}/json')['Pid']}").exists()
    wait_until(lambda: node.docker("exec", "theirs", "cat", "/made", code=None).stdout == "1\n", "a detached one runs")


@pytest.mark.root
def test_terminals(node: Node, runtime: str) -> None:
    node.docker("run", "-t", "--name", "theirs", "--runtime", runtime, "busybox", "sh", "-c", "test -t 0 && tty; stty size")
    assert node.out("logs", "theirs").splitlines()[0].startswith("/dev/")
    node.docker("rm", "theirs")
    node.run("--name", "theirs", "--runtime", runtime, "busybox", "sleep", "100")
    assert node.docker("exec", "-t", "theirs", "sh", "-c", "test -t 1 && echo terminal").stdout == "terminal\n"


@pytest.mark.root
def test_network_limits_and_confinement(node: Node, runtime: str) -> None:
    node.run("--name", "theirs", "--runtime", runtime, "--memory", "32m", "-p", "8085:80", "busybox", "sleep", "100")
    address = node.inspect("theirs")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert address in node.out("exec", "theirs", "ip", "addr")
    assert int(node.out("exec", "theirs", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes")) == 32 << 20
    status = node.out("exec", "theirs", "grep", "-E", "Seccomp:|CapBnd", "/proc/1/status")
    assert "Seccomp:\t2" in status
    assert "CapBnd:\t00000000a80425fb" in status
    assert node.docker("exec", "theirs", "mount", "-t", "tmpfs", "x", "/mnt", code=None).returncode != 0
    adjusted = node.out("exec", "theirs", "cat", "/proc/self/oom_score_adj")
    assert int(adjusted) >= 0, "the shim's own score is not handed on"


@pytest.mark.root
def test_out_of_memory_and_init(node: Node, runtime: str) -> None:
    node.docker(
        *("run", "--name", "theirs", "--runtime", runtime, "--memory", "16m", "--memory-swap", "16m", "busybox"),
        *("sh", "-c", "exec tail /dev/zero"),
        code=137,
    )
    assert node.state("theirs")["OOMKilled"] is True
    if shutil.which("tini-static") or shutil.which("tini"):
        node.run("--name", "first", "--init", "--runtime", runtime, "busybox", "sleep", "100")
        assert node.out("exec", "first", "cat", "/proc/1/comm") == "docker-init"


@pytest.mark.root
def test_they_outlive_the_daemon_and_are_adopted(node: Node, runtime: str) -> None:
    node.run("--name", "stays", "--runtime", runtime, "busybox", "sh", "-c", "while :; do echo tick; sleep 0.1; done")
    node.run("--name", "ends", "--runtime", runtime, "busybox", "sh", "-c", "while ! test -f /go; do sleep 0.02; done; exit 3")
    before, ends = node.state("stays")["Pid"], node.state("ends")["Pid"]
    node.kill(signal.SIGKILL)
    Path(f"/proc/{ends}/root/go").touch()
    wait_until(lambda: gone(ends), "one ends meanwhile")
    node.start()
    assert (node.state("stays")["Pid"], node.state("stays")["Status"]) == (before, "running")
    wait_until(lambda: node.state("ends")["Status"] == "exited", "its exit is known")
    assert node.state("ends")["ExitCode"] == 3
    assert node.out("exec", "stays", "echo", "ok") == "ok"


@pytest.mark.root
def test_a_killed_shim_takes_it_along(node: Node, runtime: str) -> None:
    node.run("--name", "dies", "--runtime", runtime, "busybox", "sh", "-c", "setsid sleep 100 & sleep 100")
    pid = node.state("dies")["Pid"]
    os.kill(shim_of(node, "dies"), signal.SIGKILL)
    wait_until(lambda: gone(pid), "the container is dead", 2.0)
    wait_until(lambda: node.state("dies")["Status"] == "exited", "it is reported")
    assert (node.state("dies")["ExitCode"], node.state("dies")["Error"]) == (137, "shim died")


@pytest.mark.root
def test_one_that_is_not_there(node: Node) -> None:
    done = node.docker("run", "--runtime", "kata", "busybox", "true", code=125)
    assert "unknown or invalid runtime name: kata" in done.stderr
    body = {"Image": "busybox", "HostConfig": {"Runtime": "x"}}
    assert Caller(node.socket).call("POST", "/containers/create", body).status == 400


def test_options() -> None:
    assert runtimes.parse(["runc=/usr/sbin/runc", "kata=/opt/kata/bin/kata-runtime"]) == {
        "runc": "/usr/sbin/runc", "kata": "/opt/kata/bin/kata-runtime",
    }  # fmt: skip
    for wrong in ("runc", "runc=runc", "=/x", "covey=/x", "a b=/x"):
        with pytest.raises(InvalidArgument, match="--add-runtime"):
            runtimes.parse([wrong])
    assert [runtimes.chosen(name, {"runc": "/r"}, "runc") for name in ("", "runc", "covey")] == ["runc", "runc", "covey"]
    assert [runtimes.chosen(name, (), "covey") for name in ("", "runc", "covey")] == ["covey", "covey", "covey"]
    with pytest.raises(InvalidArgument, match="--default-runtime"):
        runtimes.check_default("kata", ())


def test_the_filter_is_spelled_out_for_others() -> None:
    profile = json.loads(seccomp.default_text())
    plain = runtimes.seccomp(profile, ["CAP_CHOWN"], "x86_64", "6.1.0")
    allowed = {name for rule in plain["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert "read" in allowed
    assert "arch_prctl" in allowed
    assert not {"mount", "bpf", "reboot"} & allowed
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    admin = runtimes.seccomp(profile, ["CAP_SYS_ADMIN"], "x86_64", "6.1.0")
    assert "mount" in {name for rule in admin["syscalls"] for name in rule["names"]}
    assert all(set(rule) <= {"names", "action", "errnoRet", "args"} for rule in admin["syscalls"])


def test_names_of_this_machine(tmp_path: Path) -> None:
    assert set(runtimes.parse(other_runtimes(tmp_path))) <= set(OTHERS)
