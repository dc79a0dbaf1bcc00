"""The table `images`: unpacking an image of 300 MB in 10,000 files beside GNU tar with gzip, pulling it beside Debian's
Docker, and what a second start costs.

The same layers lie on the same disk for both; they take turns. Both write a tree; ours also verifies each layer's digest
and writes down what it unpacked. Wall time and CPU time (its own and its children's) are medians over the rounds; the ratio
is tar's over ours, so above 1 we are the faster.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import made_layers
import pulling
from rivals import COVEY, Rival, running

from covey.testing import images
from worker.images.layers import LayerStore

SEED, LAYERS, FILES, BYTES = 20_261_127, 4, 10_000, 300_000_000
WANTED = 0.8
IMAGE = "covey/second:bench"


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _measured(work: Callable[[Path], None], place: Path) -> Cost:
    place.mkdir()
    os.sync()
    wall, cpu = time.perf_counter(), _cpu()
    work(place)
    cost = Cost(time.perf_counter() - wall, _cpu() - cpu)
    shutil.rmtree(place)
    return cost


def unpacking(rounds: int, directory: Path, layers: Sequence[bytes]) -> dict[str, list[Cost]]:
    """Who → the cost of each round."""
    blobs, diff_ids = [], []
    for number, data in enumerate(layers):
        blobs.append(directory / f"layer{number}.tar.gz")
        blobs[-1].write_bytes(data)
        diff_ids.append("sha256:" + hashlib.sha256(gzip.decompress(data)).hexdigest())

    def tar(place: Path) -> None:
        for number, blob in enumerate(blobs):
            (place / str(number)).mkdir()
            subprocess.run(["tar", "-xzf", str(blob), "-C", str(place / str(number))], check=True)

    def covey(place: Path) -> None:
        LayerStore(place).ensure_all(diff_ids, lambda number: blobs[number].open("rb"))

    costs: dict[str, list[Cost]] = {"tar -xzf": [], "covey": []}
    for _ in range(rounds):
        for name, work in zip(costs, (tar, covey)):
            costs[name].append(_measured(work, directory / "unpacked"))
    return costs


def _layer_work(data: Path) -> tuple[int, list[str]]:
    """Changes with every layer that is unpacked: each grows in the scratch directory."""
    layers = data / "rootfs" / "layers"
    return (layers / "tmp").stat().st_mtime_ns, sorted(os.listdir(layers))


def second_start(rival: Rival, data: Path) -> tuple[int, int]:
    """(layers that a load unpacked, directories that changed below the layers in a second start)."""
    before = _layer_work(data)
    rival.client.images.load(images.docker_archive(IMAGE, [images.busybox_rootfs_tar()], {"Cmd": ["true"]}))
    loaded = _layer_work(data)
    rival.client.containers.run(IMAGE, remove=True)
    first = _layer_work(data)
    rival.client.containers.run(IMAGE, remove=True)
    return len(loaded[1]) - len(before[1]), sum(old != new for old, new in zip(first, _layer_work(data)))


def table(costs: dict[str, list[Cost]], pulls: dict[str, list[float]], second: tuple[int, int]) -> tuple[str, bool]:
    """(the table, whether all is as it shall be)."""
    medians = {name: Cost(*(statistics.median(column) for column in zip(*rows))) for name, rows in costs.items()}
    tar, covey = medians["tar -xzf"], medians["covey"]
    ratio = tar.wall / covey.wall
    lines = [f"{'unpack 300 MB, 10,000 files, 4 layers':40} {'wall s':>8} {'cpu s':>8} {'MB/s':>8}"]
    lines += [f"{name:40} {cost.wall:8.2f} {cost.cpu:8.2f} {BYTES / 1e6 / cost.wall:8.0f}" for name, cost in medians.items()]
    lines.append(f"{'speed, covey : tar (wanted: 0.8)':40} {ratio:8.2f} {tar.cpu / covey.cpu:8.2f}")
    pulled = {name: statistics.median(seconds) for name, seconds in pulls.items()}
    faster = pulled["docker"] / pulled["covey"]
    lines += [f"{f'pull of the same from a registry, {name}':40} {seconds:8.2f}" for name, seconds in pulled.items()]
    lines.append(f"{'speed, covey : docker (wanted: 1.0)':40} {faster:8.2f}")
    unpacked, changed = second
    lines.append(f"{'layers unpacked by a load':40} {unpacked:8}")
    lines.append(f"{'layer work of a second start (wanted: 0)':40} {changed:8}")
    return "\n".join(lines), ratio >= WANTED and faster >= 1.0 and unpacked == 1 and changed == 0


def run(rounds: int) -> int:
    """Print the table; 1 when a figure is not as the issue wants it."""
    with tempfile.TemporaryDirectory(prefix="covey-bench-images-") as name:
        layers = made_layers.layers(SEED, LAYERS, FILES, BYTES)
        costs = unpacking(rounds, Path(name), layers)
        pulls = pulling.pulls(rounds, Path(name), layers)
        with running(COVEY, Path(name)) as rival:
            second = second_start(rival, Path(name) / COVEY.name / "data")
    text, good = table(costs, pulls, second)
    print(text)
    sys.stdout.flush()
    return 0 if good else 1
