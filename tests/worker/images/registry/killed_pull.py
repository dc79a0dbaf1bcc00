"""A pull in a process of its own that does not outlive one of its file operations: ``killed_pull.py DATA NAME LAST``.

LAST counts the operations below DATA: what the audit hook tells of (opening, renaming, removing, making, attributes), syncs
and writes. 0 lets it end; it then prints how many there were.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.images import reference
from worker.images.pull import Puller
from worker.images.registry.access import Registries
from worker.images.registry.endpoints import RegistryOptions
from worker.images.store import ImageStore

EVENTS = frozenset(
    ("open", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.setxattr", "os.symlink")
)
SYNCS = ("fsync", "sync", "write")


def count_under(root: str, last: int) -> list[int]:
    """From now on operations below ``root`` are counted in the list answered; number ``last`` does not happen."""
    count = [0]
    lock = threading.Lock()

    def step() -> None:
        with lock:
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def told(event: str, arguments: tuple[Any, ...]) -> None:
        # Operations relative to a descriptor have no path to go by: they are an unpacked layer's, and count.
        if event in EVENTS and (str(arguments[0]).startswith(root) or not str(arguments[0]).startswith("/")):
            step()

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            step()
            return call(*arguments, **options)

        return counted

    for name in SYNCS:
        setattr(os, name, counting(getattr(os, name)))
    sys.addaudithook(told)
    return count


async def pull(data: Path, name: str, last: int) -> int:
    async with Registries(RegistryOptions(certificates=())) as registries:
        count = count_under(str(data), last)
        puller = Puller(ImageStore(data / "images"), registries)
        await puller.pull(reference.parse(name))
        puller.close()
    return count[0]


if __name__ == "__main__":
    ended = asyncio.run(pull(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    sys.stdout.write(f"{ended}\n")
