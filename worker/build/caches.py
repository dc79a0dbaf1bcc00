"""The directories of ``RUN --mount=type=cache``: kept between builds, shared by id, never part of an image.

Decides who may use one at the same time (sharing). They live until the build cache is pruned.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from worker.build.threads import whole
from worker.containers.host import Host
from worker.containers.remap import Remap, outside
from worker.dockerfile.mounts import RunMount
from worker.kernel import trees
from worker.rootfs import changes


class Caches:
    """Of one node."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._root = host.options.data_root / "build" / "caches"
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def used(self, mount: RunMount) -> AsyncIterator[Path]:
        """The directory, for as long as the step runs."""
        name = hashlib.sha256(mount.id.encode()).hexdigest()
        if mount.sharing == "locked":
            async with self._locks.setdefault(name, asyncio.Lock()):
                yield await self._made(name, mount)
            return
        own = mount.sharing == "private" and self._users[name] > 0
        if own:
            name += f"-{secrets.token_hex(8)}"
        self._users[name] += 1
        try:
            yield await self._made(name, mount)
        finally:
            self._users[name] -= 1
            if own:
                await self._host.carry(self._host.run(trees.remove_path, self._root / name), "build: private cache")

    async def _made(self, name: str, mount: RunMount) -> Path:
        return await whole(self._host, _make, self._root / name, mount, self._host.options.remap)

    def prune(self) -> tuple[list[str], int]:
        """Remove those that no step uses: (their names, bytes). Blocking."""
        names, freed = [], 0
        for entry in list(os.scandir(self._root)) if self._root.is_dir() else ():
            lock = self._locks.get(entry.name)
            if self._users[entry.name] or (lock is not None and lock.locked()):
                continue
            freed += changes.size(Path(entry.path))
            trees.remove_path(Path(entry.path))
            names.append(entry.name)
        return names, freed


def _make(path: Path, mount: RunMount, ids: Remap | None) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return path
    uid, gid = mount.uid, mount.gid
    if ids is not None:
        uid, gid = outside(ids.uids, uid), outside(ids.gids, gid)
    os.chown(path, uid, gid)
    os.chmod(path, 0o755 if mount.mode is None else mount.mode)
    return path
