"""A node without a cluster, for tests: the engine and its routes on a Unix socket, in namespaces of its own.

Run as ``unshare -n -m python node_main.py ROOT CGROUP [POOL]``; says "ready" on stdout, ends on SIGTERM. POOL: how many
sandboxes are kept ready.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from pathlib import Path

from covey.engine_api.listeners import listen_unix
from covey.engine_api.server import Server
from worker.containers.engine import Engine
from worker.containers.options import EngineOptions
from worker.routes.handlers import handlers


async def serve(root: Path, cgroup: str, pool: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    options = EngineOptions(root / "data", root / "run", cgroup, name="test-node", warm_pool=pool)
    async with Engine(options) as engine, listen_unix(Server(handlers(engine)), root / "docker.sock"):
        print("ready", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 2))
