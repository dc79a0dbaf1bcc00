"""The engine of a node: containers as its user sees them, over the rooms below. ``async with Engine(options)``.

It composes and dispatches; each verb lives in a file of its own. Entering adopts what an earlier life left running;
leaving touches no container.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Self

from covey.clock import Clock, SystemClock
from covey.errors import Conflict, Internal
from worker.containers import (
    adopt,
    change,
    create,
    execs,
    record,
    remove,
    show,
    start,
    stop,
    streams,
    tidy,
    watch,
)
from worker.containers.events import EventBus
from worker.containers.host import Exec, Host, Live, PendingAttach
from worker.containers.log_lines import Query
from worker.containers.options import EngineOptions
from worker.containers.pool import Pool
from worker.containers.record import Container
from worker.containers.registry import Registry
from worker.containers.shim_socket import ShimGone
from worker.containers.zygote_link import ZygoteLink
from worker.images.remote import Remote
from worker.images.store import ImageStore
from worker.network.node_network import NodeNetwork
from worker.rootfs.overlay import Overlay
from worker.rootfs.volumes import Volumes
from worker.runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

# Engine has a method called list, so its annotations cannot say list[...].
Summaries = list[dict[str, Any]]
Sizes = list[int]
Pruned = tuple[list[str], int]
Warnings = list[str]


class Engine:
    """``ref`` is a container's name, id or unique id prefix everywhere; unknown ones raise NotFound."""

    def __init__(self, options: EngineOptions, clock: Clock | None = None) -> None:
        self.options = options
        self._clock = clock or SystemClock()
        self._stack = AsyncExitStack()
        self._host: Host
        self.remote: Remote

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        options = self.options
        threads = ThreadPoolExecutor(options.threads, "engine")
        stack.callback(threads.shutdown, wait=True)
        registry = Registry(options.data_root / "containers")
        network = NodeNetwork(
            options.data_root / "network",
            options.nft_table,
            default_bridge=options.default_bridge,
            namespace=options.network_namespace,
            run_dir=options.exec_root / "network",
        )
        zygote = ZygoteLink(
            options.zygote_socket or options.exec_root / "zygote.sock",
            options.cgroup_parent,
            own=options.zygote_socket is None,
        )
        stack.callback(zygote.close)
        loop = asyncio.get_running_loop()

        def rooms() -> Host:
            for directory, mode in ((options.data_root, 0o711), (options.exec_root, 0o711)):
                directory.mkdir(mode=mode, parents=True, exist_ok=True)
            registry.load()
            return Host(
                options,
                self._clock,
                registry,
                ImageStore(options.data_root / "images", in_use=self._users_of_images, running=self._running),
                Overlay(options.data_root / "rootfs"),
                Volumes(options.data_root / "volumes", in_use=self._users_of_volumes),
                network,
                EventBus(self._clock),
                threads,
                zygote,
                Pool(options, zygote, network),
            )

        try:
            self._host = host = await loop.run_in_executor(threads, rooms)
        except OSError as error:
            raise Internal(f"cannot use {options.data_root} and {options.exec_root}: {error}: run as root") from error
        # Else the next boot has to unpack every image again.
        stack.push_async_callback(loop.run_in_executor, threads, host.images.settle)
        self.remote = await stack.enter_async_context(Remote(host.images, options.registry))
        await stack.enter_async_context(network)
        host.group = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(self._cancel_all)
        host.start_again = lambda live: start.start(host, live)
        host.auto_remove = self._auto_remove
        await zygote.open()
        host.spawn(zygote.keep(), "zygote: kept alive")
        host.spawn(host.keep_synced(), "records: kept synced")
        host.spawn(host.keep_cleared(), "removed containers: their files")
        host.spawn(tidy.keep(host), "images: tidied")
        await adopt.adopt(host)
        if options.warm_pool and options.remap is None:
            # A sandbox has no user namespace.
            host.spawn(host.pool.keep(), "pool: kept full")

    def _cancel_all(self) -> None:
        """Supervisors and health checks end with us; the containers they follow do not."""
        for live in self._host.lives.values():
            live.drop_pending()
        for task in self._host.tasks():
            task.cancel()

    def _users_of_images(self) -> Mapping[str, Sequence[str]]:
        return self._host.users_of_images()

    def _users_of_volumes(self) -> Mapping[str, Sequence[str]]:
        return self._host.users_of_volumes()

    def _running(self) -> Sequence[str]:
        return self._host.running_ids()

    def _auto_remove(self, live: Live) -> None:
        async def gone() -> None:
            await remove.remove(self._host, live, force=True, volumes=True)

        self._host.spawn(gone(), f"container {live.container.short}: auto-remove")

    @property
    def images(self) -> ImageStore:
        return self._host.images

    @property
    def volumes(self) -> Volumes:
        return self._host.volumes

    @property
    def network(self) -> NodeNetwork:
        return self._host.network

    @property
    def overlay(self) -> Overlay:
        return self._host.overlay

    @property
    def events(self) -> EventBus:
        return self._host.events

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def host(self) -> Host:
        """For the route handlers that stream and copy; everybody else uses the verbs."""
        return self._host

    def container(self, ref: str) -> Container:
        """The record. Read it; do not change it."""
        return self._host.registry.resolve(ref)

    def containers_of_owner(self, owner: str | None = None) -> Sequence[Container]:
        """The containers of task ``owner``; of all tasks without one."""
        return [one for one in self._host.registry if one.owner and owner in (None, one.owner)]

    async def wait_begun(self) -> None:
        """Until creates and starts that are under way, also those whose callers went away, are over."""
        begun = [verb for verb in self._host.tasks() if verb.get_name() in ("create", "start")]
        if begun:
            await asyncio.wait(begun)

    def counts(self) -> dict[str, int]:
        """Containers by state, as ``/info`` shows them."""
        states = [container.state.status for container in self._host.registry]
        running = states.count(record.RUNNING) + states.count(record.RESTARTING)
        paused = states.count(record.PAUSED)
        return {
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running - paused,
        }

    async def create(
        self,
        name: str | None,
        body: Mapping[str, Any],
        *,
        owner: str = "",
        networks: Mapping[str, Mapping[str, Any]] | None = None,
        port_group: str = "",
        platform: str = "",
    ) -> tuple[str, Warnings]:
        """(id, warnings). ``body`` is ContainerCreate; see ``create.create``."""
        work = create.create(self._host, name, body, owner=owner, networks=networks, port_group=port_group, platform=platform)
        container, warnings = await self._host.carry(work, "create")
        return container.id, warnings

    async def start(self, ref: str) -> None:
        """Raises NotModified, Conflict, InvalidArgument (126, 127), Internal (128)."""
        await self._host.carry(start.start(self._host, self._host.resolve(ref)), "start")

    async def stop(self, ref: str, timeout: int | None = None, signal: str | None = None) -> None:
        """Returns when it has ended. Raises NotModified when nothing ran."""
        await self._host.carry(stop.stop(self._host, self._host.resolve(ref), timeout, signal), "stop")

    async def kill(self, ref: str, signal: str | None = None) -> None:
        await self._host.carry(stop.kill(self._host, self._host.resolve(ref), signal), "kill")

    async def restart(self, ref: str, timeout: int | None = None, signal: str | None = None) -> None:
        await self._host.carry(stop.restart(self._host, self._host.resolve(ref), timeout, signal), "restart")

    async def pause(self, ref: str) -> None:
        await self._host.carry(stop.pause(self._host, self._host.resolve(ref)), "pause")

    async def unpause(self, ref: str) -> None:
        await self._host.carry(stop.unpause(self._host, self._host.resolve(ref)), "unpause")

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        await self._host.carry(remove.remove(self._host, self._host.resolve(ref), force=force, volumes=volumes), "remove")

    async def rename(self, ref: str, name: str) -> None:
        await self._host.carry(change.rename(self._host, self._host.resolve(ref), name), "rename")

    async def update(self, ref: str, body: Mapping[str, Any]) -> Warnings:
        return await self._host.carry(change.update(self._host, self._host.resolve(ref), body), "update")

    async def connect(self, network: str, ref: str, settings: Mapping[str, Any] | None = None) -> None:
        await self._host.carry(change.connect(self._host, network, self._host.resolve(ref), settings), "connect")

    async def disconnect(self, network: str, ref: str, force: bool = False) -> None:
        await self._host.carry(change.disconnect(self._host, network, self._host.resolve(ref), force=force), "disconnect")

    def exit_of(self, ref: str, condition: str = "not-running") -> asyncio.Future[int]:
        """A future of the exit code; the waiter is registered when this returns."""
        return watch.exit_of(self._host.resolve(ref), condition)

    async def wait(self, ref: str, condition: str = "not-running") -> int:
        """The exit code once ``condition`` (not-running, next-exit, removed) holds."""
        return await self.exit_of(ref, condition)

    async def inspect(self, ref: str, size: bool = False) -> dict[str, Any]:
        return await show.inspect(self._host, self._host.resolve(ref), size=size)

    async def list(
        self,
        everything: bool = False,
        limit: int = 0,
        size: bool = False,
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> Summaries:
        return await show.listed(self._host, everything=everything, limit=limit, size=size, filters=filters or {})

    def logs(self, ref: str, query: Query) -> AsyncIterator[bytes]:
        """The log as a client gets it. Raises InvalidArgument, NotImplementedYet before the first chunk."""
        live = self._host.resolve(ref)
        watch.check_logs(self._host, live, query)
        return watch.log_chunks(self._host, live, query)

    async def top(self, ref: str, arguments: str = "-ef") -> dict[str, Any]:
        return await watch.processes(self._host.resolve(ref), arguments)

    def stats(self, ref: str) -> AsyncIterator[dict[str, Any]]:
        """A sample a second."""
        return watch.stats_stream(self._host, self._host.resolve(ref))

    async def stats_once(self, ref: str, pair: bool = True) -> dict[str, Any]:
        """One sample; ``pair``: after another one, a second earlier, so that rates can be computed."""
        live = self._host.resolve(ref)
        return await (watch.stats_pair(self._host, live) if pair else watch.stats_sample(self._host, live, None))

    async def attach(
        self,
        ref: str,
        client: streams.Duplex,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        detach_keys: str = "",
    ) -> None:
        """Couples ``client`` with the container's streams; before the start it waits for it, and loses nothing."""
        live = self._host.resolve(ref)
        tty = live.container.tty
        stdin = stdin and bool(live.container.config.get("OpenStdin"))
        attachment = None
        if live.shim is not None:
            try:
                attachment = await live.shim.attach(stdin=stdin, stdout=stdout, stderr=stderr or tty)
            except (ShimGone, RuntimeFault):
                return
        else:
            waiting = PendingAttach(stdin, stdout, stderr or tty, asyncio.get_running_loop().create_future())
            live.pending.append(waiting)
            attachment = await self._until_started(live, waiting, client)
        if attachment is not None:
            once = bool(live.container.config.get("StdinOnce"))
            await streams.couple(client, attachment, tty=tty, stdin=stdin, detach_keys=detach_keys, once=once)

    async def _until_started(self, live: Live, waiting: PendingAttach, client: streams.Duplex) -> Any:
        """The stream, or None when the client went away first."""
        _, writer = client
        try:
            while not waiting.stream.done():
                if writer.transport.is_closing():
                    return None
                await asyncio.wait({waiting.stream}, timeout=1.0)
            return waiting.stream.result()
        finally:
            if waiting in live.pending:
                live.pending.remove(waiting)

    def check_attachable(self, ref: str) -> Container:
        """The container, if one can attach to it now. Raises Conflict in Docker's words, Internal (its shim is silent)."""
        live = self._host.resolve(ref)
        container = live.container
        if container.state.status == record.PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before attach")
        if container.state.status == record.RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        if live.shim is not None and live.shim.silence:
            raise Internal(f"cannot attach to container {container.id}: {live.shim.silence}")
        return container

    async def resize(self, ref: str, height: int, width: int) -> None:
        live = self._host.resolve(ref)
        if live.shim is None:
            raise Conflict(f"container {live.container.id} is not running")
        if not live.container.tty:
            # Docker's shim takes it, too: clients send a size before they look for a terminal.
            return
        try:
            await live.shim.resize(height, width)
        except (RuntimeFault, ShimGone) as fault:
            raise Conflict(f"cannot resize container {live.container.id}: {fault}") from fault

    def exec_create(self, ref: str, request: Mapping[str, Any]) -> str:
        """The id of a new exec (ExecConfig)."""
        return execs.create(self._host, self._host.resolve(ref), request).id

    def exec_find(self, exec_id: str) -> Exec:
        """An exec that can be started. Raises NotFound, Conflict."""
        live, one = execs.find(self._host, exec_id)
        execs.check_startable(live, one)
        return one

    async def exec_detached(self, exec_id: str, console_size: Sizes | None = None) -> None:
        """Runs it without anybody attached."""
        live, one = execs.find(self._host, exec_id)
        await self._host.carry(execs.begin(self._host, live, one, console_size=console_size, attach=False), "exec")

    async def exec_attached(self, exec_id: str, client: streams.Duplex, console_size: Sizes | None = None) -> None:
        """Runs it with ``client`` at its streams, until it ended or the client left."""
        live, one = execs.find(self._host, exec_id)
        stream = await execs.begin(self._host, live, one, console_size=console_size)
        assert stream is not None
        left = await streams.couple(
            client,
            stream,
            tty=bool(one.request.get("Tty")),
            stdin=bool(one.request.get("AttachStdin")),
            detach_keys=str(one.request.get("DetachKeys") or ""),
        )
        if not left:
            # A client asks for the exit code as soon as the stream ends.
            await execs.wait_ended(live, one)

    def exec_inspect(self, exec_id: str) -> dict[str, Any]:
        return execs.inspect(*execs.find(self._host, exec_id))

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        live, one = execs.find(self._host, exec_id)
        await execs.resize(live, one, height, width)

    async def prune(self, filters: Mapping[str, Sequence[str]]) -> Pruned:
        """Removes stopped containers; (ids, bytes freed). ``filters``: label, label!, until (seconds since the epoch)."""
        return await self._host.carry(remove.prune(self._host, filters), "prune")

    def statistics(self) -> dict[str, Any]:
        return {
            **self.counts(),
            "execs": sum(len(live.execs) for live in self._host.lives.values()),
            "events": self._host.events.statistics(),
        }
