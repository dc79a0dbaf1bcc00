"""kill -9 at the file operations of a pull: the next store is sound, holds nothing half-done, and pulls again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker.images.store import ImageStore

from .conftest import Node
from .scripted import Made, ScriptedRegistry, made

pytestmark = [pytest.mark.asyncio, pytest.mark.suite]

PROGRAM = Path(__file__).parents[1] / "killed_pull.py"
REPOSITORY = PROGRAM.parents[4]
SHARED = {"etc/shared": b"s" * 300_000}


async def pull(data: Path, name: str, last: int) -> int | None:
    """How many file operations the pull made; None when it was killed before number ``last``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(data), name, str(last)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    said, errors = await asyncio.wait_for(process.communicate(), 60)
    if process.returncode == -9:
        return None
    assert process.returncode == 0, errors.decode()
    return int(said)


def examine(data: Path, base: Made, image: Made, name: str, where: str) -> None:
    """The store as the next daemon finds it."""
    store = ImageStore(data / "images")
    known = {one.id: one for one in store.list()}
    assert base.config in known, where
    assert set(known) <= {base.config, image.config}, where
    for scratch in (data / "images/ingest", data / "rootfs/layers/tmp"):
        assert not list(scratch.iterdir()), where
    needed = set(base.blobs) | {base.digest} | ((set(image.blobs) | {image.digest}) if image.config in known else set())
    blobs = {f"sha256:{path.name}": path for path in (data / "images/blobs/sha256").iterdir()}
    assert set(blobs) == needed, where
    for digest, path in blobs.items():
        assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest, where
    for one in known.values():
        found = {str(path.relative_to(top)) for top in store.layer_dirs(one) for path in top.rglob("*") if path.is_file()}
        assert found == ({"etc/shared", "etc/base"} if one.id == base.config else {"etc/shared", "a", "b"}), where
    if image.config in known:
        assert set(known[image.config].repo_tags) <= {name}, where


async def killed(registry: ScriptedRegistry, node: Node, tmp_path: Path, sample: int | None) -> None:
    base = made(SHARED, {"etc/base": b"base"})
    image = made(SHARED, {"a": random.Random(1).randbytes(300_000)}, {"b": b"b"})
    registry.add("app", "base", base)
    registry.add("app", "v1", image)
    await node.pull(f"{registry.address}/app:base")
    name = f"{registry.address}/app:v1"
    place = tmp_path / "place"

    def fresh() -> None:
        if place.exists():
            shutil.rmtree(place)
        subprocess.run(["cp", "-a", str(node.data), str(place)], check=True)

    fresh()
    total = await pull(place, name, 0)
    assert total
    examine(place, base, image, name, "not killed")
    numbers = list(range(1, total + 1))
    seed = int(os.environ.get("COVEY_SEED", "20261127"))
    if sample is not None:
        numbers = sorted({*numbers[-6:], *random.Random(seed).sample(numbers, min(sample, total))})
    print(f"pull: killed at {len(numbers)} of about {total} file operations (threads take turns as they like), seed {seed}")
    ended = 0
    for number in numbers:
        fresh()
        ended += await pull(place, name, number) is not None
        examine(place, base, image, name, f"killed at file operation {number}")
        if number % 5 == 0:
            assert await pull(place, name, 0)
            examine(place, base, image, name, f"pulled again after a kill at file operation {number}")
    assert ended <= max(6, len(numbers) // 4), "the pulls were to be killed, and many were not"


@pytest.mark.timeout(200)
async def test_some(registry: ScriptedRegistry, node: Node, tmp_path: Path) -> None:
    await killed(registry, node, tmp_path, 24)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_all(registry: ScriptedRegistry, node: Node, tmp_path: Path) -> None:
    await killed(registry, node, tmp_path, None)
