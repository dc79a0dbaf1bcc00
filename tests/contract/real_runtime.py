"""The real TaskRuntime held to its contract: a program run inside a machine of the lab; prints promise → fault ("" is kept).

Arguments: a directory, a cgroup parent, a docker-archive of the image.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.contract import task_runtime
from worker.agent.engine_runtime import EngineRuntime
from worker.containers.engine import Engine
from worker.containers.options import EngineOptions


class RealWorld:
    """An engine of its own; ``restarted`` closes it and opens another."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._stack = AsyncExitStack()
        self._pids: dict[str, int] = {}
        self.engine: Engine
        self.runtime: EngineRuntime

    async def open(self) -> None:
        self.engine = await self._stack.enter_async_context(Engine(self._options))
        self.runtime = EngineRuntime(self.engine, "contract")
        self.runtime.node_id = "n" * 25

    async def close(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def end(self, container_id: str) -> None:
        pid = self._pids.get(container_id) or next(
            one.pid for one in await self.runtime.found() if one.container_id == container_id
        )
        os.kill(pid, signal.SIGKILL)

    async def restarted(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._pids = {one.container_id: one.pid for one in await self.runtime.found()}
        await self.close()
        await meanwhile()
        await asyncio.sleep(0.2)
        await self.open()
        self._pids = {}


async def main(root: Path, cgroup: str, archive: Path) -> dict[str, str]:
    world = RealWorld(EngineOptions(root / "data", root / "run", cgroup, name="contract"))
    await world.open()
    faults: dict[str, str] = {}
    try:
        with open(archive, "rb") as stream:
            await asyncio.to_thread(world.engine.host.images.load_archive, stream)
        for promise in task_runtime.PROMISES:
            try:
                async with asyncio.timeout(30):
                    await task_runtime.keep(promise, world)
                faults[promise] = ""
            except Exception:
                faults[promise] = traceback.format_exc()
    finally:
        await world.close()
    return faults


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    found = asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
    sys.stdout.write(json.dumps(found))
