"""A pull asks the cluster's nodes for blobs before its registry: what one node has crosses the way to the registry once."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from covey.testing import images
from covey.testing.lab import Lab
from covey.testing.lab_machine import LabError
from covey.testing.lab_node import LabNode

from .test_images_fanout import counted, relayed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

REGISTRY = "198.51.100.11:5000"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, options=(f"--insecure-registry={REGISTRY}",)) as lab:
        yield lab


@pytest.fixture(scope="module")
def served(lab: Lab) -> Callable[[], list[str]]:
    """A registry on m1; the digests of the blobs it has handed out since the last question."""
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry here: scripts/setup --dev installs it")
    directory = lab.manager.directory / "registry"
    directory.mkdir()
    settings = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": "0.0.0.0:5000"},
    }
    file, log = directory / "registry.yml", directory / "registry.log"
    file.write_text(json.dumps(settings))
    lab.manager.machine.spawn("registry", ("docker-registry", "serve", str(file)), log)
    deadline = time.monotonic() + 20
    while True:
        try:
            if lab.manager.fetch(f"http://{REGISTRY}/v2/").status == 200:
                break
        except (OSError, LabError):
            pass
        assert time.monotonic() < deadline, log.read_text()[-1500:]
        time.sleep(0.1)
    seen = 0

    def since() -> list[str]:
        nonlocal seen
        text = log.read_text()
        found = re.findall(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64}) HTTP', text[seen:])
        seen = len(text)
        return found

    return since


def docker(node: LabNode, *words: str) -> str:
    done = node.run("docker", "-H", node.docker_host, *words, text=True, capture_output=True)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def pushed(lab: Lab, name: str, *layers: bytes) -> str:
    """An image that the registry has, and no node; its full name. (What was loaded has other layers: not compressed.)"""
    full = f"{REGISTRY}/{name}"
    lab.load_image(images.docker_archive(full, [images.busybox_rootfs_tar(), *layers], {"Cmd": ["sh"]}), ["m1"])
    docker(lab.manager, "push", full)
    docker(lab.manager, "rmi", full)
    return full


def noise() -> bytes:
    return images.tar([("noise", 0o644, os.urandom(1 << 20))])


def test_what_one_node_has_pulled_the_others_have_from_it(lab: Lab, served: Callable[[], list[str]]) -> None:
    image = pushed(lab, "app:1", noise())
    served()
    docker(lab.manager, "pull", image)
    assert len(served()) == 3, "a config and two layers"
    assert counted(lab.manager, "Received") == {}
    docker(lab.node("w1"), "pull", image)
    assert served() == []
    came = counted(lab.node("w1"), "Received")
    assert set(came.values()) == {1}
    assert len(came) == 3, "the manifest is the registry's word"
    assert docker(lab.node("w1"), "run", "--rm", "--network=none", image, "ls", "/noise") == "/noise\n"
    assert relayed(lab)["blobs"] == 0


def test_a_new_version_has_what_it_shares_from_the_nodes(lab: Lab, served: Callable[[], list[str]]) -> None:
    image = pushed(lab, "app:2", noise())
    served()
    before = counted(lab.node("w2"), "Received")
    docker(lab.node("w2"), "pull", image)
    assert len(served()) == 2, "its config and its own layer"
    assert len(counted(lab.node("w2"), "Received")) == len(before) + 1, "busybox"
