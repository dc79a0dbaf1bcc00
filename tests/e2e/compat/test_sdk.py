"""The Docker SDK for Python and testcontainers at Covey, unmodified."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

docker = pytest.importorskip("docker")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

IMAGE = "covey/busybox:demo"


@pytest.fixture
def sdk(covey: Any) -> Iterator[Any]:
    client = docker.DockerClient(base_url=covey.host)
    yield client
    client.close()


def test_images(sdk: Any, image: bytes) -> None:
    (loaded,) = sdk.images.load(image)
    assert loaded.tags == [IMAGE]
    assert sdk.images.get(IMAGE).id == loaded.id
    assert loaded.tag("covey/other", "1")
    assert {tag for one in sdk.images.list() for tag in one.tags} == {IMAGE, "covey/other:1"}
    sdk.images.remove("covey/other:1")
    with pytest.raises(docker.errors.ImageNotFound):
        sdk.images.get("covey/other:1")


def test_containers(sdk: Any) -> None:
    assert sdk.containers.run(IMAGE, ["echo", "hi"], remove=True) == b"hi\n"
    with pytest.raises(docker.errors.ContainerError, match="exit status 3"):
        sdk.containers.run(IMAGE, ["sh", "-c", "exit 3"], remove=True)
    with pytest.raises(docker.errors.APIError, match=r"lookup registry-1\.docker\.io: no such host"):
        sdk.containers.run("covey/no-such:1")
    container = sdk.containers.run(
        IMAGE, ["sleep", "1000"], name="sdk", detach=True, ports={"80/tcp": None}, environment=["A=b"]
    )
    try:
        assert sdk.containers.get("sdk").status == "running"
        assert container.exec_run(["sh", "-c", "echo $A; exit 4"]) == (4, b"b\n")
        container.reload()
        assert int(container.ports["80/tcp"][0]["HostPort"]) > 0
        assert container.stats(stream=False)["pids_stats"]["current"] == 1
        assert "sleep 1000" in container.top()["Processes"][0][-1]
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
    finally:
        container.remove(force=True)
    assert sdk.containers.list(all=True) == []


def test_services_tasks_and_nodes(sdk: Any, covey: Any) -> None:
    mode = docker.types.ServiceMode("replicated", replicas=2)
    service = sdk.services.create(
        IMAGE, command=["sleep", "1000"], name="sdk", mode=mode, stop_grace_period=0, labels={"a": "b"}
    )
    try:
        covey.wait("both run", lambda: covey.running("sdk") == 2)
        tasks = service.tasks(filters={"desired-state": "running"})
        nodes = {node.id: node.attrs["Description"]["Hostname"] for node in sdk.nodes.list()}
        assert {nodes[task["NodeID"]] for task in tasks} == {"m1", "w1"}
        assert [one.name for one in sdk.services.list(filters={"label": "a=b"})] == ["sdk"]
        service.scale(1)
        covey.wait("one is left", lambda: covey.running("sdk") == 1)
        service.reload()
        service.update(labels={"a": "c"}, mode=docker.types.ServiceMode("replicated", replicas=1))
        service.reload()
        assert service.attrs["Spec"]["Labels"] == {"a": "c"}
    finally:
        service.remove()
    with pytest.raises(docker.errors.NotFound):
        sdk.services.get("sdk")
    covey.wait("its containers are gone", lambda: not sdk.containers.list(all=True))


def test_volumes_networks_and_events(sdk: Any) -> None:
    volume = sdk.volumes.create("sdk-volume", labels={"a": "b"})
    network = sdk.networks.create("sdk-network", driver="bridge")
    try:
        keep = {volume.name: {"bind": "/data", "mode": "rw"}}
        sdk.containers.run(IMAGE, ["sh", "-c", "echo kept > /data/f"], volumes=keep, network="sdk-network", remove=True)
        assert sdk.containers.run(IMAGE, ["cat", "/data/f"], volumes=keep, remove=True) == b"kept\n"
        assert [one.name for one in sdk.volumes.list(filters={"label": "a=b"})] == ["sdk-volume"]
        assert [one.name for one in sdk.networks.list(names=["sdk-network"])] == ["sdk-network"]
        events = sdk.events(decode=True, filters={"type": "container"})
        container = sdk.containers.create(IMAGE, ["true"])
        seen = next(events)
        events.close()
        assert (seen["Action"], seen["Actor"]["ID"]) == ("create", container.id)
        container.remove()
    finally:
        volume.remove()
        network.remove()


TESTCONTAINERS = """
import urllib.request
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

serve = "echo hello > /www/index.html; echo ready; exec httpd -f -p 80 -h /www"
container = DockerContainer("covey/busybox:demo").with_command(["sh", "-c", serve]).with_exposed_ports(80)
with container.waiting_for(LogMessageWaitStrategy("ready")) as running:
    name = running.get_wrapped_container().id
    url = f"http://{running.get_container_host_ip()}:{running.get_exposed_port(80)}/"
    assert urllib.request.urlopen(url, timeout=5).read() == b"hello\\n", url
    assert running.get_logs()[0] == b"ready\\n", running.get_logs()
    assert tuple(running.exec(["sh", "-c", "echo inside; exit 4"])) == (4, b"inside\\n")
print(name)
"""


def test_testcontainers_starts_reaches_reads_and_removes_a_container(lab: Any, covey: Any, sdk: Any, tmp_path: Path) -> None:
    """The test process stands on the node's network, as one on a machine with Covey would."""
    pytest.importorskip("testcontainers")
    script = tmp_path / "uses_testcontainers.py"
    script.write_text(TESTCONTAINERS)
    environment = {**os.environ, "DOCKER_HOST": covey.host, "TESTCONTAINERS_RYUK_DISABLED": "true", "HOME": str(tmp_path)}
    done = subprocess.run(
        lab.manager.machine.in_network(sys.executable, "-P", str(script)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(docker.errors.NotFound):
        sdk.containers.get(done.stdout.strip())
