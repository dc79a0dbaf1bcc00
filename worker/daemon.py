"""The node daemon: composes the engine, the agent, the node's life in a cluster and the front door; opens the listeners.

It decides the order of start and stop, and what a node must have before either. Stopping it, or killing it, touches no
container: shims, zygote, manager and etcd go on, and the next daemon takes them over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from covey import tunnel
from covey.clock import SystemClock
from covey.engine_api.listeners import listen_plain, listen_tls, listen_unix, tls_context
from covey.engine_api.server import Handler, Server
from covey.errors import Conflict, CoveyError, InvalidArgument, NotFound, Unavailable
from covey.model.resources import Resources, parse_generic
from worker.agent.cluster_images import ClusterBlobs, ClusterImages
from worker.agent.engine_runtime import EngineRuntime
from worker.agent.registry_logins import RegistryLogins
from worker.agent.supply import Supply
from worker.cluster_life import ClusterLife, LifeOptions
from worker.containers import runtimes
from worker.containers.engine import Engine
from worker.containers.options import EngineOptions
from worker.containers.policy import Policy
from worker.containers.runtimes import OWN
from worker.containers.surroundings import read_remap
from worker.front_door import FrontDoor, Local
from worker.images import retention
from worker.images.from_registry import FromRegistry
from worker.images.registry import endpoints
from worker.kernel import malloc
from worker.routes.cluster_images import NodeImages
from worker.routes.handlers import handlers as node_handlers

log = logging.getLogger(__name__)

RELEASE = "0.1.0"
DEFAULT_HOST = "unix:///var/run/covey.sock"
BLOB_PORT = "2378"


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """``hosts``: unix:///path, tcp://host:port (TLS with client certificates), or plain TCP on loopback with ``insecure``.

    ``runtimes`` are other OCI runtimes as NAME=PATH. ``manager_argv`` is how this program starts a manager; options are
    appended. ``blob_port`` is [host:]port, "0" for none; ``blob_rate`` the most bytes a second it sends, 0 for no limit.
    ``registry``: where this node's images can be pulled from and pushed to, "" for nowhere (worker.registry).
    ``refused``: what containers may not ask for (worker.containers.policy). ``userns_remap``: see
    worker.containers.remap. ``generic_resources``: KIND=NAME or KIND=NUMBER, as covey.model.resources reads them.
    ``registry_config``: a Docker config.json, for pulls that bring no credentials. ``image_gc``: see
    worker.images.retention.parse.
    """

    data_root: Path = Path("/var/lib/covey")
    exec_root: Path = Path("/run/covey")
    hosts: Sequence[str] = (DEFAULT_HOST,)
    cgroup_parent: str = "/covey"
    profile: str = "default"
    insecure: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    labels: Sequence[str] = ()
    generic_resources: Sequence[str] = ()
    refused: Sequence[str] = ()
    userns_remap: str = ""
    name: str = field(default_factory=socket.gethostname)
    etcd_binary: str = "etcd"
    warm_pool: int = 3
    image_gc: str = ""
    blob_port: str = BLOB_PORT
    blob_rate: int = 0
    registry: str = ""
    runtimes: Sequence[str] = ()
    default_runtime: str = OWN
    insecure_registries: Sequence[str] = ()
    registry_mirrors: Sequence[str] = ()
    registry_config: Path | None = None
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    manager_argv: Sequence[str] = (sys.executable, "-P", "-m", "cli.main", "manager")
    log_level: str = "info"


def run(options: DaemonOptions) -> int:
    """Run until SIGTERM or SIGINT; the process's exit code. What cannot be is one line on stderr."""
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", stream=sys.stderr
    )
    refusals: list[str] = []
    malloc.one_arena()
    try:
        check_node()
        _allow_files()
        with hold(options.data_root):
            uvloop.run(_daemon(options))
    except* CoveyError as group:
        refusals = [str(refusal) for refusal in _leaves(group)]
    for refusal in refusals:
        sys.stderr.write(f"cluster daemon: {refusal}\n")
    return 1 if refusals else 0


def _allow_files() -> None:
    """As many open files as the machine allows: a published port takes three, a shim one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leaves(group: BaseExceptionGroup[CoveyError]) -> Iterator[CoveyError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def check_node() -> None:
    """Refuse in one line what no part of the daemon could work with. Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("needs root: it makes namespaces, cgroups and mounts. Run it with sudo")
    missing = [name for name in ("mnt", "pid", "net", "ipc", "uts") if not Path("/proc/self/ns", name).exists()]
    if missing:
        raise Unavailable(f"the kernel lacks the namespaces {', '.join(missing)}: containers cannot be made here")
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems:
        raise Unavailable("the kernel has no overlayfs (CONFIG_OVERLAY_FS): run 'modprobe overlay' or use another kernel")
    if not {"cgroup", "cgroup2"} & set(filesystems):
        raise Unavailable("the kernel has no cgroups: containers cannot be limited here")
    from worker.network.probe import kernel_problems

    if problems := kernel_problems():
        raise Unavailable("; ".join(problems))


@contextmanager
def hold(data_root: Path) -> Iterator[None]:
    """One daemon a data root. Raises Conflict when another holds it, Unavailable when it cannot be written."""
    try:
        data_root.mkdir(parents=True, exist_ok=True, mode=0o711)
        lock = os.open(data_root / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot use the data root {data_root}: {error.strerror}; choose another --data-root") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another daemon uses {data_root}: stop it, or choose another --data-root") from None
        yield
    finally:
        os.close(lock)


async def _daemon(options: DaemonOptions) -> None:
    listen = _blob_listen(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(_engine_options(options)))
        clock = SystemClock()
        images = ClusterImages(engine.images, clock, f"covey/{RELEASE}", listen=listen, rate=options.blob_rate)
        await stack.enter_async_context(images)
        engine.remote.sources = [ClusterBlobs(images)]
        logins = RegistryLogins()
        registry = FromRegistry(engine.remote, logins.of_image)
        supply = await stack.enter_async_context(Supply(engine.images, images, [registry]))
        runtime = EngineRuntime(engine, RELEASE, supply)
        node_socket = options.exec_root / "node.sock"

        async def serve() -> tunnel.Duplex:
            return await asyncio.open_unix_connection(str(node_socket), limit=tunnel.LARGEST)

        def node_changed(node_id: str) -> None:
            runtime.node_id = node_id

        life = ClusterLife(_life_options(options), runtime, clock, serve, node_changed, images, logins)
        local = {**node_handlers(engine, RELEASE), **NodeImages(images, engine.events).handlers()}
        # What a manager reaches by dial-back is this node alone: it must not be sent back to a manager.
        await stack.enter_async_context(listen_unix(Server(local, release=RELEASE), node_socket, mode=0o600))
        door = FrontDoor(_local(engine, local), life)
        server = Server(door.handlers(), door.forwards(), release=RELEASE)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        living = group.create_task(life.run(), name="cluster life")
        stack.callback(living.cancel)
        watching = group.create_task(_watch_images(engine, images), name="image changes")
        stack.callback(watching.cancel)
        for host in options.hosts:
            await _listen(stack, server, host, options)
        if options.registry:
            from worker.registry.listen import serving

            await stack.enter_async_context(serving(options.registry, engine.images, engine.events, clock))
        log.info("ready on %s", ", ".join(options.hosts))
        await stop.wait()
        log.info("stopping; containers go on")


def _blob_listen(options: DaemonOptions) -> str:
    """The blob port's host:port, "" for none. Raises InvalidArgument."""
    host, _, port = options.blob_port.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"--blob-port {options.blob_port!r}: give a port, host:port, or 0 for none")
    if options.blob_rate < 0:
        raise InvalidArgument(f"--blob-rate {options.blob_rate}: give bytes a second, or 0 for no limit")
    return f"{host or '0.0.0.0'}:{port}" if int(port) else ""


async def _watch_images(engine: Engine, images: ClusterImages) -> None:
    """The cluster is told of new images as they come."""
    while True:
        with engine.events.subscribe() as subscription:
            while (event := await subscription.get()) is not None:
                if event["Type"] == "image":
                    images.changed()
        images.changed()


def _engine_options(options: DaemonOptions) -> EngineOptions:
    added = runtimes.parse(options.runtimes)
    return EngineOptions(
        data_root=options.data_root,
        exec_root=options.exec_root,
        cgroup_parent=options.cgroup_parent,
        name=options.name,
        labels=tuple(options.labels),
        generic=_generic(options.generic_resources),
        runtimes=added,
        default_runtime=runtimes.check_default(options.default_runtime, added),
        policy=Policy(tuple(options.refused)),
        remap=read_remap(options.userns_remap) if options.userns_remap else None,
        warm_pool=options.warm_pool,
        registry=endpoints.check(
            endpoints.RegistryOptions(
                insecure=tuple(options.insecure_registries),
                mirrors=tuple(options.registry_mirrors),
                config=options.registry_config,
                downloads=options.max_concurrent_downloads,
                uploads=options.max_concurrent_uploads,
            )
        ),
        retention=retention.parse(options.image_gc),
    )


def _generic(terms: Sequence[str]) -> Resources:
    try:
        return parse_generic(terms)
    except ValueError as error:
        raise InvalidArgument(f"--node-generic-resource {error}") from None


def _life_options(options: DaemonOptions) -> LifeOptions:
    return LifeOptions(
        data_root=options.data_root,
        exec_root=options.exec_root,
        hostname=options.name,
        software=f"covey/{RELEASE}",
        manager_argv=options.manager_argv,
        profile=options.profile,
        etcd_binary=options.etcd_binary,
        log_level=options.log_level,
    )


def _local(engine: Engine, local: dict[str, Handler]) -> Local:
    async def knows_container(reference: str) -> bool:
        try:
            engine.container(reference)
        except NotFound:
            return False
        except CoveyError:
            return True  # ambiguous here: this node's answer says so
        return True

    async def knows_exec(exec_id: str) -> bool:
        try:
            engine.exec_inspect(exec_id)
        except NotFound:
            return False
        except CoveyError:
            return True
        return True

    async def knows_network(reference: str) -> bool:
        try:
            found = await engine.network.inspect_network(reference)
        except NotFound:
            return False
        except CoveyError:
            return True
        return bool(found.get("Scope") != "swarm")

    return Local(local, knows_container, knows_exec, knows_network)


async def _listen(stack: AsyncExitStack, server: Server, host: str, options: DaemonOptions) -> None:
    scheme, separator, rest = host.partition("://")
    if scheme == "unix" and separator:
        await stack.enter_async_context(listen_unix(server, rest or "/var/run/covey.sock"))
    elif scheme == "tcp" and separator:
        address, _, port = rest.rpartition(":")
        if not port.isdigit():
            raise InvalidArgument(f"-H {host}: give tcp://host:port")
        address = address.strip("[]") or "0.0.0.0"
        if options.insecure:
            await stack.enter_async_context(listen_plain(server, address, int(port), True))
        elif options.tls_cert and options.tls_key and options.tls_ca:
            context = tls_context(options.tls_cert, options.tls_key, options.tls_ca)
            await stack.enter_async_context(listen_tls(server, address, int(port), context))
        else:
            raise InvalidArgument(
                f"-H {host}: TCP needs --tlscacert, --tlscert and --tlskey (clients show certificates), "
                "or --insecure on a loopback address"
            )
    else:
        raise InvalidArgument(f"-H {host}: give unix:///path or tcp://host:port")
