"""Two clusters that speak the Engine API, Covey's and Debian's dockerd in Swarm mode, and the programs that are put on both.

Covey is a lab of one manager and one worker. dockerd runs in a machine of the lab, with its own containerd child, and
ends with it. The clients are programs as people have them: they run outside and reach a daemon by its socket.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from covey.testing import images, lab_machine, lab_remains
from covey.testing.lab import Lab

IMAGE = "covey/busybox:demo"
REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTER = str(Path(sys.executable).with_name("cluster"))
DOCKERS = {"at-hand": "/usr/local/bin/docker", "debian": "/usr/bin/docker"}
SWARM_ADDRESS = "198.51.100.200"


class Answer(NamedTuple):
    """What an Engine API said: the message of an error, else the body."""

    status: int
    text: str


@dataclass(frozen=True)
class Endpoint:
    """An Engine API behind a Unix socket, called raw: whatever a test wants to send is sent."""

    path: Path

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """``body`` is sent as it is when it is bytes, else as JSON; ``headers`` win."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.path))
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict) and "message" in parsed:
            text = str(parsed["message"])
        return Answer(response.status, text.strip())

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """As ``call``, for what must succeed; the body parsed."""
        answer = self.call(method, f"/v1.41{path}", body)
        assert answer.status < 300, f"{method} {path}: {answer}"
        return json.loads(answer.text) if answer.text else None

    def wait(self, what: str, true: Callable[[], Any], seconds: float = 20.0) -> Any:
        """The first true value of ``true``; fails with all tasks the daemon knows."""
        end = time.monotonic() + seconds
        while not (value := true()):
            if time.monotonic() > end:
                known = [
                    (task["ID"], task["DesiredState"], task["Status"].get("State"), task["Status"].get("Err"))
                    for task in self.json("GET", "/tasks")
                ]
                pytest.fail(f"{what}: not within {seconds:g} s; tasks: {known}")
            time.sleep(0.05)
        return value

    def running(self, service: str) -> int:
        """Tasks of a service, by name, that should run and do."""
        query = json.dumps({"service": [service], "desired-state": ["running"]}).replace('"', "%22").replace(" ", "")
        return sum(task["Status"]["State"] == "running" for task in self.json("GET", f"/tasks?filters={query}"))


@dataclass(frozen=True)
class Program:
    """A client's command at one daemon. Called with arguments it gives its standard output."""

    argv: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.argv, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, **self.environ},
        )

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        if done.returncode != code:
            words = " ".join((*self.argv, *arguments))
            pytest.fail(f"{words} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """What a listing prints as one JSON object a line."""
        return [json.loads(line) for line in self(*arguments).splitlines()]


@pytest.fixture(scope="session")
def image() -> bytes:
    """A docker-archive of IMAGE."""
    environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    return images.docker_archive(IMAGE, [images.busybox_rootfs_tar()], {"Cmd": ["sh"], "Env": environment})


@pytest.fixture(scope="session")
def image_file(image: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    path.write_bytes(image)
    return path


@pytest.fixture(scope="session")
def lab(image: bytes) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root: run scripts/test with sudo")
    with Lab(2, profile="test") as lab:
        lab.load_image(image)
        yield lab


_ENDPOINTS: list[Endpoint] = []
"""The daemons that serve."""


@pytest.fixture(scope="module", autouse=True)
def as_found() -> Iterator[None]:
    """Each file leaves the daemons to the next one with no container and with no image but IMAGE."""
    yield
    for endpoint in _ENDPOINTS:
        end = time.monotonic() + 10.0
        while left := [(one["Names"], one["Command"], one["Status"]) for one in endpoint.json("GET", "/containers/json?all=1")]:
            assert time.monotonic() < end, f"containers left at {endpoint.path}: {left}"
            time.sleep(0.05)
        while made := [one for one in endpoint.json("GET", "/images/json") if IMAGE not in (one["RepoTags"] or ())]:
            gone = [endpoint.call("DELETE", f"/v1.41/images/{one['Id']}?force=1").status < 300 for one in made]
            assert any(gone), f"{endpoint.path} does not remove {made}"


@pytest.fixture(scope="session")
def covey(lab: Lab) -> Endpoint:
    """The manager m1 of a cluster of two."""
    _ENDPOINTS.append(Endpoint(lab.manager.socket))
    return _ENDPOINTS[-1]


@pytest.fixture(scope="session")
def dockerd(image: bytes) -> Iterator[Endpoint]:
    """Debian's dockerd, a swarm of one node."""
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root: run scripts/test with sudo")
    if shutil.which("dockerd") is None:
        pytest.skip("no dockerd here: scripts/setup --dev installs the package docker.io")
    directory = Path(tempfile.mkdtemp(prefix="covey-test-dockerd-"))
    cgroup = f"/{directory.name}"
    machine = lab_machine.Machine("dockerd", directory)
    try:
        machine.wait_ready()
        _furnish(machine, directory)
        endpoint = _start(machine, directory, cgroup)
        endpoint.json("POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": SWARM_ADDRESS})
        loaded = endpoint.call("POST", "/v1.41/images/load", image, {"Content-Type": "application/x-tar"})
        assert IMAGE in loaded.text, loaded
        _ENDPOINTS.append(endpoint)
        yield endpoint
    finally:
        machine.kill()
        lab_remains.remove_cgroups(cgroup)
        shutil.rmtree(directory)


def _furnish(machine: lab_machine.Machine, directory: Path) -> None:
    """Links for the swarm to advertise, and places of its own where dockerd would write into this machine's."""
    lines = (
        "link set lo up",
        "link add eth0 type bridge",
        f"addr add {SWARM_ADDRESS}/24 dev eth0",
        "link set eth0 up",
    )
    subprocess.run(machine.in_network("ip", "-batch", "-"), input="\n".join(lines), text=True, check=True, timeout=20)
    for place in ("/run", "/opt"):
        subprocess.run(machine.inside("mount", "-n", "-t", "tmpfs", "tmpfs", place), check=True, timeout=20)


def _start(machine: lab_machine.Machine, directory: Path, cgroup: str) -> Endpoint:
    endpoint = Endpoint(directory / "docker.sock")
    log = directory / "dockerd.log"
    settings = directory / "daemon.json"
    settings.write_text(json.dumps({"deprecated-key-path": f"{directory}/key.json"}))
    argv = (
        "dockerd",
        f"--data-root={directory}/data",
        f"--exec-root={directory}/run",
        f"--pidfile={directory}/pid",
        f"--config-file={settings}",
        f"--host={endpoint.host}",
        f"--cgroup-parent={cgroup}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
    )
    machine.spawn("dockerd", argv, log)
    end = time.monotonic() + 30
    while True:
        try:
            if endpoint.call("GET", "/_ping").status == 200:
                return endpoint
        except OSError:
            pass
        if time.monotonic() > end or "dockerd" not in machine.running():
            pytest.fail(f"dockerd does not serve; its log ends: {log.read_text(errors='replace')[-1500:]}")
        time.sleep(0.05)


@pytest.fixture(scope="session", params=list(DOCKERS))
def docker(request: pytest.FixtureRequest, covey: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A docker command at Covey."""
    path = DOCKERS[request.param]
    if not os.access(path, os.X_OK):
        pytest.skip(f"no docker command at {path}")
    environ = {"DOCKER_HOST": covey.host, "DOCKER_CONFIG": str(tmp_path_factory.mktemp("docker-config"))}
    return Program((path,), environ)


@pytest.fixture(scope="session")
def cluster(covey: Endpoint) -> Program:
    """The cluster command at Covey."""
    return Program((CLUSTER, "-H", covey.host))


@pytest.fixture(scope="session")
def cluster_on_docker(dockerd: Endpoint) -> Program:
    """The cluster command at Debian's dockerd."""
    return Program((CLUSTER, "-H", dockerd.host))
