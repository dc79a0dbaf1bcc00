"""Covey and Debian's dockerd, each a node of its own: mount, network and pid namespace, roots, socket, cgroup subtree.

It starts one, ends it by pid, and clears what it left; it says which of its processes count as which part. What is
measured on it is not its business: both are driven through the Engine API with the docker SDK.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import docker
from processes import Process, descendants, pss

PATIENCE = 30.0
#: Set up inside the namespaces, as their first process; tini reaps what the shims leave.
INNER = (
    "tini", "-s", "--", "sh", "-c",
    'log=$1; run=$2; shift 2; ip link set lo up && mkdir -p "$run" && mount -t tmpfs tmpfs "$run" && exec "$@" >"$log" 2>&1',
    "node",
)  # fmt: skip
"""Both rivals' running state lies on a tmpfs, as it does on a machine."""


@dataclass(frozen=True)
class Kind:
    """How a rival is started under ``base``, and its parts: part → is this process it?"""

    name: str
    argv: Callable[[Path, str], Sequence[str]]
    parts: dict[str, Callable[[Process], bool]]


def _covey(base: Path, cgroup: str) -> Sequence[str]:
    return (
        sys.executable, "-P", "-m", "cli.main", "daemon", f"--data-root={base}/data", f"--exec-root={base}/run",
        f"--host=unix://{base}/api.sock", f"--cgroup-parent={cgroup}", "--name=bench", "--log-level=warning",
    )  # fmt: skip


def _dockerd(base: Path, cgroup: str) -> Sequence[str]:
    return (
        "dockerd", f"--data-root={base}/data", f"--exec-root={base}/run", f"--host=unix://{base}/api.sock",
        f"--pidfile={base}/pid", f"--cgroup-parent={cgroup}", "--exec-opt=native.cgroupdriver=cgroupfs",
    )  # fmt: skip


COVEY = Kind(
    "covey",
    _covey,
    {
        "daemon": lambda process: process.argv.startswith(sys.executable) and " cli.main daemon " in process.argv,
        "zygote": lambda process: process.name == "covey-zygote",
        "shims": lambda process: process.name == "covey-shim",
        "sandboxes": lambda process: process.name == "covey-sandbox",
        "manager": lambda process: " cli.main manager " in process.argv,
        "etcd": lambda process: process.name == "etcd",
    },
)
COLD = replace(COVEY, name="covey-cold", argv=lambda base, cgroup: (*_covey(base, cgroup), "--warm-pool=0"))
DOCKER = Kind(
    "docker",
    _dockerd,
    {
        "dockerd": lambda process: process.name == "dockerd",
        "containerd": lambda process: process.name == "containerd",
        "shims": lambda process: process.name.startswith("containerd-shim"),
    },
)


class Rival:
    """A running node; ``client`` speaks its Engine API at ``socket``; its containers' cgroups are below ``cgroup``."""

    def __init__(self, kind: Kind, root: int, client: docker.DockerClient, socket: Path, cgroup: str) -> None:
        self.kind = kind
        self.client = client
        self.socket = socket
        self.cgroup = cgroup
        self._root = root

    def processes(self, part: str) -> list[Process]:
        """The processes that are ``part`` of it."""
        return [one for one in descendants(self._root) if self.kind.parts[part](one)]

    def memory(self) -> dict[str, float]:
        """MiB of PSS by part; containers' own processes belong to none."""
        processes = descendants(self._root)
        return {part: sum(pss(one.pid) for one in processes if ours(one)) / 1024 for part, ours in self.kind.parts.items()}

    def in_network(self, *argv: str) -> Sequence[str]:
        """``argv`` as a command in the node's network namespace."""
        return ("nsenter", "--target", str(self._root), "--net", "--", *argv)

    def kill_process(self, pid: int) -> None:
        """SIGKILL for the process the node knows as ``pid``. Raises LookupError when there is none."""
        for process in descendants(self._root):
            # Seen from here, from the node's namespace (two levels: unshare's), from the container's own.
            if len(process.inner) > 2 and process.inner[-2] == pid:
                os.kill(process.pid, signal.SIGKILL)
                return
        raise LookupError(f"{self.kind.name}: no process has pid {pid} in its namespace")


@contextlib.contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Rival]:
    """A node of ``kind`` with its files under ``directory``; ended, and its cgroups removed, when the context ends."""
    base = directory / kind.name
    base.mkdir()
    cgroup = f"/covey-bench-{os.getpid()}-{kind.name}"
    log = base / "daemon.log"
    command = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--")
    inner = (*INNER, str(log), str(base / "run"))
    process = subprocess.Popen([*command, *inner, *kind.argv(base, cgroup)], stdin=subprocess.DEVNULL)
    client = None
    try:
        client = _client(kind, base / "api.sock", process, log)
        yield Rival(kind, process.pid, client, base / "api.sock", cgroup)
    finally:
        if client is not None:
            client.close()
        _end(process)
        clear_cgroups(cgroup)
        shutil.rmtree(base, ignore_errors=True)


def _client(kind: Kind, socket: Path, process: subprocess.Popen[bytes], log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + PATIENCE
    fault = "no socket"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client = docker.DockerClient(base_url=f"unix://{socket}", timeout=120)
            client.ping()
            return client
        except (docker.errors.DockerException, OSError) as error:
            fault = str(error)
        time.sleep(0.1)
    words = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
    raise SystemExit("\n".join((f"bench: {kind.name} did not come up ({fault}); its last words:", *words)))


def _end(process: subprocess.Popen[bytes]) -> None:
    """The daemon by SIGTERM, then the namespace's first process, and with it everything inside."""
    first = [one for one in descendants(process.pid) if one.parent == process.pid]
    daemons = [one for one in descendants(process.pid) if first and one.parent == first[0].pid and one.name != "covey-zygote"]
    with contextlib.suppress(ProcessLookupError):
        for daemon in sorted(daemons, key=lambda one: one.inner[-1])[:1]:
            os.kill(daemon.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def clear_cgroups(name: str) -> None:
    """Remove the subtree ``name`` of every hierarchy: the processes in it have ended with their namespace."""
    deadline = time.monotonic() + 10
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        top = hierarchy / name.lstrip("/")
        if not (hierarchy / "cgroup.procs").exists():
            # A tmpfs that hides a hierarchy (see start.py), not one of them.
            continue
        while top.is_dir() and not hierarchy.is_symlink():
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            if time.monotonic() > deadline:
                sys.stderr.write(f"bench: {top} could not be removed: something in it still runs\n")
                break
            time.sleep(0.02)
