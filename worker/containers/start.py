"""Starts a created or exited container: mount, reserve, shim, plug, run; everything undone when a step fails.

It decides the order and Docker's words and exit codes for what fails. What happens after the start is supervise's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from covey.errors import Conflict, CoveyError, Internal, InvalidArgument, NotModified
from worker.containers import (
    bundle,
    health,
    limits,
    network_requests,
    policy,
    record,
    remap,
    runtimes,
    seccomp,
    supervise,
    surroundings,
    teardown,
    ways,
)
from worker.containers.host import Host, Live
from worker.containers.pool import Sandbox
from worker.containers.record import Container, Health, State
from worker.containers.shim_client import Launching, Shim
from worker.containers.shim_socket import ShimGone
from worker.kernel import process, trees
from worker.network import text as network_text
from worker.network.endpoint import Attachment
from worker.runtime.errors import RuntimeFault, remedy

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
EXIT_CODES = {"not-found": 127, "not-executable": 126}
NAMESPACE_FILES = {"pid": "pid", "network": "net", "ipc": "ipc"}


async def start(host: Host, live: Live) -> None:
    """Runs the container's process. Raises NotModified (it runs), Conflict, and what ``explained`` makes of failures."""
    async with live.lock:
        container = live.container
        status = container.state.status
        if status == record.PAUSED:
            raise Conflict("cannot start a paused container, try unpause instead")
        if status == record.RUNNING:
            raise NotModified(f"container {container.name} runs already")
        again = live.restart is not None and live.restart is asyncio.current_task()
        if status == record.RESTARTING and not again:
            raise NotModified(f"container {container.name} is about to be started again by its policy")
        if live.removing or status in (record.REMOVING, record.DEAD):
            raise Conflict("container is marked for removal and cannot be started")
        # A container may be older than the daemon's options.
        mounts = policy.asked(container.mounts, container.owner, f"{host.options.exec_root}/tasks")
        host.options.policy.check(container.host_config, mounts)
        cancel_restart(live)
        if not again:
            container.restart_count, container.restart_delay = 0, 0.0
        container.manually_stopped = False
        try:
            await _start(host, live)
        except Exception as error:
            code, fault = explained(container, error)
            _failed(host, live, code, fault)
            if fault is error:
                raise
            raise fault from error


def cancel_restart(live: Live) -> None:
    """A restart that waits for its delay will not come; the restart that is running us is left alone."""
    if live.restart is not None and live.restart is not asyncio.current_task():
        live.restart.cancel()
    live.restart = None


def _failed(host: Host, live: Live, code: int, fault: CoveyError) -> None:
    container = live.container
    container.state = State(
        status=record.EXITED if container.state.started_at else record.CREATED,
        exit_code=code,
        error=fault.message,
        started_at=container.state.started_at,
        finished_at=container.state.finished_at,
    )
    live.drop_pending()
    live.shim = None
    live.exited.set()
    live.wake_exit_waiters(code)
    host.note(container)
    if container.host_config.get("AutoRemove"):
        host.auto_remove(live)


def explained(container: Container, error: Exception) -> tuple[int, CoveyError]:
    """The exit code and the error in Docker's words. 127: no such program; 126: not executable; 128: everything else."""
    if isinstance(error, CoveyError):
        return 128, error
    if isinstance(error, RuntimeFault):
        code = EXIT_CODES.get(error.code, 128)
        head = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        if code != 128:
            text = f"{head}unable to start container process: {exec_words(container.path, error)}: unknown"
            return code, InvalidArgument(text)
        return code, Internal(f"{head}{error}: unknown")
    if isinstance(error, ShimGone):
        return 128, Internal(f"failed to create task for container {container.short}: {error}: see the zygote's log")
    if isinstance(error, OSError):
        what = f"{error.strerror} ({error.filename or 'kernel call'})"
        return 128, Internal(f"cannot start container {container.short}: {what}{remedy(error)}")
    raise error


def exec_words(program: str, fault: RuntimeFault) -> str:
    """``exec: "foo": executable file not found in $PATH`` and its like, which the docker CLI reads for its exit code."""
    if fault.code == "not-found":
        if "/" in program:
            return f'exec: "{program}": stat {program}: no such file or directory'
        return f'exec: "{program}": executable file not found in $PATH'
    if fault.code == "not-executable":
        return f'exec: "{program}": permission denied'
    return str(fault)


async def _start(host: Host, live: Live) -> None:
    if live.container.id in host.unnoted:
        # What tells of its last run is about to be cleared away.
        host.save(live.container)
    async with host.pool.starting():
        try:
            await _run(host, live, short=True)
        except ways.ShortWayClosed as closed:
            log.warning("container %s is started the long way: %s", live.container.short, closed)
            await _run(host, live, short=False)


async def _run(host: Host, live: Live, *, short: bool) -> None:
    """``short``: a sandbox of the pool may be taken, or a shim with its container asked for.

    ShortWayClosed when that went wrong, with everything undone.
    """
    container = live.container
    directory = host.options.run_directory(container.id)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(host.run, teardown.clear_directory, host, container, directory)
        joins = namespace_joins(host, container)
        attachment = await _reserve(host, container, undo)
        ours = not ways.program_of(host, container)
        sandbox = host.pool.take(container.host_config) if short and ours and _has_links(attachment) else None
        if sandbox is not None:
            undo.push_async_callback(host.pool.give_up, sandbox)
        config = await host.run(_bundle, host, container, directory, attachment, joins)
        if sandbox is not None:
            shim = sandbox.shim
            launching = await ways.take_over(host, container, directory, config, sandbox)
            undo.callback(launching.close)
            # The process is at work meanwhile; making the bundle beside it would only take turns with it.
            (pid, started), attachment = await _both(ways.created(launching, ahead=True), _plug(host, live, sandbox, launching))
        else:
            shim, launching = await ways.launch(host, live, directory, config, undo, short=short)
            undo.callback(launching.close)
            pid, started = await (ways.created(launching, ahead=False) if launching.short else launching.created())
            if attachment is not None:
                attachment = await host.network.plug(container.id, pid)
        await _serve_pending(live, shim)
        check_joined(host, container)
        await launching.started()
        # Within what is undone: whose record cannot be kept must not run.
        _running(host, live, shim, pid, started)
        undo.pop_all()
    live.attachment = attachment
    host.publish(container, "start")
    supervise.begin(host, live)


def _has_links(attachment: Attachment | None) -> bool:
    return attachment is not None and any(one.driver == "bridge" for one in attachment.endpoints)


async def _plug(host: Host, live: Live, sandbox: Sandbox, launching: Launching) -> Attachment:
    """Whether it was the sandbox that died or the network that fails shows in the ordinary way.

    With its links the container has all it needs, and starts as soon as it is made, unless somebody waits to be attached.
    """
    try:
        attachment = await host.network.plug(live.container.id, sandbox.pid, sandbox.spare)
    except CoveyError as error:
        raise ways.ShortWayClosed(error.message) from error
    if not live.pending:
        launching.ask_start()
    return attachment


async def _both(first: Awaitable[S], second: Awaitable[T]) -> tuple[S, T]:
    """Both at once, both to their end; the first's fault goes before the second's."""
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return cast(tuple[S, T], tuple(outcomes))


def _running(host: Host, live: Live, shim: Shim, pid: int, started: int) -> None:
    container = live.container
    former, container.state = (
        container.state,
        State(
            status=record.RUNNING,
            pid=pid,
            pid_start=started,
            started_at=host.clock.now(),
            finished_at=container.state.finished_at,
            health=Health() if health.test(container.config) else None,
        ),
    )
    live.shim = shim
    live.exited.clear()
    try:
        record.mark_running(host.options.run_directory(container.id), container.state.started_at)
        if (container.host_config.get("RestartPolicy") or {}).get("Name") not in (None, "", "no"):
            # The next boot starts it again; for the life of this one the mark says as much.
            host.save(container, sync=True)
    except BaseException:
        container.state = former
        raise


def _make_directory(host: Host, container: Container, directory: Path) -> None:
    """The run directory, 0700, with the bundle's root and volumes mounted; what a crash left in it goes first."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        teardown.clear_directory(host, container, directory)
        if directory.exists():
            raise Internal(f"{directory}, of its last run, cannot be cleared away now: try again") from None
        directory.mkdir(mode=0o700)
    except FileNotFoundError:
        directory.mkdir(mode=0o700, parents=True)
    host.overlay.mount(container.id, directory / "rootfs")
    for mount in container.mounts:
        if mount.type == "volume":
            # A volume that was removed with force is made again, as Docker's daemon does.
            host.volumes.create(mount.name, mount.driver)
            mount.source = str(host.volumes.acquire(mount.name, container.id))
        elif mount.type == "bind" and not os.path.lexists(mount.source):
            if mount.must_exist:
                raise InvalidArgument(f'invalid mount config for type "bind": bind source path does not exist: {mount.source}')
            os.makedirs(mount.source, 0o755)
    if container.host_config.get("IpcMode") == "shareable":
        surroundings.make_shm(directory / "shm", container.host_config["ShmSize"])


def namespace_joins(host: Host, container: Container) -> dict[str, str]:
    """Namespaces this container does not have of its own: kind → path, "" for the host's."""
    settings = container.host_config
    joins: dict[str, str] = {}
    for kind, field in (("pid", "PidMode"), ("ipc", "IpcMode"), ("network", "NetworkMode")):
        mode = str(settings.get(field) or "")
        if mode == "host":
            joins[kind] = ""
        elif mode.startswith("container:"):
            other = joined(host, container, mode)
            joins[kind] = f"/proc/{other.state.pid}/ns/{NAMESPACE_FILES[kind]}"
            if host.overlay.ids(container.id) is not None and host.overlay.ids(other.id) is not None:
                # A namespace is its user namespace's: only in that one are there rights over it.
                joins["user"] = f"/proc/{other.state.pid}/ns/user"
    if settings.get("UTSMode") == "host":
        joins["uts"] = ""
    if settings.get("CgroupnsMode") == "host":
        joins["cgroup"] = ""
    return joins


def joined(host: Host, container: Container, mode: str) -> Container:
    """The running container that a ``container:X`` mode names. Raises Conflict in Docker's words."""
    other = host.registry.resolve(mode.removeprefix("container:"))
    if other.id == container.id:
        raise Conflict("cannot join own network")
    if not other.state.running:
        raise Conflict(f"cannot join network of a non running container: {other.id}")
    return other


def check_joined(host: Host, container: Container) -> None:
    """After the namespaces of others were joined by their pids: these are still theirs, or Conflict.

    The pid of one that ended may by then be a process of the host, with the host's namespaces.
    """
    for field in ("PidMode", "IpcMode", "NetworkMode"):
        mode = str(container.host_config.get(field) or "")
        if mode.startswith("container:"):
            other = joined(host, container, mode)
            if not process.is_alive(other.state.pid, other.state.pid_start):
                raise Conflict(f"cannot join container {other.id}: it ended meanwhile")


async def _reserve(host: Host, container: Container, undo: AsyncExitStack) -> Attachment | None:
    """Addresses and ports; None when another container's network is shared."""
    if network_requests.joined(container.network_mode):
        return None
    undo.push_async_callback(host.network.detach, container.id)
    ports = network_requests.port_bindings(container.config, container.host_config, container.port_group)
    if container.network_mode in ("host", "none"):
        ports = []
    reserved = await host.network.reserve(
        container.id,
        container.name,
        network_requests.requests(container),
        ports,
        dns=container.host_config.get("Dns") or [],
    )
    if container.owner and health.test(container.config) is not None:
        # A task is in balance once it is healthy: an update that starts it first relies on that.
        await host.network.serve(container.id, False)
    return reserved


def _network_files(host: Host, container: Container, attachment: Attachment | None) -> dict[str, str]:
    """Writes hostname, hosts and resolv.conf; destination → source. A shared network shares its files."""
    if attachment is None:
        other = host.options.run_directory(joined(host, container, container.network_mode).id)
        return {f"/etc/{name}": str(other / name) for name in ("hostname", "hosts", "resolv.conf")}
    settings, config = container.host_config, container.config
    directory = host.options.run_directory(container.id)
    resolv = network_text.resolv_conf(
        attachment,
        surroundings.host_resolv_conf(),
        dns=settings.get("Dns") or [],
        search=settings.get("DnsSearch") or [],
        options=settings.get("DnsOptions") or [],
    )
    hostname, domain = config["Hostname"], config.get("Domainname") or ""
    hosts = network_text.hosts(attachment, hostname, domain, settings.get("ExtraHosts") or [])
    texts = {"hostname": f"{hostname}\n", "hosts": hosts, "resolv.conf": resolv}
    ids = _remap(host, container)
    for name, content in texts.items():
        surroundings.write_file(f"{directory}/{name}", content)
        if ids is not None:
            os.chown(f"{directory}/{name}", *ids.root)
    return {f"/etc/{name}": f"{directory}/{name}" for name in texts}


def _bundle(
    host: Host, container: Container, directory: Path, attachment: Attachment | None, joins: dict[str, str]
) -> dict[str, Any]:
    _make_directory(host, container, directory)
    settings = container.host_config
    profile = seccomp.chosen(settings.get("SecurityOpt") or [], settings["Privileged"])
    names = limits.capabilities(settings)
    parent = settings.get("CgroupParent") or host.options.cgroup_parent
    config = bundle.build(
        bundle.Inputs(
            config=container.config,
            host_config=settings,
            argv=[container.path, *container.args],
            rootfs=str(directory / "rootfs"),
            cgroup=f"/{parent.strip('/')}/{container.id}",
            user=surroundings.user(directory / "rootfs", container.config.get("User") or "", settings.get("GroupAdd") or ()),
            hostname=_hostname(host, container),
            mounts=container.mounts,
            files=_network_files(host, container, attachment),
            joins=joins,
            devices=surroundings.devices(settings),
            seccomp=surroundings.compiled_seccomp(
                profile, names, host.options.data_root / "seccomp", host.options.require_seccomp
            ),
            ceilings=surroundings.hard_limits(),
            cpus=surroundings.processors(),
            shm=_shared_memory(host, container, directory),
            remap=_remap(host, container),
        )
    )
    if ways.program_of(host, container):
        uname = os.uname()
        config = runtimes.foreign(config, json.loads(profile) if profile else None, uname.machine, uname.release)
    path = directory / "config.json"
    try:
        trees.overwrite(path, msgspec.json.encode(config))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    return config


def _remap(host: Host, container: Container) -> remap.Remap | None:
    """The ids it was made with, whatever this daemon was started with."""
    found = host.overlay.ids(container.id)
    return remap.from_lists(found) if found else None


def _hostname(host: Host, container: Container) -> str:
    """Its own, or that of the container whose network it shares."""
    if network_requests.joined(container.network_mode):
        return str(joined(host, container, container.network_mode).config.get("Hostname") or "")
    return str(container.config.get("Hostname") or "")


def _shared_memory(host: Host, container: Container, directory: Path) -> str:
    """The directory that is /dev/shm when the ipc namespace is shared, "" when it is the container's own."""
    mode = str(container.host_config.get("IpcMode") or "")
    if mode == "shareable":
        return str(directory / "shm")
    if mode == "host":
        return "/dev/shm"
    if mode.startswith("container:"):
        return str(host.options.run_directory(joined(host, container, mode).id) / "shm")
    return ""


async def _serve_pending(live: Live, shim: Shim) -> None:
    """Whoever attached before the start has the stream before the first byte."""
    pending, live.pending = live.pending, []
    for one in pending:
        if not one.stream.done():
            one.stream.set_result(await shim.attach(stdin=one.stdin, stdout=one.stdout, stderr=one.stderr))
