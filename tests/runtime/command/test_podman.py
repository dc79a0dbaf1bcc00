"""Unmodified podman (and its conmon) on ``covey-runtime``, with runc as the control: what fails on both is not ours.

Everything of podman's lies below the test's directory: storage, state, locks, networks, and the runtime's --root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.kernel import syscalls
from worker.runtime.cgroups import Cgroup

from .conftest import ended

pytestmark = pytest.mark.root

_CONFIG = """
[containers]
# More than this a restricted machine's root may not give.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_config_dir = "{base}/networks"
[engine]
lock_type = "file"
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_json = ["covey-runtime", "runc"]
"""


class Podman:
    def __init__(self, base: Path, runtime: str, rootfs: Path, parent: str) -> None:
        self.base = base
        self.rootfs = rootfs
        self.parent = parent
        (base / "containers.conf").write_text(_CONFIG.format(base=base))
        self.environment = {**os.environ, "CONTAINERS_CONF": str(base / "containers.conf")}
        self.state = base / "state"
        # Not by --runtime-flag: podman 4.3 forgets it where its clean-up calls the runtime.
        wrapper = base / os.path.basename(runtime)
        wrapper.write_text(f'#!/bin/sh\nexec {runtime} --root {self.state} "$@"\n')
        wrapper.chmod(0o755)
        self.global_options = [
            "--root", str(base / "storage"), "--runroot", str(base / "run"), "--tmpdir", str(base / "tmp"),
            "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--runtime", str(wrapper),
        ]  # fmt: skip

    def call(self, *words: str, code: int | None = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return ended(["podman", *self.global_options, *words], code, env=self.environment, input=stdin)

    def run(self, *words: str, options: tuple[str, ...] = (), code: int | None = 0, stdin: str = "") -> Any:
        own = ("--network", "none", "--cgroup-parent", self.parent, *options)
        return self.call("run", *own, "--rootfs", str(self.rootfs), *words, code=code, stdin=stdin)

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.call("inspect", name).stdout)[0])


@pytest.fixture(params=["covey-runtime", "runc"])
def podman(request: pytest.FixtureRequest, runtime: Any) -> Iterator[Podman]:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed: scripts/setup --dev installs it where the distribution has it")
    program = runtime.program[0] if request.param == "covey-runtime" else shutil.which("runc")
    if program is None:
        pytest.skip("runc is not installed, so there is no control: apt-get install runc")
    parent = f"{runtime.parent}/podman"
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    # Its --runroot may have 50 characters, which pytest's directories are longer than.
    with tempfile.TemporaryDirectory(prefix="covey-podman-") as directory:
        made = Podman(Path(directory), program, runtime.rootfs, parent)
        yield made
        made.call("rm", "--all", "--force", "--time", "0")
        runtime.wait_for("the end of every conmon", _no_conmon_left)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        assert not made.state.exists() or os.listdir(made.state) == []
    runtime.wait_for("empty cgroups", Cgroup(parent).remove)
    runtime.sweep_hierarchies()


def _no_conmon_left() -> bool:
    """Reap those that came to us when the podman that started them ended."""
    left = False
    for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{word}/comm").read_text() == "conmon\n":
                left = left or os.waitpid(int(word), os.WNOHANG)[0] == 0
    return not left


def test_run(podman):
    assert podman.run("echo", "hello").stdout == "hello\n"
    assert podman.run("sh", "-c", "echo out; echo err >&2; exit 7", code=7).stderr == "err\n"
    assert podman.run("cat", options=("-i", "--rm"), stdin="over\nthere\n").stdout == "over\nthere\n"


def test_a_program_that_cannot_be_run(podman):
    """The codes are podman's, which it reads off the runtime's words in the JSON log."""
    assert "executable file not found in $PATH" in podman.run("nope", code=127).stderr
    assert "no such file or directory" in podman.run("/nope", code=127).stderr
    assert "permission denied" in podman.run("/etc", code=126).stderr


def test_detached_with_logs_and_exec(podman):
    podman.run("sh", "-c", "echo line; sleep 1000", options=("-d", "--name", "box"))
    state = podman.inspect("box")["State"]
    assert state["Status"] == "running"
    assert Path(f"/proc/{state['Pid']}/comm").read_text() in ("sh\n", "sleep\n")
    assert podman.call("exec", "box", "echo", "exec").stdout == "exec\n"
    podman.call("exec", "box", "sh", "-c", "exit 5", code=5)
    assert podman.call("exec", "-i", "box", "cat", stdin="in\n").stdout == "in\n"
    assert "executable file not found" in podman.call("exec", "box", "nope", code=127).stderr
    assert podman.call("exec", "--user", "1000", "--env", "A=b", "--workdir", "/tmp", "box", "sh", "-c", "id -u; echo $A; pwd")
    podman.call("kill", "box")
    assert podman.call("wait", "box", code=None).stdout.strip() == "137"
    assert podman.call("logs", "box").stdout == "line\n"


def test_a_terminal(podman):
    assert podman.run("sh", "-c", "tty; test -t 0 && test -t 1 && echo terminal", options=("-t",)).stdout.split() == [
        "/dev/pts/0",
        "terminal",
    ]
    podman.run("sleep", "1000", options=("-d", "--name", "box"))
    assert podman.call("exec", "-t", "box", "tty").stdout.strip() == "/dev/pts/0"


def test_pause_and_unpause(podman):
    podman.run("sleep", "1000", options=("-d", "--name", "box"))
    podman.call("pause", "box")
    assert podman.inspect("box")["State"]["Status"] == "paused"
    podman.call("exec", "box", "true", code=255)
    podman.call("unpause", "box")
    assert podman.inspect("box")["State"]["Status"] == "running"
    podman.call("exec", "box", "true")
    podman.call("pause", "box")
    podman.call("rm", "--force", "--time", "0", "box")


def test_stop_start_and_rm(podman):
    podman.run("sh", "-c", "trap 'exit 3' TERM; while true; do sleep 0.02; done", options=("-d", "--name", "box"))
    podman.call("rm", "box", code=2)
    podman.call("stop", "--time", "10", "box")
    assert podman.inspect("box")["State"]["ExitCode"] == 3
    podman.call("start", "box")
    assert podman.inspect("box")["State"]["Status"] == "running"
    podman.call("stop", "--time", "10", "box")
    podman.call("rm", "box")
    assert podman.call("ps", "--all", "--quiet").stdout == ""


def test_what_a_container_may_do(podman):
    """podman's defaults: its capabilities, its filter, its masks, its limits."""
    script = "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; head -c1 /proc/kcore | wc -c; mkdir /proc/sys/x"
    options = ("--memory", "64m", "--pids-limit", "20")
    seen = podman.run("sh", "-c", script, options=options, code=1)
    assert "CapEff:\t00000000800405fb" in seen.stdout or "CapEff:\t00000000a80425fb" in seen.stdout
    assert "Seccomp:\t2" in seen.stdout
    assert seen.stdout.splitlines()[-1] == "0"
    podman.run("sleep", "1000", options=(*options, "-d", "--name", "box"))
    group = Cgroup(podman.inspect("box")["State"]["CgroupPath"])
    if group.version == 1:
        assert Path(f"{group.directory('memory')}/memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
        podman.call("update", "--memory", "96m", "box")
        assert Path(f"{group.directory('memory')}/memory.limit_in_bytes").read_text() == f"{96 << 20}\n"
    assert Path(f"{group.directory('pids')}/pids.max").read_text() == "20\n"
    assert podman.call("top", "box").stdout.split()[-2:] == ["sleep", "1000"]


def test_preserved_descriptors(podman, tmp_path):
    file = tmp_path / "given"
    line = [
        "podman",
        *podman.global_options,
        "run",
        "--preserve-fds",
        "1",
        "--network",
        "none",
        "--cgroup-parent",
        podman.parent,
    ]
    words = " ".join([*line, "--rootfs", str(podman.rootfs), "sh", "-c", "'echo given >&3'"])
    subprocess.run(
        ["sh", "-c", f"exec {words} 3>{file}"], env=podman.environment, check=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert file.read_text() == "given\n"
