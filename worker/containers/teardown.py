"""Gives back what a container's run held of the machine: shim, cgroup, mounts, run directory, volumes, network.

Every step is safe without its setup and may be repeated; a step that fails is logged and the others are done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from pathlib import Path

from worker.containers.host import Host
from worker.containers.record import Container
from worker.containers.shim_client import sweep
from worker.kernel import process, trees
from worker.runtime.errors import RuntimeFault
from worker.shim import records

log = logging.getLogger(__name__)

SHIM_PATIENCE = 5.0
CGROUP_PATIENCE = 5.0
POLL = 0.01


async def end_shim(pid: int, started: int) -> None:
    """Kills a shim, and by that its container, and waits until it is gone."""
    process.kill_verified(pid, started, signal.SIGKILL)
    deadline = time.monotonic() + SHIM_PATIENCE
    while process.is_alive(pid, started):
        if time.monotonic() > deadline:
            log.error("shim %s does not end after SIGKILL", pid)
            return
        await asyncio.sleep(POLL)


def clear_directory(
    host: Host, container: Container, directory: Path, *, deleted: bool = False, keep_exit: bool = False
) -> None:
    """What a shim that is gone left in the kernel, the mounts, the run directory, the volumes. Blocking.

    ``deleted``: the shim cleaned up itself and ends on its own (it may still deliver output). ``keep_exit``: its record of
    the exit stays.
    """
    clear_run(host, directory, deleted=deleted, keep_exit=keep_exit)
    for mount in container.mounts:
        if mount.type == "volume":
            host.volumes.release(mount.name, container.id)


def clear_run(host: Host, directory: Path, *, deleted: bool = False, keep_exit: bool = False) -> None:
    """The run directory with what its shim left and what is mounted in it. Blocking."""
    if not directory.exists():
        return
    swept = deleted or _sweep(directory)
    for name in ("rootfs", "shm"):
        host.overlay.unmount(directory / name)
    if not swept:
        # Its records say what there is to sweep: for whoever removes the container.
        return
    if keep_exit and (directory / records.EXIT).exists():
        for entry in os.scandir(directory):
            if entry.name != records.EXIT:
                trees.remove_path(Path(entry.path))
    else:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(directory: Path) -> bool:
    """Whether nothing of the shim is left."""
    deadline = time.monotonic() + CGROUP_PATIENCE
    try:
        while not sweep(directory):
            if time.monotonic() > deadline:
                log.error("the cgroup of container %s is still in use and stays behind", directory.name)
                return False
            time.sleep(POLL)
    except (RuntimeFault, OSError) as error:
        log.error("what the shim of container %s left cannot be removed: %s", directory.name, error)
        return False
    return True


async def release(host: Host, container: Container) -> None:
    """Everything a container that does not run may still hold."""
    await detach(host, container)
    await clear(host, container)


async def detach(host: Host, container: Container) -> None:
    """Its addresses and ports, for others to take."""
    try:
        await host.network.detach(container.id)
    except Exception:
        log.exception("releasing the addresses and ports of container %s failed", container.short)


async def clear(host: Host, container: Container, *, deleted: bool = False, keep_exit: bool = False) -> None:
    """What its run left on disk and in the kernel; ``deleted``, ``keep_exit``: see ``clear_directory``."""
    directory = host.options.run_directory(container.id)
    try:
        await host.run(clear_directory, host, container, directory, deleted=deleted, keep_exit=keep_exit)
    except Exception:
        log.exception("clearing away what a run of container %s left failed", container.short)
