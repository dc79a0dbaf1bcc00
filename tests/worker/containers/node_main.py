"""A node without a cluster, for tests: the engine and its routes on a Unix socket, in namespaces of its own.

Run as ``unshare -n -m python node_main.py ROOT CGROUP [OPTIONS]``; says "ready" on stdout, ends on SIGTERM. OPTIONS is JSON:
``pool``, how many sandboxes are kept ready, ``refused``, a list for the node's policy, and ``ids``, the maps of its
containers' user namespaces.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import uvloop

from covey.engine_api.listeners import listen_unix
from covey.engine_api.server import Server
from worker.containers import runtimes
from worker.containers.engine import Engine
from worker.containers.options import EngineOptions
from worker.containers.policy import Policy
from worker.containers.remap import from_lists
from worker.routes.handlers import handlers


async def serve(root: Path, cgroup: str, more: dict[str, Any], added: list[str]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    options = EngineOptions(
        root / "data",
        root / "run",
        cgroup,
        name="test-node",
        warm_pool=more.get("pool", 2),
        runtimes=runtimes.parse(added),
        policy=Policy(tuple(more.get("refused") or ())),
        remap=from_lists(more["ids"]) if "ids" in more else None,
    )
    async with Engine(options) as engine, listen_unix(Server(handlers(engine)), root / "docker.sock"):
        print("ready", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    uvloop.run(serve(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]))
