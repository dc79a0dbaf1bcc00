"""What create leaves behind and what it does not: the waiting process, its descriptors, its terminal, its failures."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from worker.kernel import syscalls
from worker.runtime.cgroups import Cgroup

pytestmark = pytest.mark.root


def terminal_of(connection):
    """What came over a console socket: (the name, the master's descriptor)."""
    connection.settimeout(10)
    data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    assert [(level, kind) for level, kind, _ in ancillary] == [(socket.SOL_SOCKET, socket.SCM_RIGHTS)]
    return data, array.array("i", ancillary[0][2])[0]


def read_terminal(master):
    """Until nobody holds the other end."""
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            return seen
        seen += data


def test_the_process_outlives_the_command(runtime):
    runtime.create("a")
    state = runtime.state("a")
    status = Path(f"/proc/{state['pid']}/status").read_text()
    assert state["status"] == "created"
    # The command that made it has ended, and it is still there: its parent is whoever adopted it.
    assert f"PPid:\t{os.getpid()}" not in status
    runtime.call("start", "a")
    assert runtime.state("a")["pid"] == state["pid"]


def test_a_zombie_has_stopped(runtime):
    """As the subreaper we get the process, and do not reap it yet."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    try:
        runtime.start("a", ["sh", "-c", "exit 3"])
        runtime.wait_status("a", "stopped")
        pid = json.loads((runtime.root / "a/state.json").read_text())["pid"]
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        runtime.call("kill", "a", "KILL", code=1)
        runtime.call("delete", "a")
        assert os.waitpid(pid, 0) == (pid, 3 << 8)
    finally:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)


def test_the_pid_file_has_no_newline(runtime):
    file = runtime.base / "pid"
    runtime.create("a", None, "--pid-file", file)
    assert file.read_text() == str(runtime.state("a")["pid"])
    assert [path for path in os.listdir(runtime.base) if path.startswith(".pid")] == []


def test_a_pid_file_that_cannot_be_written(runtime):
    done = runtime.call("create", "--bundle", runtime.bundle("a", ["true"]), "--pid-file", runtime.base / "no/pid", "a", code=1)
    assert "--pid-file" in done.err
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


def test_another_config_file(runtime):
    """Relative paths in it are the bundle's, as crun has them."""
    bundle = runtime.bundle("a", ["false"])
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "rootfs").symlink_to(runtime.rootfs)
    config["root"]["path"] = "rootfs"
    config["process"]["args"] = ["echo", "other"]
    (bundle / "etc").mkdir()
    (bundle / "etc/other.json").write_text(json.dumps(config))
    assert runtime.call("run", "--config", "etc/other.json", "a", cwd=bundle).out == "other\n"
    assert "etc/none.json" in runtime.call("run", "-f", "etc/none.json", "a", cwd=bundle, code=1).err


def test_later_edits_of_the_bundle_have_no_effect(runtime):
    runtime.create("a", ["sh", "-c", "echo first; sleep 1000"])
    runtime.bundle("a", ["sh", "-c", "echo second"])
    runtime.call("start", "a")
    assert runtime.state("a")["status"] == "running"
    process = runtime.call("exec", "--env", "X=1", "a", "env").out
    assert "X=1" in process


def test_stdio_is_the_callers(runtime):
    """create hands its own descriptors on; /dev/null becomes the container's, and the host's keeps its owner."""
    bundle = runtime.bundle(
        "a", ["sh", "-c", "read line; echo out $line; echo err >&2; stat -c %d /dev/null; stat -Lc %d /proc/1/fd/0"]
    )
    read_end, write_end = os.pipe()
    out = runtime.base / "out"
    with open(out, "w") as file:
        subprocess.run(
            runtime.line("create", "--bundle", bundle, "a"), stdin=read_end, stdout=file, stderr=file, check=True, timeout=20
        )
        os.close(read_end)
    os.write(write_end, b"hello\n")
    runtime.call("start", "a")
    runtime.wait_status("a", "stopped")
    os.close(write_end)
    assert out.read_text().startswith("out hello\nerr\n")


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_null_stdin_is_not_the_hosts(runtime, uid):
    before = os.stat("/dev/null")
    result = runtime.base / "out"
    process = {
        "args": ["sh", "-c", "stat -Lc %d /dev/fd/0 /dev/null"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": uid, "gid": uid},
    }
    line = runtime.line("run", "--bundle", runtime.bundle("a", [], process=process), "a")
    with open(result, "w") as file:
        subprocess.run(line, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True, timeout=20)
    first, second = result.read_text().split()
    assert first == second
    assert int(first) != before.st_dev
    assert os.stat("/dev/null").st_uid == before.st_uid == 0
    # A file the caller gave is the process's to open again.
    assert os.stat(result).st_uid == uid


def shell(runtime, redirections, *words):
    """Call it by a shell, with descriptors as ``redirections`` says."""
    line = f"exec {' '.join(runtime.line(*words))} {redirections}"
    return subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=20, check=False)


def test_preserved_descriptors(runtime):
    """3 and 4 are there with what is behind them, 5 and everything of ours is not."""
    first, second, third, out = (runtime.base / name for name in ("first", "second", "third", "out"))
    bundle = runtime.bundle("a", ["sh", "-c", "echo one >&3; echo two >&4; ls -1 /proc/self/fd"])
    given = f"3>{first} 4>{second} 5>{third} >{out}"
    assert shell(runtime, given, "run", "--preserve-fds", "2", "--bundle", bundle, "a").returncode == 0
    assert (first.read_text(), second.read_text(), third.read_text()) == ("one\n", "two\n", "")
    # The last is ls's own, of the directory.
    assert out.read_text().split() == ["0", "1", "2", "3", "4", "5"]


def test_descriptors_to_preserve_that_are_not_open_stay_so(runtime):
    """As crun does it; above all nothing of ours may be found under their numbers."""
    first, out = runtime.base / "first", runtime.base / "out"
    bundle = runtime.bundle("a", ["ls", "-1", "/proc/self/fd"])
    assert shell(runtime, f"3>{first} >{out}", "run", "--preserve-fds", "50", "--bundle", bundle, "a").returncode == 0
    assert out.read_text().split() == ["0", "1", "2", "3", "4"]
    assert shell(runtime, f"3>&- >{out}", "run", "--preserve-fds", "50", "--bundle", bundle, "a").returncode == 0
    assert out.read_text().split() == ["0", "1", "2", "3"]


def test_many_preserved_descriptors(runtime):
    """More than the numbers init moves its own out of the way to."""
    file = os.open("/etc/hostname", os.O_RDONLY)
    high = [file]
    while high[-1] < 3 + 100:
        high.append(os.dup(file))
    out = runtime.base / "out"
    # From 3 on, without a gap, whatever this process has open below.
    script = "import os, sys; [os.dup2(int(sys.argv[1]), fd) for fd in range(3, 103)]; os.execv(sys.argv[2], sys.argv[2:])"
    bundle = runtime.bundle("a", ["sh", "-c", "ls -1 /proc/self/fd | wc -l; cat <&99 | wc -c"])
    line = runtime.line("run", "--preserve-fds", "100", "--bundle", bundle, "a")
    with open(out, "w") as stdout:
        subprocess.run(
            ["python3", "-c", script, str(high[-1]), *line],
            pass_fds=[high[-1]],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            check=True,
            timeout=20,
        )
    for fd in high:
        os.close(fd)
    assert out.read_text().split()[0] == "104"
    assert int(out.read_text().split()[1]) == os.stat("/etc/hostname").st_size


def test_no_descriptor_of_the_caller_leaks(runtime):
    fd = os.open("/etc/passwd", os.O_RDONLY)
    os.dup2(fd, 90)
    out = runtime.base / "out"
    line = runtime.line("run", "--bundle", runtime.bundle("a", ["ls", "-1", "/proc/self/fd"]), "a")
    with open(out, "w") as stdout:
        subprocess.run(line, pass_fds=[fd, 90], stdin=subprocess.DEVNULL, stdout=stdout, check=True, timeout=20)
    os.close(fd)
    os.close(90)
    assert out.read_text().split() == ["0", "1", "2", "3"]


def test_the_interpreter_cannot_be_written(runtime):
    """What waits to become a container's process runs from a read-only mount (CVE-2019-5736)."""

    def read_only(pid):
        with open(f"/proc/{pid}/exe", "rb") as file:
            return bool(os.fstatvfs(file.fileno()).f_flag & os.ST_RDONLY)

    # The control: an interpreter as the machine has it, of which a container's root would get a file it can write.
    assert not read_only(os.getpid())
    runtime.create("a")
    assert read_only(runtime.state("a")["pid"])
    runtime.call("start", "a")
    runtime.call("pause", "a")
    line = runtime.line("exec", "--ignore-paused", "a", "true")
    with subprocess.Popen(line, stdin=subprocess.DEVNULL) as process:
        pids = runtime.wait_for("the exec", lambda: len(found := runtime.group("a").pids()) == 2 and found)
        (entering,) = set(pids) - {runtime.state("a")["pid"]}
        assert read_only(entering)
        runtime.call("resume", "a")
        assert process.wait(20) == 0


def test_systemds_sockets(runtime):
    bundle = runtime.bundle("a", ["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID >&3"])
    out = runtime.base / "out"
    line = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {' '.join(runtime.line('run', '--bundle', str(bundle), 'a'))} 3>{out}"
    subprocess.run(["sh", "-c", line], check=True, timeout=20, stdin=subprocess.DEVNULL)
    assert out.read_text() == "1 1\n"


def test_a_terminal_goes_to_the_console_socket(runtime):
    path = runtime.base / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = {
            "terminal": True, "cwd": "/", "env": ["PATH=/bin"], "consoleSize": {"height": 33, "width": 77},
            "args": ["sh", "-c", "tty; stty size; test -c /dev/console && read x && echo got $x"],
        }  # fmt: skip
        runtime.create("a", None, "--console-socket", path, process=process)
        connection, _ = listener.accept()
        with connection:
            name, master = terminal_of(connection)
    assert name.startswith(b"/dev/")
    assert stat.S_ISCHR(os.fstat(master).st_mode)
    runtime.call("start", "a")
    os.write(master, b"word\n")
    seen = read_terminal(master)
    os.close(master)
    assert seen.split(b"\r\n")[:2] == [b"/dev/pts/0", b"33 77"] or b"33 77" in seen
    assert b"got word" in seen


def test_a_terminal_needs_somebody(runtime):
    terminal = {"terminal": True, "cwd": "/", "args": ["sh"]}
    bundle = runtime.bundle("a", ["sh"], process=terminal)
    assert "--console-socket" in runtime.call("create", "--bundle", bundle, "a", code=1).err
    assert (
        "somebody has to listen"
        in runtime.call("create", "--console-socket", runtime.base / "none", "--bundle", bundle, "a", code=1).err
    )
    plain = runtime.bundle("b", ["sh"])
    assert (
        "--console-socket"
        in runtime.call("create", "--console-socket", runtime.base / "none", "--bundle", plain, "b", code=1).err
    )
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], 'exec: "nope": executable file not found in $PATH'),
        (["/nope"], 'exec: "/nope": no such file or directory'),
        (["/etc"], 'exec: "/etc": permission denied'),
        (["/etc/not-a-program"], "permission denied"),
    ],
)
def test_a_program_that_cannot_be_run_is_creates_error(runtime, args, words):
    done = runtime.call("create", "--bundle", runtime.bundle("a", args), "a", code=1)
    assert words in done.err
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


def test_a_bundle_that_cannot_be_run(runtime):
    empty = runtime.base / "empty"
    empty.mkdir()
    assert "config.json" in runtime.call("create", "--bundle", empty, "a", code=1).err
    (empty / "config.json").write_text("{")
    assert "is not JSON" in runtime.call("create", "--bundle", empty, "a", code=1).err
    (empty / "config.json").write_text('{"ociVersion": "7"}')
    assert "ociVersion" in runtime.call("create", "--bundle", empty, "a", code=1).err
    mounts = [{"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}]
    assert (
        "/no/such/source" in runtime.call("create", "--bundle", runtime.bundle("a", ["true"], mounts=mounts), "a", code=1).err
    )
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


def test_an_id_is_taken_once(runtime):
    runtime.create("a")
    before = runtime.state("a")
    done = runtime.call(
        "create", "--bundle", runtime.bundle("a", ["true"], linux={"cgroupsPath": f"{runtime.parent}/b"}), "a", code=1
    )
    assert "container with id exists: 'a'" in done.err
    assert runtime.state("a") == before


def test_a_cgroup_of_others_is_not_taken(runtime):
    runtime.create("a")
    pid = runtime.state("a")["pid"]
    bundle = runtime.bundle("b", ["true"], linux={**json.loads((runtime.base / "bundle-a/config.json").read_text())["linux"]})
    assert "holds 1 processes" in runtime.call("create", "--bundle", bundle, "b", code=1).err
    assert runtime.runs(pid)
    assert runtime.ids() == ["a"]


def test_one_of_many_concurrent_creates_wins(runtime):
    bundles = [runtime.bundle(f"n{number}", ["sleep", "1000"], linux=_linux(runtime, f"n{number}")) for number in range(6)]
    running = []
    for number, bundle in enumerate(bundles):
        with open(runtime.base / f"e{number}", "w") as stderr:
            line = runtime.line("create", "--bundle", bundle, "same")
            running.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=stderr))
    codes = [process.wait(20) for process in running]
    assert sorted(codes) == [0, 1, 1, 1, 1, 1]
    for number, code in enumerate(codes):
        if code:
            assert "container with id exists" in (runtime.base / f"e{number}").read_text()
            assert not runtime.group(f"n{number}").exists()
    assert runtime.state("same")["bundle"] == str(bundles[codes.index(0)])
    runtime.call("start", "same")


def _linux(runtime, ident):
    return {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "cgroupsPath": f"{runtime.parent}/{ident}",
    }


def test_a_killed_create_leaves_nothing_half_done(runtime):
    """Killed at moments spread over its whole course, also after its end; then the id can be used, or is truly taken."""
    bundle = runtime.bundle("a", ["sleep", "1000"])
    line = runtime.line("create", "--bundle", bundle, "a")
    began = time.monotonic()
    subprocess.run(line, check=True, timeout=20, stdin=subprocess.DEVNULL)
    whole = time.monotonic() - began
    runtime.call("delete", "a")
    outcomes = set()
    for round_ in range(24):
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(whole * round_ / 20)
            process.send_signal(signal.SIGKILL)
        again = runtime.call("create", "--bundle", bundle, "a", code=None)
        if again.code:
            assert "container with id exists" in again.err
            assert runtime.state("a")["status"] in ("created", "stopped")
        outcomes.add(again.code)
        runtime.call("delete", "a")
        assert not runtime.group("a").exists()
        assert runtime.ids() == []
    assert outcomes == {0, 1}


def test_delete_clears_what_a_killed_create_left(runtime):
    runtime.create("a")
    file = runtime.root / "a/state.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "phase": "creating", "pid": 0}))
    assert runtime.state("a")["status"] == "creating"
    runtime.call("start", "a", code=1)
    # Before its cgroup was on record nothing may be taken for it, least of all the machine's own.
    file.write_text(json.dumps({**record, "phase": "creating", "pid": 0, "cgroup": ""}))
    for words in (["kill", "--all", "a", "CONT"], ["kill", "a", "CONT"], ["ps", "a"], ["pause", "a"], ["events", "a"]):
        assert "container not running" in runtime.call(*words, code=1).err or "is creating" in runtime.call(*words, code=1).err
    file.write_text(json.dumps({**record, "phase": "creating", "pid": 0}))
    runtime.call("kill", "a", code=1)
    runtime.call("delete", "a")
    assert not runtime.runs(record["pid"])


def test_a_start_that_was_killed_can_be_told(runtime):
    """Somebody who connects and goes away has not started it."""
    runtime.create("a")
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(runtime.root / "a/start.sock"))
        assert runtime.state("a")["status"] == "created"
    runtime.call("start", "a")
    assert runtime.state("a")["status"] == "running"


def test_without_pivot(runtime):
    bundle = runtime.bundle("a", ["sh", "-c", "ls /; hostname"])
    assert runtime.call("run", "--no-pivot", "--bundle", bundle, "a").out.splitlines()[-1] == "box"


def test_a_bind_of_what_the_mapped_root_cannot_reach(runtime):
    """podman's own files lie in directories closed to all but root: the parent hands the bind in."""
    secret = runtime.base / "closed"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("content\n")
    (secret / "directory").mkdir(mode=0o755)
    linux = _linux(runtime, "a")
    linux["namespaces"].append({"type": "user"})
    for field in ("uidMappings", "gidMappings"):
        linux[field] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    mounts = [
        {"destination": "/tmp/file", "type": "bind", "source": str(secret / "file"), "options": ["bind", "ro"]},
        {"destination": "/tmp/directory", "type": "bind", "source": str(secret / "directory"), "options": ["rbind"]},
    ]
    runtime.start("a", ["sleep", "1000"], linux=linux, mounts=mounts)
    done = runtime.call("exec", "a", "sh", "-c", "cat /tmp/file; ls -d /tmp/directory; echo x >/tmp/file", code=1)
    assert done.out == "content\n/tmp/directory\n"
    assert "Read-only" in done.err
    runtime.call("delete", "--force", "a")
    missing = [{"destination": "/tmp/x", "type": "bind", "source": str(secret / "none"), "options": ["bind"]}]
    error = runtime.call("create", "--bundle", runtime.bundle("a", ["true"], linux=linux, mounts=missing), "a", code=1).err
    assert f"bind source {secret / 'none'} does not exist" in error


def test_cgroups_of_a_mapped_root_whose_runtime_was_called_where_it_may_not_be(runtime):
    closed = runtime.base / "closed"
    closed.mkdir(mode=0o700)
    linux = _linux(runtime, "a")
    linux["namespaces"] += [{"type": "user"}, {"type": "cgroup"}]
    for field in ("uidMappings", "gidMappings"):
        linux[field] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    cgroup = {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"],
    }
    bundle = runtime.bundle("a", ["sh", "-c", "pwd; grep -c ' cgroup2* ro,' /proc/mounts"], linux=linux, mounts=[cgroup])
    directory, count = runtime.call("run", "--bundle", bundle, "a", cwd=closed).out.split()
    assert directory == "/"
    assert int(count) == len(Cgroup("/x").hierarchies)


def test_a_user_namespace(runtime):
    linux = _linux(runtime, "a")
    linux["namespaces"].append({"type": "user"})
    for field in ("uidMappings", "gidMappings"):
        linux[field] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    state = runtime.start("a", ["sleep", "1000"], linux=linux)
    assert "Uid:\t100000" in Path(f"/proc/{state['pid']}/status").read_text()
    assert runtime.call("exec", "a", "cat", "/proc/self/uid_map").out.split() == ["0", "100000", "65536"]
