"""The docker SDK for Python and testcontainers against our engine."""

from __future__ import annotations

import os
import subprocess
import sys

import docker
import pytest

from .conftest import REPOSITORY, Node, wait_until

pytestmark = pytest.mark.root


def test_docker_sdk(node: Node) -> None:
    client = docker.DockerClient(base_url=f"unix://{node.socket}", version="auto")
    try:
        assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
        container = client.containers.run("busybox", ["sleep", "100"], detach=True, environment={"A": "b"}, name="sdk")
        code, output = container.exec_run(["sh", "-c", "echo $A; exit 2"])
        assert (code, output) == (2, b"b\n")
        assert client.containers.list()[0].name == "sdk"
        assert container.stats(stream=False)["pids_stats"]["current"] == 1
        with pytest.raises(docker.errors.APIError) as refused:
            client.containers.create("busybox", name="sdk")
        assert refused.value.status_code == 409
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        container.remove()
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("sdk")
        with pytest.raises(docker.errors.ImageNotFound):
            client.images.get("nosuch")
    finally:
        client.close()


TESTCONTAINERS = """
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import wait_for_logs
command = ["sh", "-c", "mkdir /w; echo page > /w/index.html; echo ready; exec httpd -f -p 80 -h /w"]
with DockerContainer("busybox").with_command(command).with_exposed_ports(80) as container:
    wait_for_logs(container, "ready", timeout=10)
    port = container.get_exposed_port(80)
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read() == b"page\\n"
    assert container.exec(["echo", "inside"]).output == b"inside\\n"
print("done")
"""


def test_testcontainers(node: Node) -> None:
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{node.socket}",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        node.inside(sys.executable, "-P", "-c", TESTCONTAINERS), env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
    wait_until(lambda: node.out("ps", "-aq") == "", "testcontainers removes its container")
