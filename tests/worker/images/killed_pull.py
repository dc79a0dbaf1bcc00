"""A pull in a process of its own that does not outlive one of its file operations: ``killed_pull.py DATA NAME LAST``.

LAST counts the operations below DATA, as kill_points does. 0 lets it end; it then prints how many there were.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import kill_points

from worker.images import reference
from worker.images.pull import Puller
from worker.images.registry.access import Registries
from worker.images.registry.endpoints import RegistryOptions
from worker.images.store import ImageStore


async def pull(data: Path, name: str, last: int) -> int:
    def concerns(event: str, where: str) -> bool:
        # Operations relative to a descriptor have no path to go by: they are an unpacked layer's, and count.
        return where.startswith(str(data)) or not where.startswith("/")

    async with Registries(RegistryOptions(certificates=())) as registries:
        made = kill_points.count(last, concerns)
        puller = Puller(ImageStore(data / "images"), registries)
        await puller.pull(reference.parse(name))
        puller.close()
    return made()


if __name__ == "__main__":
    ended = asyncio.run(pull(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    sys.stdout.write(f"{ended}\n")
