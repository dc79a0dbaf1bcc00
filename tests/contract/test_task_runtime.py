"""The fake and the real runtime keep the same promises to the agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from covey.testing import images, lab_remains
from covey.testing.lab_machine import Machine
from tests.contract import task_runtime
from tests.contract.fake_runtime import FakeNode, FakeRuntime

REPOSITORY = Path(__file__).resolve().parents[2]


class FakeWorld:
    def __init__(self) -> None:
        self.node = FakeNode(images={task_runtime.IMAGE})
        self.runtime = FakeRuntime(self.node)

    async def end(self, container_id: str) -> None:
        self.node.end(container_id, 137)

    async def restarted(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self.node.runtime = None
        await meanwhile()
        self.runtime = FakeRuntime(self.node)


@pytest.mark.asyncio
@pytest.mark.parametrize("promise", task_runtime.PROMISES)
async def test_the_fake_keeps(promise: str) -> None:
    await task_runtime.keep(promise, FakeWorld())


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Promise → fault of the real runtime, tried in a machine of its own."""
    root = tmp_path_factory.mktemp("rt")
    archive = root / "image.tar"
    archive.write_bytes(images.docker_archive(task_runtime.IMAGE, [images.busybox_rootfs_tar()], {"Cmd": ["sh"]}))
    machine = Machine("contract", root / "machine")
    cgroup = f"/covey-test-contract-{os.getpid()}"
    try:
        machine.wait_ready()
        argv = machine.inside(sys.executable, "-m", "tests.contract.real_runtime", str(root / "node"), cgroup, str(archive))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100, cwd="/", check=False)
        if not done.stdout.startswith("{"):
            pytest.fail(f"the real runtime did not come up: {done.stderr[-3000:]}")
        yield json.loads(done.stdout)
    finally:
        machine.kill()
        lab_remains.remove_cgroups(cgroup)


@pytest.mark.root
@pytest.mark.parametrize("promise", task_runtime.PROMISES)
def test_the_real_one_keeps(promise: str, faults: dict[str, str]) -> None:
    assert not faults[promise], faults[promise]
