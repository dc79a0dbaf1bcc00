"""Pulling one image from Debian's docker-registry on loopback: Covey beside Debian's dockerd, taking turns.

Each node has a registry of its own in its network namespace, both over the same files, so neither crosses more than a
loopback. An image is removed before it is pulled again. It decides what is pulled; who is the faster, the table says.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rivals import COVEY, DOCKER, Rival, running

from covey.testing import images

REGISTRY = "127.0.0.1:5000"
REPOSITORY = f"{REGISTRY}/bench/pulled"
PATIENCE = 30.0


@contextlib.contextmanager
def _registry(beside: Rival, storage: Path) -> Iterator[None]:
    """A registry over ``storage`` in the rival's network namespace."""
    settings = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}},
        "http": {"addr": REGISTRY},
    }
    file, log = storage / f"{beside.kind.name}.yml", storage / f"{beside.kind.name}.log"
    file.write_text(json.dumps(settings))
    with log.open("wb") as said:
        process = subprocess.Popen(
            beside.in_network("docker-registry", "serve", str(file)), stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + PATIENCE
        probe = beside.in_network("python3", "-c", f"import urllib.request as u; u.urlopen('http://{REGISTRY}/v2/', timeout=5)")
        while subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: docker-registry does not serve: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _pull(rival: Rival) -> float:
    """Seconds until the image is there, which it was not before."""
    os.sync()
    began = time.perf_counter()
    for line in rival.client.api.pull(REPOSITORY, tag="1", stream=True, decode=True):
        if "error" in line:
            raise SystemExit(f"bench: {rival.kind.name} does not pull: {line['error']}")
    took = time.perf_counter() - began
    rival.client.images.remove(f"{REPOSITORY}:1", force=True)
    return took


def pulls(rounds: int, directory: Path, layers: Sequence[bytes]) -> dict[str, list[float]]:
    """Who → the seconds of each pull of an image of ``layers`` (gzipped, lowest first)."""
    storage = directory / "registry"
    storage.mkdir()
    with contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(running(kind, directory)) for kind in (COVEY, DOCKER)]
        for rival in rivals:
            stack.enter_context(_registry(rival, storage))
        covey = rivals[0].client
        covey.images.load(images.docker_archive(f"{REPOSITORY}:1", [gzip.decompress(layer) for layer in layers]))
        for line in covey.images.push(REPOSITORY, tag="1", stream=True, decode=True):
            if "error" in line:
                raise SystemExit(f"bench: the image cannot be pushed: {line['error']}")
        covey.images.remove(f"{REPOSITORY}:1", force=True)
        found: dict[str, list[float]] = {rival.kind.name: [] for rival in rivals}
        for _ in range(rounds):
            for rival in rivals:
                found[rival.kind.name].append(_pull(rival))
    return found
