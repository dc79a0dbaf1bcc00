"""The engine's hold on the zygote: finds it, or starts it when it is ours to start, and asks it for shims.

A zygote that died is replaced (ours) or looked for again (supervised by somebody else); shims do not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covey.errors import Unavailable
from worker.containers.shim_socket import Line, ShimGone
from worker.containers.zygote_client import Zygote
from worker.processes import wait_gone

log = logging.getLogger(__name__)

PATIENCE = 5.0
BACKOFF = (0.1, 8.0)
POLL = 0.05


class ZygoteLink:
    """``own``: whether to start a zygote at ``socket_path`` when none answers."""

    def __init__(self, socket_path: Path, cgroup_parent: str, *, own: bool) -> None:
        self._path = socket_path
        self._cgroup_parent = cgroup_parent
        self._own = own
        self._zygote: Zygote | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> Zygote:
        """A zygote that answered. Raises Unavailable."""
        async with self._lock:
            if self._zygote is None:
                self._zygote = await self._find()
            return self._zygote

    async def _find(self) -> Zygote:
        try:
            return await Zygote.connect(self._path)
        except ShimGone as gone:
            if self._own:
                log.info("starting a zygote at %s (%s)", self._path, gone)
                self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
                return await Zygote.spawn(self._path, self._path.with_name("zygote.log"), self._cgroup_parent)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await Zygote.connect(self._path)
            except ShimGone as gone:
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(f"no container can be started: {gone}; the daemon restarts its zygote") from None
            await asyncio.sleep(POLL)

    async def fork_shim(self, container_id: str, directory: Path, cgroup_parent: str, runtime: str = "") -> tuple[int, int]:
        """(pid, start time) of a new shim; a zygote found dead is replaced once. Raises ShimGone, Unavailable."""
        zygote = await self.open()
        try:
            return await zygote.fork_shim(container_id, directory, cgroup_parent, runtime)
        except ShimGone:
            self._drop(zygote)
        return await (await self.open()).fork_shim(container_id, directory, cgroup_parent, runtime)

    async def fork_container(
        self, container_id: str, directory: Path, request: Mapping[str, Any], cgroup_parent: str, root: str = ""
    ) -> Line | None:
        """The line on which a new shim and its container answer; None where the zygote cannot or is not there now."""
        zygote = await self.open()
        if not zygote.containers:
            return None
        try:
            return await zygote.fork_container(container_id, directory, request, cgroup_parent, root)
        except ShimGone:
            return None

    async def keep(self) -> None:
        """See that there is a zygote before the next start needs one; until cancelled."""
        pause = BACKOFF[0]
        while True:
            try:
                zygote = await self.open()
                pause = BACKOFF[0]
                await wait_gone(zygote.pid)
                log.warning("the zygote, pid %d, is gone; shims go on", zygote.pid)
                self._drop(zygote)
            except (ShimGone, Unavailable, OSError) as fault:
                log.error("no zygote: %s; trying again in %.1f s", fault, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    def _drop(self, zygote: Zygote) -> None:
        zygote.close()
        # Reaps it when it was our child.
        zygote.alive()
        if self._zygote is zygote:
            self._zygote = None

    async def stop(self) -> None:
        """Ends the zygote itself; shims stay."""
        try:
            await (await Zygote.connect(self._path)).stop()
        except ShimGone:
            pass
        self.close()

    def close(self) -> None:
        if self._zygote is not None:
            self._drop(self._zygote)
