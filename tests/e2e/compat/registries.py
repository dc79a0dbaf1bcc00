"""A machine with Debian's docker-registry three times (open, with passwords, a mirror), a Covey node and a dockerd.

All share one loopback, so that any of them can be told of 127.0.0.1:port. Clients run inside, in the machine's network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from covey.testing import lab_machine, lab_remains

from .conftest import Endpoint

CLUSTER = str(Path(sys.executable).with_name("cluster"))
REPOSITORY = Path(__file__).resolve().parents[3]
OPEN, PRIVATE, MIRROR = "127.0.0.1:5000", "127.0.0.1:5001", "127.0.0.1:5002"
USER, PASSWORD = "ann", "correct horse"
PROGRAMS = {"docker-registry": "docker-registry", "skopeo": "skopeo", "htpasswd": "apache2-utils", "dockerd": "docker.io"}


def check() -> None:
    """Skips, and says why, where this machine cannot have the stage."""
    if os.geteuid() != 0:
        pytest.skip("registries and daemons in a machine of their own need root: run scripts/test with sudo")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: scripts/setup --dev installs the package {package}")


@dataclass
class Stage:
    """The machine and its daemons. ``run`` runs a client in its network."""

    machine: lab_machine.Machine
    directory: Path
    cgroup: str

    @property
    def covey(self) -> Endpoint:
        return Endpoint(self.directory / "covey.sock")

    @property
    def dockerd(self) -> Endpoint:
        return Endpoint(self.directory / "docker.sock")

    def run(self, *argv: str, environ: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.machine.in_network(*argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, "HOME": str(self.directory), **(environ or {})},
        )

    def client(self, program: str, *words: str, config: Path, endpoint: Endpoint | None = None) -> Client:
        host = (endpoint or self.covey).host
        return Client(self, (program, *words), {"DOCKER_HOST": host, "COVEY_HOST": host, "DOCKER_CONFIG": str(config)})

    def start(self) -> None:
        self.machine.wait_ready()
        for place in ("/run", "/opt"):
            subprocess.run(self.machine.inside("mount", "-n", "-t", "tmpfs", "tmpfs", place), check=True, timeout=20)
        for line in ("link set lo up", "link add eth0 type bridge", "addr add 198.51.100.201/24 dev eth0", "link set eth0 up"):
            subprocess.run(self.machine.in_network("ip", *line.split()), check=True, timeout=20)
        passwords = self.directory / "passwords"
        made = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, text=True, check=True, timeout=20)
        passwords.write_text(made.stdout)
        for name, address in (("open", OPEN), ("private", PRIVATE), ("mirror", MIRROR)):
            settings: dict[str, Any] = {
                "version": "0.1",
                "log": {"level": "info"},
                "storage": {"filesystem": {"rootdirectory": str(self.directory / name)}, "delete": {"enabled": True}},
                "http": {"addr": address},
            }
            if name == "private":
                settings["auth"] = {"htpasswd": {"realm": "stage", "path": str(passwords)}}
            file = self.directory / f"{name}.yml"
            file.write_text(json.dumps(settings))
            self.machine.spawn(name, ("docker-registry", "serve", str(file)), self.directory / f"{name}.log")
        self._start_covey()
        self._start_dockerd()
        for name in ("open", "private", "mirror"):
            self._wait(name, lambda address={"open": OPEN, "private": PRIVATE, "mirror": MIRROR}[name]: self._answers(address))
        self._wait("covey", lambda: self.covey.call("GET", "/_ping").status == 200)
        self._wait("dockerd", lambda: self.dockerd.call("GET", "/_ping").status == 200)

    def _answers(self, address: str) -> bool:
        return self.machine.fetch(f"http://{address}/v2/").status in (200, 401)

    def _wait(self, name: str, ready: Any) -> None:
        end = time.monotonic() + 40
        while True:
            try:
                if ready():
                    return
            except (OSError, lab_machine.LabError):
                pass
            if time.monotonic() > end or name not in self.machine.running():
                said = (self.directory / f"{name}.log").read_text(errors="replace")
                pytest.fail(f"{name} does not serve; its log ends: {said[-1500:]}")
            time.sleep(0.05)

    def _start_covey(self) -> None:
        argv = (
            CLUSTER,
            "daemon",
            f"--data-root={self.directory}/covey",
            f"--exec-root={self.directory}/covey-run",
            f"--cgroup-parent={self.cgroup}-c",
            f"--host={self.covey.host}",
            "--warm-pool=0",
            f"--registry-mirror=http://{MIRROR}",
        )
        self.machine.spawn("covey", argv, self.directory / "covey.log")

    def _start_dockerd(self) -> None:
        settings = self.directory / "daemon.json"
        settings.write_text(json.dumps({"deprecated-key-path": f"{self.directory}/key.json"}))
        argv = (
            "dockerd",
            f"--data-root={self.directory}/docker",
            f"--exec-root={self.directory}/docker-run",
            f"--pidfile={self.directory}/pid",
            f"--config-file={settings}",
            f"--host={self.dockerd.host}",
            f"--cgroup-parent={self.cgroup}-d",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--bridge=none",
            "--iptables=false",
            f"--registry-mirror=http://{MIRROR}",
        )
        self.machine.spawn("dockerd", argv, self.directory / "dockerd.log")

    def end(self) -> None:
        self.machine.kill()
        for name in (f"{self.cgroup}-c", f"{self.cgroup}-d"):
            lab_remains.remove_cgroups(name)
        shutil.rmtree(self.directory)


@dataclass(frozen=True)
class Client:
    """A command at one daemon, in the stage's network. Called with arguments it gives its standard output."""

    stage: Stage
    argv: tuple[str, ...]
    environ: dict[str, str]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.stage.run(*self.argv, *arguments, environ=self.environ, stdin=stdin)

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{' '.join((*self.argv, *arguments))}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *arguments: str, stdin: str = "") -> str:
        """What it says when it fails, as it must."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode != 0, f"{' '.join((*self.argv, *arguments))} succeeded:\n{done.stdout}"
        return done.stdout + done.stderr
