"""exec: the process of a file or of the line, where it runs, how its end is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def process_file(runtime, args, **more):
    file = runtime.base / "process.json"
    file.write_text(json.dumps({"cwd": "/", "env": ["PATH=/bin", "FROM=file"], "args": args, **more}))
    return file


def test_a_process_of_the_line(runtime):
    runtime.start("a")
    script = "pwd; id -u; id -g; id -G; echo $A $B; hostname; grep NoNewPrivs /proc/self/status"
    done = runtime.call(
        "exec", "--cwd", "/tmp", "--user", "1000:1001", "-g", "1002", "--env", "A=1", "-e", "B=2", "--no-new-privs", "a",
        "sh", "-c", script,
    )  # fmt: skip
    assert done.out.splitlines()[:3] == ["/tmp", "1000", "1001"]
    assert set(done.out.splitlines()[3].split()) == {"1001", "1002"}
    assert done.out.splitlines()[4:6] == ["1 2", "box"]
    assert done.out.split()[-1] == "1"


def test_a_process_of_a_file(runtime):
    runtime.start("a")
    file = process_file(runtime, ["sh", "-c", "echo $FROM; exit 4"])
    assert runtime.call("exec", "--process", file, "a", code=4).out == "file\n"


def test_exit_codes(runtime):
    runtime.start("a")
    runtime.call("exec", "a", "true")
    runtime.call("exec", "a", "sh", "-c", "exit 33", code=33)
    runtime.call("exec", "a", "sh", "-c", "kill -9 $$", code=137)
    done = runtime.call("exec", "a", "nope", code=255)
    assert 'exec: "nope": executable file not found in $PATH' in done.err
    assert "no such file or directory" in runtime.call("exec", "a", "/nope", code=255).err
    assert "needs a command" in runtime.call("exec", "a", code=1).err
    assert "--process" in runtime.call("exec", "--process", runtime.base / "none", "a", code=255).err


def test_in_which_states(runtime):
    runtime.create("a")
    assert runtime.call("exec", "a", "hostname").out == "box\n"
    runtime.call("kill", "a", "KILL")
    runtime.wait_status("a", "stopped")
    assert "is stopped" in runtime.call("exec", "a", "true", code=255).err


def test_in_a_paused_container_when_asked(runtime):
    """It is frozen as all are there, and ends when they go on."""
    runtime.start("a")
    runtime.call("pause", "a")
    assert "paused" in runtime.call("exec", "a", "true", code=255).err
    with subprocess.Popen(
        runtime.line("exec", "--ignore-paused", "a", "sh", "-c", "exit 6"), stdin=subprocess.DEVNULL
    ) as process:
        try:
            runtime.wait_for("its arrival", lambda: len(runtime.group("a").pids()) == 2)
            assert process.poll() is None
            runtime.call("resume", "a")
            assert process.wait(20) == 6
        finally:
            process.kill()


def test_detached(runtime):
    """As conmon does it: the command ends, the process goes on as the caller's, with the caller's stdio."""
    runtime.start("a")
    pid_file, out = runtime.base / "pid", runtime.base / "out"
    file = process_file(runtime, ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.01; done; echo done"])
    with open(out, "w") as stdout:
        subprocess.run(
            runtime.line("exec", "--pid-file", pid_file, "--process", file, "--detach", "a"),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            check=True,
            timeout=20,
        )
    pid = int(pid_file.read_text())
    assert runtime.runs(pid)
    assert pid in runtime.group("a").pids()
    assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"
    runtime.call("exec", "a", "touch", "/tmp/go")
    runtime.wait_for("its end", lambda: out.read_text() == "done\n")


def test_a_terminal_goes_to_the_console_socket(runtime):
    runtime.start("a")
    path = runtime.base / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        runtime.call(
            "exec", "--detach", "--console-socket", path, "--process", process_file(runtime, ["tty"], terminal=True), "a"
        )
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    with open(fds[0], "rb", buffering=0) as master:
        assert master.read(100) == b"/dev/pts/0\r\n"
    done = runtime.call("exec", "--detach", "--process", process_file(runtime, ["tty"], terminal=True), "a", code=255)
    assert "--console-socket" in done.err


def test_capabilities(runtime):
    runtime.start("a")
    plain = runtime.call("exec", "a", "grep", "CapEff", "/proc/self/status").out
    more = runtime.call("exec", "--cap", "CAP_SYS_PTRACE", "a", "grep", "CapEff", "/proc/self/status").out
    assert int(more.split()[1], 16) == int(plain.split()[1], 16) | 1 << 19
    sets = runtime.call("exec", "--cap", "CAP_SYS_PTRACE", "a", "grep", "-E", "CapInh|CapAmb", "/proc/self/status").out
    assert [int(line.split()[1], 16) for line in sets.splitlines()] == [0, 0]
    # What the kernel does not know is left out, with a warning (OCI config.md, "capabilities").
    assert "CAP_NOPE" in runtime.call("exec", "--cap", "CAP_NOPE", "a", "true").err


def test_preserved_descriptors(runtime):
    runtime.start("a")
    extra, out = runtime.base / "extra", runtime.base / "out"
    line = runtime.line("exec", "--preserve-fds", "1", "a", "sh", "-c", "'echo x >&3; ls -1 /proc/self/fd'")
    subprocess.run(
        ["sh", "-c", f"exec {' '.join(line)} 3>{extra} 4>{extra}4 >{out}"], check=True, stdin=subprocess.DEVNULL, timeout=20
    )
    assert extra.read_text() == "x\n"
    assert out.read_text().split() == ["0", "1", "2", "3", "4"]


def test_in_a_cgroup_of_the_containers_own(runtime):
    runtime.start("a")
    group = runtime.group("a")
    for directory in group.directories():
        os.mkdir(f"{directory}/inner")
        if os.path.exists(f"{directory}/inner/cpuset.cpus"):
            for file in ("cpuset.cpus", "cpuset.mems"):
                Path(f"{directory}/inner/{file}").write_text(Path(f"{directory}/{file}").read_text())
    done = runtime.call("exec", "--cgroup", "inner", "a", "cat", "/proc/self/cgroup")
    assert f"{group.path}/inner\n" in done.out
    if group.version == 1:
        one = runtime.call("exec", "--cgroup", "memory:inner", "a", "cat", "/proc/self/cgroup").out.splitlines()
        assert [line for line in one if line.endswith(f"{group.path}/inner")] == [line for line in one if ":memory:" in line]
    assert "leads out" in runtime.call("exec", "--cgroup", "../..", "a", "true", code=1).err
    assert "the container has to make it" in runtime.call("exec", "--cgroup", "none", "a", "true", code=255).err
