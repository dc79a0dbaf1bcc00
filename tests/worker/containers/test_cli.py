"""The unmodified docker CLI against our engine: life, exit codes and words, streams."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Node, wait_until

pytestmark = pytest.mark.root


def test_run_prints_and_returns_the_exit_code(node: Node) -> None:
    assert node.out("run", "--rm", "busybox", "echo", "hi") == "hi"
    assert node.docker("run", "--rm", "busybox", "sh", "-c", "echo err >&2; exit 7", code=7).stderr == "err\n"
    assert node.docker("run", "-i", "--rm", "busybox", "cat", text="piped\n").stdout == "piped\n"
    assert node.out("ps", "-aq") == "", "--rm left a container"


def test_a_megabyte_goes_through_and_nothing_is_lost(node: Node) -> None:
    data = "".join(f"{number:07d}\n" for number in range(131072))
    assert node.docker("run", "-i", "--rm", "busybox", "cat", text=data).stdout == data


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH'),
        ("/no/such", 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_what_cannot_be_run_has_dockers_code_and_words(node: Node, program: str, code: int, words: str) -> None:
    assert words in node.docker("run", "--name", "bad", "busybox", program, code=code).stderr
    state = node.state("bad")
    assert (state["Status"], state["ExitCode"]) == ("created", code)
    assert words in state["Error"]


def test_refusals(node: Node) -> None:
    node.run("--name", "one", "-p", "8081:80", "busybox", "sleep", "100")
    words = node.docker("create", "--name", "one", "busybox", code=1).stderr
    assert 'Conflict. The container name "/one" is already in use by container' in words
    assert "port is already allocated" in node.docker("run", "--name", "two", "-p", "8081:80", "busybox", code=125).stderr
    assert node.state("two")["Status"] == "created"
    assert "container is running: stop the container before removing" in node.docker("rm", "one", code=1).stderr
    assert "No such container: nosuch" in node.docker("start", "nosuch", code=1).stderr
    assert "lookup registry-1.docker.io: no such host" in node.docker("run", "nosuch", code=125).stderr
    assert "unable to find user nosuch" in node.docker("run", "--user", "nosuch", "busybox", code=125).stderr
    source = 'invalid mount config for type "bind": bind source path does not exist: /no/where'
    assert source in node.docker("run", "--mount", "type=bind,src=/no/where,dst=/x", "busybox", code=125).stderr


def test_stop_kill_start_restart(node: Node) -> None:
    trap = 'trap "echo got; exit 3" TERM; while true; do sleep 0.05; done'
    node.run("--name", "one", "busybox", "sh", "-c", trap)
    wait_until(lambda: node.out("top", "one").count("\n") >= 1, "the shell runs")
    node.docker("stop", "one")
    assert node.state("one")["ExitCode"] == 3
    node.docker("stop", "one")
    node.docker("start", "one")
    began = time.monotonic()
    node.docker("kill", "one")
    assert time.monotonic() - began < 5
    assert node.state("one")["ExitCode"] == 137
    assert "is not running" in node.docker("kill", "one", code=1).stderr
    assert node.out("wait", "one") == "137"
    node.docker("restart", "-t", "0", "one")
    assert node.state("one")["Running"] is True
    assert "got" in node.out("logs", "one")


def test_stop_kills_after_its_grace(node: Node) -> None:
    node.run("--name", "deaf", "busybox", "sh", "-c", "trap '' TERM; while true; do sleep 0.05; done")
    began = time.monotonic()
    node.docker("stop", "-t", "1", "deaf")
    assert 1.0 <= time.monotonic() - began < 6
    assert node.state("deaf")["ExitCode"] == 137


def test_pause(node: Node) -> None:
    node.run("--name", "one", "busybox", "sleep", "100")
    node.docker("pause", "one")
    assert node.state("one")["Paused"] is True
    assert "is paused, unpause the container before exec" in node.docker("exec", "one", "true", code=1).stderr
    node.docker("unpause", "one")
    node.docker("exec", "one", "true")
    node.docker("pause", "one")
    node.docker("rm", "-f", "one")


def test_exec(node: Node) -> None:
    node.run("--name", "one", "-e", "A=a", "busybox", "sleep", "100")
    done = node.docker("exec", "-e", "B=b", "-w", "/tmp", "one", "sh", "-c", "echo $A$B; pwd; echo e >&2; exit 4", code=4)
    assert (done.stdout, done.stderr) == ("ab\n/tmp\n", "e\n")
    assert node.docker("exec", "-i", "one", "cat", text="half-close").stdout == "half-close"
    assert node.out("exec", "-u", "www", "one", "id", "-u") == "1000"
    assert "executable file not found" in node.docker("exec", "one", "nosuch", code=127).stdout
    node.docker("exec", "-d", "one", "sh", "-c", "touch /done")
    wait_until(lambda: node.docker("exec", "one", "test", "-f", "/done", code=None).returncode == 0, "detached exec ran")


def test_logs(node: Node) -> None:
    node.run("--name", "one", "busybox", "sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.1; done")
    followed = node.docker("logs", "-f", "one")
    assert (followed.stdout.split(), followed.stderr.split()) == (["o1", "o2", "o3"], ["e1", "e2", "e3"])
    assert node.docker("logs", "--tail", "1", "one").stderr == "e3\n"
    stamped = node.docker("logs", "-t", "--tail", "1", "one").stderr
    assert stamped.split()[1] == "e3"
    assert len(stamped.split()[0]) == len("2026-11-24T00:50:14.508796416Z")


def test_logs_of_rotated_files_are_one(node: Node) -> None:
    options = ("--log-opt", "max-size=2k", "--log-opt", "max-file=50")
    node.run("--name", "one", *options, "busybox", "sh", "-c", "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done")
    assert node.docker("logs", "-f", "one").stdout.splitlines() == [f"line {number}" for number in range(100)]
    assert node.docker("logs", "--tail", "30", "one").stdout.splitlines() == [f"line {number}" for number in range(70, 100)]


def test_a_terminal(node: Node) -> None:
    master, slave = pty.openpty()
    command = ["docker", "-H", f"unix://{node.socket}", "run", "--rm", "-it", "busybox", "sh", "-c", "tty; read x; echo got $x"]
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    sent = False
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and b"got abc" not in seen:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
        if b"/dev/pts/0" in seen and not sent:
            os.write(master, b"abc\n")
            sent = True
    assert b"got abc" in seen, seen
    assert child.wait(10) == 0
    os.close(master)


def test_input_stays_open_for_the_next_who_attaches(node: Node) -> None:
    node.run("-i", "--name", "one", "busybox", "sh", "-c", "while read x; do echo got $x; done; echo over")
    for word in ("first", "second"):
        attach = ["docker", "-H", f"unix://{node.socket}", "attach", "--sig-proxy=false", "one"]
        client = subprocess.Popen(attach, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{word}\n")
        client.stdin.close()
        assert client.stdout.readline() == f"got {word}\n"
        client.kill()
        client.wait()
        client.stdout.close()
    assert node.state("one")["Running"] is True
    assert node.out("logs", "one").split("\n") == ["got first", "got second"]


def test_many_at_once(node: Node) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        command = ["docker", "-H", f"unix://{node.socket}", "run", "--rm", "busybox", "echo", str(number)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    children = [start(number) for number in range(12)]
    assert [child.communicate(timeout=30)[0] for child in children] == [f"{number}\n" for number in range(12)]
    assert node.out("ps", "-aq") == ""


def test_ports_are_reached_and_shown(node: Node) -> None:
    serve = "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w"
    node.run("--name", "web", "-p", "8080:80", "-p", "127.0.0.1::81", "busybox", "sh", "-c", serve)
    fetch = node.inside("curl", "-s", "--max-time", "3", "127.0.0.1:8080")
    wait_until(lambda: subprocess.run(fetch, capture_output=True, text=True).stdout == "hello\n", "the page is served")
    ports = node.inspect("web")["NetworkSettings"]["Ports"]
    assert ports["80/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]
    assert ports["81/tcp"][0]["HostIp"] == "127.0.0.1"
    assert int(ports["81/tcp"][0]["HostPort"]) > 0
    assert "0.0.0.0:8080->80/tcp" in node.out("ps", "--format", "{{.Ports}}")


def test_networks(node: Node) -> None:
    node.docker("network", "create", "net1")
    try:
        node.run("--name", "one", "--network", "net1", "--network-alias", "other", "busybox", "sleep", "100")
        node.docker("run", "--rm", "--network", "net1", "busybox", "ping", "-c", "1", "other")
        own = node.inspect("one")["NetworkSettings"]["Networks"]["net1"]["IPAddress"]
        assert own in node.out("run", "--rm", "--network", "container:one", "busybox", "ip", "addr")
        assert "has active endpoints" in node.docker("network", "rm", "net1", code=1).stderr
        node.docker("network", "connect", "bridge", "one")
        assert set(node.inspect("one")["NetworkSettings"]["Networks"]) == {"net1", "bridge"}
        node.docker("network", "disconnect", "bridge", "one")
        assert node.out("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net") == "lo"
    finally:
        node.clear()
        node.docker("network", "rm", "net1")


def test_what_is_mounted_on_the_machine_after_the_daemons_start_is_bound(node: Node, tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    node.out("run", "--rm", "busybox", "true")
    subprocess.run(node.inside("mount", "-t", "tmpfs", "tmpfs", str(late)), check=True)
    try:
        subprocess.run(node.inside("touch", str(late / "file")), check=True)
        for _ in range(3):
            assert node.out("run", "--rm", "-v", f"{late}:/late", "busybox", "ls", "/late") == "file"
    finally:
        subprocess.run(node.inside("umount", str(late)), check=True)


def test_shared_memory_that_others_may_join_is_a_file_system_of_its_size(node: Node) -> None:
    line = node.out("run", "--rm", "--ipc", "shareable", "--shm-size", "8m", "busybox", "df", "-k", "/dev/shm").splitlines()[-1]
    assert line.split()[1] == "8192", line


def test_volumes_binds_and_tmpfs(node: Node) -> None:
    node.docker("volume", "create", "vol1")
    node.docker("run", "--rm", "-v", "vol1:/data", "busybox", "sh", "-c", "echo kept > /data/f")
    assert node.out("run", "--rm", "-v", "vol1:/data:ro", "busybox", "cat", "/data/f") == "kept"
    refused = node.docker("run", "--rm", "-v", "vol1:/data:ro", "busybox", "touch", "/data/g", code=1)
    assert "Read-only file system" in refused.stderr
    node.docker("create", "--name", "holds", "-v", "vol1:/data", "busybox")
    assert "volume is in use" in node.docker("volume", "rm", "vol1", code=1).stderr
    node.docker("rm", "holds")
    node.docker("volume", "rm", "vol1")
    assert "hello from covey" in node.out("run", "--rm", "-v", "/www", "busybox", "cat", "/www/index.html")
    assert node.out("volume", "ls", "-q") == "", "--rm left an anonymous volume"
    source = node.root / "made"
    node.docker("run", "--rm", "-v", f"{source}:/x", "busybox", "touch", "/x/file")
    assert (source / "file").exists(), "-v makes a missing source"
    assert "size=1024k" in node.out("run", "--rm", "--tmpfs", "/t:size=1m", "busybox", "grep", " /t ", "/proc/mounts")


def test_limits_reach_the_kernel(node: Node) -> None:
    node.run("--name", "one", "--cpus", "0.5", "-m", "64m", "--pids-limit", "10", "busybox", "sleep", "100")
    inspected = node.inspect("one")["HostConfig"]
    assert (inspected["Memory"], inspected["NanoCpus"], inspected["PidsLimit"]) == (64 << 20, 500000000, 10)
    reader = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert node.out("exec", "one", "sh", "-c", reader) == str(64 << 20)
    node.docker("update", "--memory", "128m", "--memory-swap", "256m", "one")
    assert node.out("exec", "one", "sh", "-c", reader) == str(128 << 20)
    assert node.out("run", "--rm", "--ulimit", "nofile=100:200", "busybox", "sh", "-c", "ulimit -n; ulimit -Hn") == "100\n200"
    stats = json.loads(node.out("stats", "--no-stream", "--format", "{{json .}}", "one"))
    assert stats["PIDs"] == "1"
    assert "128MiB" in stats["MemUsage"]


def test_out_of_memory_is_told(node: Node) -> None:
    node.docker("run", "--name", "fat", "-m", "12m", "--memory-swap", "12m", "busybox", "tail", "/dev/zero", code=137)
    assert node.state("fat")["OOMKilled"] is True


def test_confinement(node: Node) -> None:
    script = "grep -e CapEff -e Seccomp: -e NoNewPrivs /proc/self/status; cat /proc/interrupts; ls /sys/firmware; ps | wc -l"
    lines = node.out("run", "--rm", "--security-opt", "no-new-privileges", "busybox", "sh", "-c", script).split()
    assert lines[:6] == ["CapEff:", "00000000a80425fb", "NoNewPrivs:", "1", "Seccomp:", "2"]
    dropped = node.out("run", "--rm", "--cap-drop", "ALL", "busybox", "grep", "CapBnd", "/proc/self/status")
    assert dropped.split()[1] == "0" * 16
    assert "Read-only" in node.docker("run", "--rm", "--read-only", "busybox", "touch", "/x", code=1).stderr
    free = ("--security-opt", "seccomp=unconfined")
    assert node.out("run", "--rm", *free, "busybox", "grep", "Seccomp:", "/proc/self/status").split()[1] == "0"


def test_init_reaps(node: Node) -> None:
    assert "docker-init" in node.out("run", "--rm", "--init", "busybox", "cat", "/proc/1/cmdline")


def test_health(node: Node) -> None:
    options = ("--health-cmd", "test -f /ok", "--health-interval", "100ms", "--health-retries", "2")
    node.run("--name", "one", *options, "busybox", "sleep", "100")

    def status() -> str:
        return str(node.state("one")["Health"]["Status"])

    wait_until(lambda: status() == "unhealthy", "two failures make it unhealthy")
    node.docker("exec", "one", "touch", "/ok")
    wait_until(lambda: status() == "healthy", "one success makes it healthy")
    assert "(healthy)" in node.out("ps", "--format", "{{.Status}}")
    assert node.state("one")["Health"]["Log"][-1]["ExitCode"] == 0
    assert node.events("event=health_status", "container=one")[-2:] == ["health_status: unhealthy", "health_status: healthy"]


def test_restart_policies(node: Node) -> None:
    node.run("--name", "few", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 3")
    wait_until(lambda: (node.state("few")["Status"], node.inspect("few")["RestartCount"]) == ("exited", 2), "two restarts")
    assert node.out("logs", "few").split() == ["run"] * 3
    node.run("--name", "always", "--restart", "always", "busybox", "sleep", "100")
    first = node.state("always")["Pid"]
    os.kill(first, 9)
    wait_until(lambda: node.state("always")["Pid"] not in (0, first), "it runs again")
    node.docker("stop", "-t", "0", "always")
    assert node.state("always")["Status"] == "exited"


def test_rename_list_and_filters(node: Node) -> None:
    node.run("--name", "one", "--label", "k=v", "busybox", "sleep", "100")
    node.docker("create", "--name", "two", "busybox")
    node.docker("rename", "one", "first")
    assert node.out("ps", "--format", "{{.Names}}") == "first"
    assert set(node.out("ps", "-a", "--format", "{{.Names}}").split()) == {"first", "two"}
    for wanted, found in (("label=k=v", "first"), ("status=created", "two"), ("name=fir", "first"), ("volume=x", "")):
        assert node.out("ps", "-a", "--filter", wanted, "--format", "{{.Names}}") == found
    assert set(node.out("ps", "-a", "--filter", "ancestor=busybox", "-q").split()) == set(node.out("ps", "-aq").split())
    assert "invalid filter" in node.docker("ps", "--filter", "nonsense=1", code=1).stderr
    assert "Total reclaimed space" in node.out("container", "prune", "-f")
    assert node.out("ps", "-a", "--format", "{{.Names}}") == "first"


def test_images(node: Node) -> None:
    node.docker("tag", "busybox", "other:1")
    assert node.docker("rmi", "other:1").stdout == "Untagged: other:1\n"
    assert json.loads(node.out("image", "inspect", "busybox"))[0]["Config"]["Labels"] == {"made": "here"}
    assert "No such image" in node.docker("image", "inspect", "nosuch", code=1).stderr
    node.docker("create", "--name", "one", "busybox")
    assert "container" in node.docker("rmi", "busybox", code=1).stderr


def test_info_and_version(node: Node) -> None:
    info = json.loads(node.out("info", "--format", "{{json .}}"))
    assert (info["Driver"], info["Name"], info["Swarm"]["LocalNodeState"]) == ("overlay2", "test-node", "inactive")
    assert node.out("version", "--format", "{{.Server.Version}}") == "0.1.0"
