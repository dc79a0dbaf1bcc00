"""The manager process: puts the rooms together, starts them in order, stops them in the opposite one.

It decides nothing about tasks, nodes or objects. A missing store is waited for; a store without a cluster waits for
``POST /covey/bootstrap``; on SIGTERM sessions are told, the office is resigned and the lease revoked.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

from covey.clock import Clock, SystemClock
from covey.engine_api.answers import Answer, Text
from covey.engine_api.call import Call
from covey.engine_api.listeners import listen_unix
from covey.engine_api.server import Server
from covey.errors import CoveyError, InvalidArgument, Unavailable
from covey.model.objects import Cluster
from manager.bootstrap import bootstrap, read_node_id
from manager.member import Member
from manager.options import ManagerOptions, join_address, split_address
from manager.routes.table import Gate, no_cluster
from manager.store.interface import Store
from manager.store.keys import Keys, Writer
from manager.store.mirror import Mirror
from manager.store.writer import WriterStore
from scheduler.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
PROBE_SECONDS = 2.0
BOOTSTRAP_SECONDS = 30.0

COLLECT = (10_000, 20, 50)
"""How seldom Python's collector looks for cycles (gc.set_threshold): what a manager holds very much of can be in none, and a
look at everything would hold the event loop for longer than any pass may."""


def run(options: ManagerOptions) -> int:
    """Run a manager until SIGTERM or SIGINT; the process's exit status."""
    logging.basicConfig(
        level=options.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    gc.freeze()
    gc.set_threshold(*COLLECT)
    try:
        asyncio.run(_main(options))
    except CoveyError as error:
        log.error("the manager cannot run: %s", error.message)
        return 1
    return 0


async def _main(options: ManagerOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Process(options, open_store(options)) as process:
        await process.serve_until(stop)


def open_store(options: ManagerOptions) -> Store:
    """The etcd that ``options`` names. gRPC is imported here, for whoever needs no etcd needs no gRPC."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from manager.store.etcd.connection import Access
    from manager.store.etcd.store import EtcdStore

    paths = (options.store_ca, options.store_cert, options.store_key)
    try:
        ca, certificate, key = (path.read_bytes() if path else None for path in paths)
    except OSError as error:
        raise InvalidArgument(
            f"cannot read {error.filename}: {error.strerror}: see --store-ca, --store-cert, --store-key"
        ) from None
    return EtcdStore(options.store, Access(ca=ca, certificate=certificate, key=key))


class Process:
    """One manager over one store; ``async with`` it, then ``serve_until``."""

    def __init__(self, options: ManagerOptions, store: Store, clock: Clock | None = None) -> None:
        self._options = options
        self._store = store
        self._clock = clock or SystemClock()
        self._settings = Settings.profile(options.profile)
        self._keys = Keys(options.store_root)
        self._mirror = Mirror(store, self._keys, clock=self._clock, resync=self._settings.resync)
        self._api_store = WriterStore(store, Writer.API, self._keys)
        self._gate = Gate()
        self._listed = asyncio.Event()
        self._serving = asyncio.Event()
        self._port: socket.socket
        self.address = ""

    async def __aenter__(self) -> Process:
        host, port = split_address(self._options.listen)
        self._port = _bind(host, port)
        self.address = _advertised(self._options.advertise, host, self._port.getsockname()[1])
        await self._store.__aenter__()
        return self

    async def __aexit__(self, *fault: Any) -> None:
        self._port.close()
        await self._store.__aexit__(*fault)

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Serve the private socket, and the cluster as soon as there is one, until ``stop``."""
        handlers = {**self._gate.guarded(), "covey_bootstrap": self._bootstrap, "system_ping": _ping, "system_ping_head": _ping}
        socket_path = self._options.socket_path
        socket_path.parent.mkdir(parents=True, exist_ok=True)
        async with listen_unix(Server(handlers), socket_path, mode=0o600):
            log.info("listening on %s; cluster address %s", socket_path, self.address)
            async with _running(self._live(), "manager") as living:
                stopping = asyncio.ensure_future(stop.wait())
                await asyncio.wait({stopping, living}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                log.info("stopping")

    async def _live(self) -> None:
        await self._wait_store()
        async with self._mirror:
            await self._mirror.wait_listed()
            self._listed.set()
            cluster = await self._wait_cluster()
            node_id = await self._wait_node()
            member = Member(self._options, self._store, self._mirror, self._keys, self._clock, self._settings)
            async with member.serve(cluster, node_id, self.address, self._port) as handlers:
                self._gate.open(handlers)
                self._serving.set()
                log.info("serving cluster %s as node %s", cluster.id, node_id)
                await member.wait_ended()

    async def _wait_store(self) -> None:
        """Return once the store answers; say once, and again when the reason changes, that it does not."""
        pause, said = FIRST_PAUSE, ""
        while True:
            trouble = await self._store_trouble()
            if not trouble:
                log.log(logging.INFO if said else logging.DEBUG, "the store answers")
                return
            if trouble != said:
                log.error("the store does not answer: %s; trying on", trouble)
                self._gate.shut(f"the store of this manager does not answer: {trouble}")
            said = trouble
            await self._clock.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)

    async def _store_trouble(self) -> str:
        """Why the store cannot be used, "" when it can."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._store.revision()
        except TimeoutError:
            return f"nobody answers at {', '.join(self._options.store)}: is etcd running?"
        except CoveyError as error:
            return error.message
        return ""

    async def _wait_cluster(self) -> Cluster:
        with self._mirror.changes(["cluster"]) as changed:
            while (cluster := self._mirror.objects("cluster").get("cluster")) is None:
                self._gate.shut(no_cluster(), hopeless=True)
                await changed.wait()
        self._gate.shut("this manager is starting: try again in a moment")
        return cast("Cluster", cluster)

    async def _wait_node(self) -> str:
        """This manager's node id, once the cluster knows it as a manager."""
        path = self._options.node_id_path
        with self._mirror.changes(["node"]) as changed:
            while True:
                node_id = read_node_id(path)
                node = self._mirror.objects("node").get(node_id)
                if node is not None and getattr(node, "role", "") == "manager":
                    return node_id
                reason = f"the store holds a cluster of which this node ({node_id or 'no id yet'}) is no manager"
                log.error("%s: bootstrap was cut short, or the store is another cluster's", reason)
                self._gate.shut(reason, hopeless=True)
                await changed.wait()

    async def _bootstrap(self, call: Call) -> Answer:
        """Make the cluster, answer once it is served."""
        body = await call.json()
        try:
            async with asyncio.timeout(BOOTSTRAP_SECONDS):
                await self._listed.wait()
                managers = [self.address]
                path = self._options.node_id_path
                reply = await bootstrap(body, self._api_store, self._mirror, self._keys, self._clock, path, managers)
                await self._serving.wait()
        except TimeoutError:
            raise Unavailable("the store did not answer in time: is etcd running? see the manager's log") from None
        return reply


async def _ping(call: Call) -> Answer:
    return Text("OK", headers={"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"})


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """``work`` as a task that ends with the context; what went wrong with it is raised at the end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=False)
    except OSError as error:
        address = join_address(host, port)
        raise Unavailable(f"cannot listen on {address}: {error.strerror}: choose another --listen address") from None


def _advertised(advertise: str, listen_host: str, port: int) -> str:
    """host:port under which others reach the cluster port."""
    if advertise:
        host, chosen = split_address(advertise, port)
        return join_address(host, chosen)
    if listen_host not in ("0.0.0.0", "::"):
        return join_address(listen_host, port)
    # Connecting a datagram socket sends nothing: it asks the routing table which address would be ours.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return join_address(probe.getsockname()[0], port)
        except OSError:
            return join_address("127.0.0.1", port)
