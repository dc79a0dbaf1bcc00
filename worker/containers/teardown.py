"""Gives back what a container's run held of the machine: shim, cgroup, mounts, run directory, volumes, network.

Every step is safe without its setup and may be repeated; a step that fails is logged and the others are done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from pathlib import Path

from covey.errors import Internal
from worker.containers import record
from worker.containers.host import Host
from worker.containers.record import Container
from worker.containers.shim_client import sweep
from worker.kernel import process, trees
from worker.runtime.errors import RuntimeFault, remedy
from worker.shim import records

log = logging.getLogger(__name__)

CGROUP_PATIENCE = 5.0
POLL = 0.01


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
    if keep_exit:
        for name in beside_exit(directory):
            trees.remove_path(directory / name)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def clear_left(host: Host, directory: Path) -> None:
    """``clear_run`` of a container that is no more. Raises Internal where it must be tried again."""
    clear_run(host, directory)
    if directory.exists():
        raise Internal(f"{directory}, of a removed container, cannot be cleared away now")


def _sweep(directory: Path) -> bool:
    """Whether nothing of the shim is left; one that lives, of a container that is not to run, is ended."""
    deadline = time.monotonic() + CGROUP_PATIENCE
    words = "its cgroup is still in use"
    while time.monotonic() < deadline:
        try:
            if sweep(directory):
                return True
        except RuntimeFault as fault:
            words = str(fault)
            with contextlib.suppress(OSError):
                found = records.read(str(directory), "shim.json")
                if found is not None:
                    process.kill_verified(found["pid"], found["start_time"], signal.SIGKILL)
        except OSError as error:
            words = f"{error}{remedy(error)}"
            break
        time.sleep(POLL)
    log.error("what the shim of container %s left cannot be removed now: %s", directory.name, words)
    return False


def beside_exit(directory: Path) -> list[str]:
    """What is in a run directory beside that the container ran, and how it ended."""
    return [name for name in os.listdir(directory) if name not in (records.EXIT, record.MARK)]


async def detach(host: Host, container: Container) -> None:
    """Its addresses and ports, for others to take."""
    try:
        await host.network.detach(container.id)
    except Exception:
        log.exception("releasing the addresses and ports of container %s failed", container.short)


async def clear(host: Host, container: Container, *, deleted: bool = False, keep_exit: bool = False) -> None:
    """What its run left on disk and in the kernel; ``deleted``, ``keep_exit``: see ``clear_directory``."""
    directory = host.options.run_directory(container.id)
    await host.run(clear_logged, host, container, directory, deleted=deleted, keep_exit=keep_exit)


def clear_logged(host: Host, container: Container, directory: Path, *, deleted: bool = False, keep_exit: bool = False) -> None:
    """``clear_directory``, of which a fault is told in the log."""
    try:
        clear_directory(host, container, directory, deleted=deleted, keep_exit=keep_exit)
    except Exception:
        log.exception("clearing away what a run of container %s left failed", container.short)
