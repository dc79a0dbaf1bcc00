"""Sandboxes made before anybody asks: a shim with a process in its namespaces and cgroup, linked to the default bridge.

It decides how many there are and when another is made: never while a start is under way, as that would slow what somebody
waits for. Which bundle may take one is worker.runtime.sandbox's; an empty pool only means the ordinary way. Sandboxes end
with the daemon that made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import CoveyError
from worker.containers import bundle, host_config, surroundings, unmet
from worker.containers.options import EngineOptions
from worker.containers.shim_client import Shim, end_shim, sweep
from worker.containers.shim_socket import ShimGone
from worker.containers.users import User
from worker.containers.zygote_link import ZygoteLink
from worker.kernel import process
from worker.network.node_network import NodeNetwork
from worker.network.spare import Spare
from worker.runtime import cgroups, sandbox
from worker.runtime.errors import RuntimeFault
from worker.shim import records

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often the pool is looked through for sandboxes that have died."""
PATIENCE, POLL = 5.0, 0.01
QUIET = 0.02
"""Seconds without a start before another sandbox is made."""
BACKOFF = (1.0, 60.0)
_PATIENCE = 5.0

_AS_USUAL = (
    "Privileged", "PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode", "CgroupParent", "Devices", "DeviceCgroupRules",
    "Sysctls", "MaskedPaths", "ReadonlyPaths", "ShmSize",
)  # fmt: skip
"""What a HostConfig must leave at its default for a sandbox to be of use. The cgroup parent is among it because a v1
cgroup can be renamed, but not moved."""


@dataclass(eq=False)
class Sandbox:
    """One that is ready: ``pid`` is its process, ``directory`` holds its socket until it is taken."""

    shim: Shim
    shim_pid: int
    shim_started: int
    pid: int
    directory: Path
    spare: Spare | None

    def become(self, directory: Path) -> None:
        """Move what the daemon finds the shim by to a container's run directory. Raises OSError."""
        for name in ("shim.sock", "shim.json"):
            os.rename(self.directory / name, directory / name)
        self.directory.rmdir()
        self.shim.moved(directory)


def template(settings: dict[str, Any], cgroup: str) -> dict[str, Any]:
    """The config of a container with nothing but defaults, which are ``settings``."""
    return bundle.build(
        bundle.Inputs(
            config={},
            host_config=settings,
            argv=["true"],
            rootfs="/",
            cgroup=cgroup,
            user=User(0, 0, (), "/"),
            ceilings=surroundings.hard_limits(),
            cpus=os.cpu_count() or 1,
        )
    )


class Pool:
    def __init__(self, options: EngineOptions, zygote: ZygoteLink, network: NodeNetwork) -> None:
        self._options = options
        self._zygote = zygote
        self._network = network
        self._directory = options.exec_root / "pool"
        controllers = cgroups.available(cgroups.hierarchies())
        self._usual, _ = unmet.without(host_config.completed({}, os.cpu_count() or 1), controllers)
        self._template = _ahead_only(template(self._usual, ""))
        self._ready: list[Sandbox] = []
        self._lost: list[Sandbox] = []
        self._starts = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._taken = asyncio.Event()

    def statistics(self) -> dict[str, int]:
        """size: how many are wanted; ready: how many there are now."""
        return {"size": self._options.warm_pool, "ready": len(self._ready)}

    def pids(self) -> list[tuple[int, int]]:
        """(shim, sandbox process) of each that is ready, for whoever counts what they cost."""
        return [(one.shim_pid, one.pid) for one in self._ready]

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Around a start, which refilling keeps out of the way of."""
        self._starts += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._starts -= 1
            asyncio.get_running_loop().call_later(QUIET, self._rest)

    def _rest(self) -> None:
        if not self._starts:
            self._quiet.set()

    def take(self, settings: Mapping[str, Any]) -> Sandbox | None:
        """A sandbox for a container with this HostConfig, if its bundle is likely to fit one (``fits`` is asked then).

        The caller ends it if nothing comes of it.
        """
        if any(settings.get(name) != self._usual.get(name) for name in _AS_USUAL):
            return None
        while self._ready:
            self._taken.set()
            one = self._ready.pop(0)
            if not one.shim.lost and process.is_alive(one.shim_pid, one.shim_started):
                return one
            self._lost.append(one)
        return None

    async def give_up(self, one: Sandbox) -> None:
        """End a sandbox that was taken and did not become a container."""
        one.shim.close()
        await end_shim(one.shim_pid, one.shim_started)
        if one.spare is not None:
            await self._network.discard(one.spare)
        await asyncio.to_thread(_remove, one.directory)

    def _drop_lost(self) -> None:
        """Sandboxes whose shim or process was killed: the shim of the latter has ended, too."""
        lost = [one for one in self._ready if one.shim.lost]
        if not lost:
            return
        self._ready = [one for one in self._ready if one not in lost]
        self._lost += lost
        self._taken.set()

    async def _clear_lost(self) -> None:
        while self._lost:
            one = self._lost.pop()
            log.warning("a sandbox made ahead has died: %s", one.directory.name)
            await self.give_up(one)

    def fits(self, config: dict[str, Any]) -> bool:
        """Whether a sandbox can become the container of the bundle ``config``."""
        return sandbox.fits(self._template, config)

    async def keep(self) -> None:
        """Makes sandboxes until cancelled; those that are left then are ended."""
        await asyncio.to_thread(self._clear)
        pause = BACKOFF[0]
        try:
            while True:
                if len(self._ready) >= self._options.warm_pool:
                    self._taken.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._taken.wait()
                    self._drop_lost()
                    await self._clear_lost()
                    continue
                await self._quiet.wait()
                await self._clear_lost()
                try:
                    self._ready.append(await self._make())
                    pause = BACKOFF[0]
                except (CoveyError, RuntimeFault, ShimGone, OSError) as fault:
                    log.warning("no sandbox could be made ahead: %s; starts take longer; trying again in %.0f s", fault, pause)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, BACKOFF[1])
        finally:
            self._drop_lost()
            for one in self._ready:
                one.shim.close()
            self._ready.clear()
            await self._clear_lost()

    async def _make(self) -> Sandbox:
        name = f"sandbox-{secrets.token_hex(8)}"
        directory = self._directory / name
        directory.mkdir(mode=0o700, parents=True)
        parent = self._options.cgroup_parent
        shim_pid, started = 0, 0
        try:
            shim_pid, started = await self._zygote.fork_shim(name, directory, parent)
            shim = Shim.newborn(directory, (shim_pid, started))
            cgroup = f"/{parent.strip('/')}/{name}"
            pid = await shim.prepare({**self._template, "linux": {**self._template["linux"], "cgroupsPath": cgroup}})
            return Sandbox(shim, shim_pid, started, pid, directory, await self._network.prewire(pid))
        except BaseException:
            if shim_pid:
                await end_shim(shim_pid, started)
            await asyncio.to_thread(_remove, directory)
            raise

    def _clear(self) -> None:
        """What an earlier daemon left: its sandboxes end by themselves, unless they were killed or not yet made."""
        if self._directory.exists():
            for directory in self._directory.iterdir():
                _remove(directory)


def _ahead_only(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a default container's config that a sandbox has: its trees, without what belongs to a container."""
    mounts = [mount for mount in config["mounts"] if mount["type"] != "bind"]
    kept = {key: value for key, value in config.items() if key not in ("hostname", "covey")}
    return {**kept, "mounts": mounts}


def _remove(directory: Path) -> None:
    """The run directory of a sandbox, and its shim if it is still there."""
    deadline = time.monotonic() + _PATIENCE
    while directory.exists() and time.monotonic() < deadline:
        with contextlib.suppress(RuntimeFault, OSError):
            known = records.read(str(directory), "shim.json")
            if known is not None and known.get("start_time"):
                process.kill_verified(known["pid"], known["start_time"], signal.SIGKILL)
            if sweep(directory):
                # Without a descriptor to be had it stays, until there is one.
                shutil.rmtree(directory)
        time.sleep(POLL)
    if directory.exists():
        log.error("the sandbox in %s cannot be removed now: its shim or its cgroup is still there", directory)
