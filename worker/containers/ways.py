"""The ways by which a bundle's process comes to be: out of a sandbox made ahead, together with its shim, or by a shim's worker.

It decides which of the last two a container may take, and when a short way has failed so that the long one is to be tried.
The order of a start is start's.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from covey.errors import InvalidArgument
from worker.containers import log_options, runtimes
from worker.containers.host import Host, Live
from worker.containers.pool import Sandbox
from worker.containers.record import Container
from worker.containers.shim_client import Launching, Shim, end_recorded, end_shim, machine_hierarchies
from worker.containers.shim_socket import ShimGone
from worker.runtime import birth, capabilities, orders, spec
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import UNFIT, RuntimeFault
from worker.runtime.launch import Host as Machine
from worker.shim import bundle, logs

_OF_A_SANDBOX = (UNFIT, "bad-state", "kernel")
"""Codes of faults that may be the sandbox's rather than the bundle's."""


NETWORK_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
"""Where in a container files of its run directory are bound; all else that is bound may be a mount of its own."""
_WITHOUT_MOUNTS = frozenset(
    (
        "devices", "domainname", "hostname", "join_cgroup", "links", "make_directory", "mask_paths", "mount_cgroup",
        "mount_filesystem", "oom_score_adj", "pivot", "private_mounts", "readonly_path", "readonly_root", "require_module",
        "sysctl", "unshare",
    )
)  # fmt: skip
"""Steps that look at nothing which worker.runtime.lean leaves out."""


class ShortWayClosed(Exception):
    """A short way of starting did not lead to the container; nothing of it is left, and the long way is still open."""


async def take_over(host: Host, container: Container, directory: Path, config: dict[str, Any], sandbox: Sandbox) -> Launching:
    """Have the sandbox become the container that ``config`` describes. Raises ShortWayClosed."""
    if not host.pool.fits(config):
        raise ShortWayClosed("its bundle is not like the others")
    identity = {"id": container.id, "dir": str(directory)}
    try:
        sandbox.become(directory)
        return await sandbox.shim.launch(directory, config=config, identity=identity, **settings_of(host, container))
    except (ShimGone, FileNotFoundError) as gone:
        raise ShortWayClosed(str(gone)) from gone


async def created(launching: Launching, *, ahead: bool) -> tuple[int, int]:
    """Its pid and start time. Nothing of the program has been done when that goes wrong, and another way may be tried.

    ``ahead``: it was made before there was a bundle; of one made for it, what goes wrong would mostly go wrong again.
    """
    try:
        return await launching.created()
    except ShimGone as gone:
        raise ShortWayClosed(str(gone)) from gone
    except RuntimeFault as fault:
        if fault.code not in (_OF_A_SANDBOX if ahead else (UNFIT,)):
            raise
        raise ShortWayClosed(str(fault)) from fault


async def launch(
    host: Host, live: Live, directory: Path, config: dict[str, Any], undo: AsyncExitStack, *, short: bool
) -> tuple[Shim, Launching]:
    """A new shim, and the bundle's process that it is making: both asked for at once where the process can do for itself."""
    container, parent = live.container, host.options.cgroup_parent
    program, settings = program_of(host, container), settings_of(host, container)
    plain = not program and not live.pending and not settings["stdin"] and logs.is_plain(settings["log"])
    if short and plain and birth.of_container(config).alone:
        undo.push_async_callback(end_recorded, directory)
        given = orders_for(config, directory, settings["init"])
        request = {"bundle": str(directory), "log": settings["log"], "init": settings["init"], "orders": given.to_plain()}
        line = await host.zygote.fork_container(container.id, directory, request, parent, root_alone(given, directory))
        if line is not None:
            shim = Shim.newborn(directory)
            return shim, shim.launching(line)
    pid, started = await host.zygote.fork_shim(container.id, directory, parent, program)
    undo.push_async_callback(end_shim, pid, started)
    shim = Shim.newborn(directory, (pid, started))
    return shim, await shim.launch(directory, config=config, **settings)


def root_alone(given: orders.Orders, directory: Path) -> str:
    """Where its root is mounted, if that is all its process needs of what is mounted on the machine; else ""."""
    root = ""
    for name, arguments in given.plan.create:
        if name == "open_root":
            root = arguments["path"]
        elif name == "mount_bind":
            place = arguments["destination"]
            if place not in NETWORK_FILES or arguments["source"] != f"{directory}/{os.path.basename(place)}":
                return ""
        elif name not in _WITHOUT_MOUNTS:
            return ""
    return root


def orders_for(config: dict[str, Any], directory: Path, with_init: bool) -> orders.Orders:
    """What is decided of the bundle's process, which can do for itself. Raises RuntimeFault for what cannot be run."""
    spec.check(config)
    # ``completed`` puts things in, which the bundle on disk has not.
    config = bundle.completed({**config, "process": dict(config["process"])}, str(directory), with_init)
    group = Cgroup(config["linux"]["cgroupsPath"], machine_hierarchies())
    machine = Machine(capabilities.held(), group.mounts(), group.entrances())
    return orders.of_container(config, machine, group.version)


def settings_of(host: Host, container: Container) -> dict[str, Any]:
    """What the shim is told beside the bundle."""
    return {
        "log": _log_settings(host, container),
        "stdin": bool(container.config.get("OpenStdin")),
        "init": bool(container.host_config.get("Init")),
    }


def _log_settings(host: Host, container: Container) -> dict[str, Any]:
    """The shim's log settings, with the directory the file goes to."""
    path = host.log_path(container)
    if log_options.driver_of(container) == "local":
        path.parent.mkdir(mode=0o700, exist_ok=True)
    return log_options.for_shim(container, str(path), host.options.name)


def program_of(host: Host, container: Container) -> str:
    """The path of the OCI runtime that is to run it, "" for our own. Raises InvalidArgument for one that is gone."""
    name = str(container.host_config.get("Runtime") or runtimes.OWN)
    if name == runtimes.OWN:
        return ""
    if name not in host.options.runtimes:
        raise InvalidArgument(f"unknown or invalid runtime name: {name}: start the daemon with --add-runtime {name}=PATH")
    return host.options.runtimes[name]
