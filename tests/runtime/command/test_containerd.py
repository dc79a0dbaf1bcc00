"""Unmodified containerd (its shim, go-runc and ctr) on ``covey-runtime``, with runc as the control.

containerd is a daemon of the test's own; only its shims' sockets lie where they always do, in /run/containerd/s.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ended

pytestmark = pytest.mark.root

_CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{base}/containerd.sock"
[ttrpc]
  address = "{base}/containerd.sock.ttrpc"
"""


class Containerd:
    def __init__(self, base: Path, runtime: str, rootfs: Path, parent: str) -> None:
        self.base = base
        self.runtime = runtime
        self.rootfs = rootfs
        self.parent = parent
        self.ids: list[str] = []

    def call(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return ended(["ctr", "--address", str(self.base / "containerd.sock"), *words], code, stdin=subprocess.DEVNULL)

    def run_line(self, ident: str, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        self.ids.append(ident)
        own = ["--runc-binary", self.runtime, "--runc-root", str(self.base / "runc"), "--fifo-dir", str(self.base / "fifo")]
        own += ["--cgroup", f"{self.parent}/{ident}"]
        return ["run", *own, *options, "--rootfs", str(self.rootfs), ident, *words]

    def status(self, ident: str) -> str:
        for line in self.call("task", "ls").stdout.splitlines():
            if line.split()[0] == ident:
                return line.split()[2]
        return "none"

    def exec(self, ident: str, exec_id: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        how = ("--exec-id", exec_id, "--fifo-dir", str(self.base / "fifo"))
        return self.call("task", "exec", *how, ident, *words, code=code)


@pytest.fixture(params=["covey-runtime", "runc"])
def containerd(request: pytest.FixtureRequest, runtime: Any, tmp_path: Path) -> Iterator[Containerd]:
    for name in ("containerd", "ctr", "containerd-shim-runc-v2"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: scripts/setup --dev installs it (with docker.io) where Debian has it")
    program = runtime.program[0] if request.param == "covey-runtime" else shutil.which("runc")
    if program is None:
        pytest.skip("runc is not installed, so there is no control: apt-get install runc")
    base = tmp_path / "containerd"
    base.mkdir()
    config = base / "config.toml"
    config.write_text(_CONFIG.format(base=base))
    with open(base / "log", "w") as log:
        daemon = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    made = Containerd(base, program, runtime.rootfs, f"{runtime.parent}/containerd")
    try:
        runtime.wait_for("containerd", lambda: made.call("version", code=None).returncode == 0)
        yield made
        for ident in made.ids:
            made.call("task", "rm", "--force", ident, code=None)
            made.call("container", "rm", ident, code=None)
        assert made.call("task", "ls", "--quiet").stdout == ""
    finally:
        daemon.terminate()
        daemon.wait(20)
        runtime.sweep_hierarchies()


def test_run(containerd):
    line = containerd.run_line("box", "/bin/sh", "-c", "echo out; exit 3", options=("--rm",))
    assert containerd.call(*line, code=3).stdout == "out\n"
    line = containerd.run_line("none", "/nope", options=("--rm",))
    assert "no such file or directory" in containerd.call(*line, code=1).stderr


def test_the_verbs_of_a_task(containerd, runtime):
    """create, start, exec, ps, metrics, pause, resume, kill and delete as containerd's shim calls them."""
    containerd.call(*containerd.run_line("box", "/bin/sh", "-c", "/bin/sleep 1000", options=("--detach",)))
    assert containerd.status("box") == "RUNNING"
    assert containerd.exec("box", "one", "/bin/sh", "-c", "echo in; exit 4", code=4).stdout == "in\n"
    assert "no such file or directory" in containerd.exec("box", "two", "/nope", code=1).stderr
    assert len(containerd.call("task", "ps", "box").stdout.splitlines()) == 2
    assert "memory.usage_in_bytes" in containerd.call("task", "metrics", "box").stdout
    containerd.call("task", "pause", "box")
    assert containerd.status("box") == "PAUSED"
    containerd.call("task", "resume", "box")
    assert containerd.status("box") == "RUNNING"
    containerd.call("task", "kill", "--signal", "SIGKILL", "box")
    runtime.wait_for("the end", lambda: containerd.status("box") == "STOPPED")
    assert containerd.call("task", "rm", "box", code=None).stderr.count("137") == 1


def test_a_terminal(containerd):
    """ctr wants one itself."""
    master, slave = pty.openpty()
    line = containerd.run_line("box", "/bin/sh", "-c", "/bin/tty; /bin/stty size", options=("--rm", "--tty"))
    command = ["ctr", "--address", str(containerd.base / "containerd.sock"), *line]
    try:
        done = subprocess.run(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, timeout=60, check=False)
        seen = os.read(master, 65536)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 0, seen
    assert b"/dev/pts/0" in seen
