"""A real node for these tests: engine and routes in network and mount namespaces of their own, driven over its socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
PATIENCE = 15.0
CONTROLLERS = Path("/sys/fs/cgroup")


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of ``condition``; fails with ``what`` and the last value after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {patience} s, last seen {value!r}")
        time.sleep(0.03)


def other_runtimes(root: Path) -> list[str]:
    """The distribution's OCI runtimes as NAME=PATH; v2 is hidden from crun, which refuses a machine that mixes cgroups."""
    found = []
    if path := shutil.which("runc"):
        found.append(f"debian-runc={path}")
    if path := shutil.which("crun"):
        alone = root / "crun-alone"
        unified = CONTROLLERS / "unified"
        hide = f"mount -t tmpfs tmpfs {unified} && " if unified.is_dir() else ""
        alone.write_text(f'#!/bin/sh\nexec unshare -m --propagation slave sh -c \'{hide}exec {path} "$@"\' crun "$@"\n')
        alone.chmod(0o755)
        found.append(f"debian-crun={alone}")
    return found


class Node:
    """The namespaces live as long as ``holder``; the daemon in them may be killed and started again."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.options = options
        self.cgroup = f"/covey-test-j1-{uuid.uuid4().hex[:8]}"
        self.socket = root / "docker.sock"
        self.errors = root / "errors"
        self.daemon: subprocess.Popen[bytes] | None = None
        command = ["unshare", "-n", "-m", "--propagation", "private", "sleep", "3600"]
        self.holder = subprocess.Popen(command)
        wait_until(self._unshared, "the holder has namespaces of its own")

    def _unshared(self) -> bool:
        link = f"/proc/{self.holder.pid}/ns/net"
        comm = Path(f"/proc/{self.holder.pid}/comm").read_text().strip()
        return comm == "sleep" and os.readlink(link) != os.readlink("/proc/self/ns/net")

    def launch(self) -> Path:
        """Starts the daemon and waits for nothing; what it says goes to the file answered."""
        output = self.root / "output"
        output.write_text("")
        with open(output, "w") as out, open(self.errors, "a") as errors:
            program = [sys.executable, "-P", str(HERE / "node_main.py"), str(self.root), self.cgroup]
            program.append(json.dumps(self.options))
            self.daemon = subprocess.Popen(
                self.inside(*program, *other_runtimes(self.root)),
                stdout=out,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        return output

    def start(self) -> None:
        """Returns when the daemon serves."""
        output = self.launch()
        daemon = self.daemon
        assert daemon is not None
        wait_until(lambda: "ready" in output.read_text() or daemon.poll() is not None, f"the daemon serves; see {self.errors}")
        if daemon.poll() is not None:
            pytest.fail(f"the daemon ended: {self.errors.read_text()[-3000:]}")

    def inside(self, *command: str) -> list[str]:
        """A command in the node's namespaces."""
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", *command]

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        self.daemon.wait(PATIENCE)

    def docker(self, *arguments: str, text: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs the docker CLI; fails unless it ends with ``code`` (None: any)."""
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if code is not None and done.returncode != code:
            pytest.fail(f"docker {' '.join(arguments)} ended with {done.returncode}, not {code}: {done.stdout}{done.stderr}")
        return done

    def out(self, *arguments: str) -> str:
        return self.docker(*arguments).stdout.strip()

    def inspect(self, ref: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out("inspect", ref))[0]
        return found

    def state(self, ref: str) -> dict[str, Any]:
        found: dict[str, Any] = self.inspect(ref)["State"]
        return found

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request of the API that the CLI cannot make; its answer, or the error's object."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.socket))
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read() or b"null")
        finally:
            connection.close()

    def events(self, *filters: str, form: str = "{{.Action}}") -> list[str]:
        """The events of this daemon's life so far, formatted."""
        options = [word for one in filters for word in ("--filter", one)]
        until = f"{time.time() + 0.1:.6f}"
        return self.out("events", "--since", "1", "--until", until, *options, "--format", form).splitlines()

    def run(self, *arguments: str) -> str:
        """Runs ``docker run -d`` with arguments; returns the id."""
        return self.out("run", "-d", *arguments)

    def clear(self) -> None:
        """Removes all containers."""
        ids = self.out("ps", "-aq").split()
        if ids:
            self.docker("rm", "-f", "-v", *ids)

    def close(self) -> None:
        """Ends everything of the node; what is left behind fails the session's last test."""
        try:
            if self.daemon is not None and self.daemon.poll() is None:
                self.clear()
                self.kill(signal.SIGTERM)
        finally:
            zygote = zygote_of(self.root)
            if zygote:
                os.kill(zygote, signal.SIGTERM)
                wait_until(lambda: not _alive(zygote), f"zygote {zygote} ends")
            self.holder.kill()
            self.holder.wait()
            _remove_cgroups(self.cgroup)


def zygote_of(root: Path) -> int:
    """The pid of the process that listens on our zygote socket, 0 when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(root / "run" / "zygote.sock"))
        except OSError:
            return 0
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _remove_cgroups(name: str) -> None:
    for base in [CONTROLLERS, *CONTROLLERS.iterdir()]:
        top = base / name.strip("/")
        if not top.is_dir():
            continue
        below = sorted((one for one in top.rglob("*") if one.is_dir()), reverse=True)
        for directory in [*below, top]:
            wait_until(lambda directory=directory: _removed(directory), f"cgroup {directory} is empty")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def archive() -> bytes:
    """A docker-archive of busybox:latest."""
    config = {"Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}, "Labels": {"made": "here"}}
    return images.docker_archive("busybox:latest", [images.busybox_rootfs_tar()], config)


@contextlib.contextmanager
def loaded(node: Node, archive: bytes) -> Iterator[Node]:
    """The node, started, with the image; it ends with the context."""
    try:
        node.start()
        tar = node.root / "busybox.tar"
        tar.write_bytes(archive)
        node.docker("load", "-i", str(tar))
        yield node
    finally:
        node.close()


@pytest.fixture(scope="session")
def _session_node(tmp_path_factory: pytest.TempPathFactory, archive: bytes) -> Iterator[Node]:
    if not shutil.which("docker"):
        pytest.skip("no docker CLI on this machine")
    with loaded(Node(tmp_path_factory.mktemp("node")), archive) as node:
        yield node


@pytest.fixture
def node(_session_node: Node) -> Iterator[Node]:
    """The node, without containers before and after."""
    yield _session_node
    _session_node.clear()
