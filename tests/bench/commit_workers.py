"""The workers of the table `commit`, in a process of their own: they join, hold real sessions and report RUNNING.

Started as ``commit_workers.py ADDRESS TOKEN COUNT``; says ``ready`` on its output once all have sessions, and ends when its
input does. Asked by a line on its input, it says what it saw as a JSON object on one line.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

#: Handshakes under way at once: each costs the manager a signature.
AT_ONCE = 16

_SPEC = importlib.util.spec_from_file_location("fake_worker", Path(__file__).parents[1] / "manager" / "fake_worker.py")
assert _SPEC is not None
assert _SPEC.loader is not None
fake_worker = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake_worker)


async def main(address: str, token: str, count: int) -> None:
    """Join, connect, serve until the input ends."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def join(number: int) -> Any:
        async with gate:
            identity, reply = await fake_worker.join(address, token, f"w{number}")
        return fake_worker.FakeWorker(address, identity, reply.node_id, f"w{number}")

    workers = await asyncio.gather(*(join(number) for number in range(count)))
    async with AsyncExitStack() as stack:
        for start in range(0, count, AT_ONCE):
            for worker in workers[start : start + AT_ONCE]:
                await stack.enter_async_context(worker)
            await wait_sessions(workers[: start + AT_ONCE])
        print("ready", flush=True)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while await lines.readline():
            print(json.dumps(seen(workers)), flush=True)


async def wait_sessions(workers: list[Any]) -> None:
    while not all(worker.sessions for worker in workers):
        await asyncio.sleep(0.02)


def seen(workers: list[Any]) -> dict[str, Any]:
    """What happened so far: messages by kind, sessions that had to be opened again, statuses refused."""
    kinds: dict[str, int] = {}
    for worker in workers:
        for message in worker.messages:
            kinds[type(message).__name__] = kinds.get(type(message).__name__, 0) + 1
    return {
        "messages": kinds,
        "reopened": sum(worker.sessions - 1 for worker in workers),
        "refused": sum(len(worker.refused) for worker in workers),
        "faults": [fault for worker in workers for fault in worker.faults][:3],
        "cpu": time.process_time(),
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
