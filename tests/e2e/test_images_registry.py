"""A node's images as a registry (``--registry``): Debian's Docker pushes to it and pulls from it, and the cluster runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from covey.testing import images
from covey.testing.lab import Lab
from covey.testing.lab_node import LabNode

from .conftest import SLEEP, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PLACE = "127.0.0.1:5000"


def docker_archive(name: str) -> bytes:
    return images.docker_archive(
        name, [images.busybox_rootfs_tar(), images.tar([("noise", 0o644, os.urandom(1 << 20))])], {"Cmd": ["sh"]}
    )


Docker = Callable[..., str]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, options=("--registry=5000",)) as lab:
        yield lab


@pytest.fixture(scope="module")
def docker(lab: Lab) -> Docker:
    """Debian's docker command at a dockerd that shares the network of w1; it ends with the machine."""
    if shutil.which("dockerd") is None:
        pytest.skip("no dockerd here: scripts/setup --dev installs the package docker.io")
    node = lab.node("w1")
    directory = node.directory / "docker"
    directory.mkdir()
    host = f"unix://{directory}/docker.sock"
    settings = directory / "daemon.json"
    settings.write_text(json.dumps({"deprecated-key-path": f"{directory}/key.json"}))
    words = [
        *("dockerd", f"--data-root={directory}/data", f"--exec-root={directory}/run", f"--pidfile={directory}/pid"),
        *(f"--config-file={settings}", f"--host={host}", "--bridge=none", "--iptables=false", "--ip6tables=false"),
    ]
    furnish = "mount -n -t tmpfs tmpfs /run && mount -n -t tmpfs tmpfs /opt && exec " + " ".join(words)
    node.machine.spawn("dockerd", ["unshare", "--mount", "sh", "-c", furnish], directory / "dockerd.log")

    def attempt(*arguments: str, data: bytes = b"") -> tuple[int, str]:
        argv = ["docker", "-H", host, *arguments]
        done = subprocess.run(argv, input=data, capture_output=True, timeout=60, check=False, env={**os.environ})
        return done.returncode, (done.stdout + done.stderr).decode()

    def run(*arguments: str, data: bytes = b"") -> str:
        code, said = attempt(*arguments, data=data)
        assert code == 0, f"docker {' '.join(arguments)}: {said}"
        return said

    deadline = time.monotonic() + 30
    while attempt("version")[0]:
        log = (directory / "dockerd.log").read_text(errors="replace")[-1500:]
        assert time.monotonic() < deadline, f"dockerd does not serve; its log ends: {log}"
        time.sleep(0.1)
    return run


def image_id(node: LabNode, name: str) -> str:
    with node.connect() as client:
        return str(client.get(f"/images/{name}/json")["Id"])


def test_what_docker_pushes_to_one_node_runs_on_all_and_can_be_pulled_again(lab: Lab, docker: Docker) -> None:
    docker("load", data=docker_archive("team/app:1"))
    wanted = docker("image", "inspect", "--format", "{{.Id}}", "team/app:1").strip()
    docker("tag", "team/app:1", f"{PLACE}/team/app:1")
    said = docker("push", f"{PLACE}/team/app:1")
    assert "digest: sha256:" in said
    assert image_id(lab.node("w1"), "team/app:1") == wanted
    lab.manager.client.post("/services/create", json=service("app", SLEEP, replicas=2, container={"Image": "team/app:1"}))
    lab.wait_until(lambda: len(lab.running("app")) == 2, 30, "both replicas run")
    assert image_id(lab.node("m1"), "team/app:1") == wanted
    # Again: every blob is there already.
    assert "Layer already exists" in docker("push", f"{PLACE}/team/app:1")
    docker("rmi", "-f", wanted)
    docker("pull", f"{PLACE}/team/app:1")
    assert docker("image", "inspect", "--format", "{{.Id}}", f"{PLACE}/team/app:1").strip() == wanted


def test_what_a_node_has_docker_pulls_by_tag_and_digest(lab: Lab, docker: Docker) -> None:
    lab.load_image(docker_archive("covey/here:2"), ["w1"])
    said = docker("pull", f"{PLACE}/covey/here:2")
    assert "Status: Downloaded newer image" in said
    digest = said.partition("Digest: ")[2].split()[0]
    assert docker("image", "inspect", "--format", "{{.Id}}", f"{PLACE}/covey/here:2").strip() == image_id(
        lab.node("w1"), "covey/here:2"
    )
    docker("pull", f"{PLACE}/covey/here@{digest}")
