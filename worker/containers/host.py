"""What every verb of the engine works with: the rooms below it, the registry, and what is live in memory.

It holds and hands out; it decides nothing. ``Live`` is the part of a container that a daemon's restart forgets.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from covey.clock import Clock
from covey.errors import Internal
from worker.containers import host_config, log_options, record
from worker.containers.events import EventBus
from worker.containers.options import EngineOptions
from worker.containers.pool import Pool
from worker.containers.record import Container
from worker.containers.registry import Registry
from worker.containers.shim_client import Attachment, Shim
from worker.containers.zygote_link import ZygoteLink
from worker.images.store import ImageStore
from worker.network import endpoint as network_endpoint
from worker.network.node_network import NodeNetwork
from worker.rootfs.overlay import Overlay
from worker.rootfs.volumes import Volumes
from worker.runtime import cgroups
from worker.runtime.errors import remedy

log = logging.getLogger(__name__)
T = TypeVar("T")
SYNC_DELAY = 0.05
CLEAR_QUIET, CLEAR_LATEST = 0.1, 2.0
"""Seconds without a removal after which what removed containers have left is cleared away, and after which it is anyhow."""
CLEAR_AGAIN, CLEAR_TRIES = 1.0, 20


@dataclass(eq=False)
class Exec:
    """One exec: ``request`` as the client sent it. ``exit_code`` is None until it ended."""

    id: str
    container_id: str
    request: dict[str, Any]
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class PendingAttach:
    """An attach that came before the container's start; it gets its stream before the process runs."""

    stdin: bool
    stdout: bool
    stderr: bool
    stream: asyncio.Future[Attachment | None]


@dataclass(eq=False)
class Live:
    """``lock`` is held by whoever changes the container's state; ``exited`` is set while no process is there.

    ``kept``: a restart is under way, the exit must not remove the container. ``put_down``: we have killed its shim.
    """

    container: Container
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    shim: Shim | None = None
    attachment: network_endpoint.Attachment | None = None
    execs: dict[str, Exec] = field(default_factory=dict)
    pending: list[PendingAttach] = field(default_factory=list)
    exit_waiters: list[asyncio.Future[int]] = field(default_factory=list)
    removal_waiters: list[asyncio.Future[int]] = field(default_factory=list)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    supervisor: asyncio.Task[None] | None = None
    health: asyncio.Task[None] | None = None
    restart: asyncio.Task[None] | None = None
    removing: bool = False
    kept: bool = False
    put_down: bool = False

    def wake_exit_waiters(self, code: int) -> None:
        waiters, self.exit_waiters = self.exit_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(code)

    def wake_removal_waiters(self, code: int) -> None:
        waiters, self.removal_waiters = self.removal_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(code)

    def drop_pending(self) -> None:
        """Nothing will start: whoever waits to be attached gets an empty stream."""
        pending, self.pending = self.pending, []
        for one in pending:
            if not one.stream.done():
                one.stream.set_result(None)


class Host:
    """The engine's rooms. ``group`` runs what lives beside requests: supervisors, health checks, restarts.

    ``start_again`` and ``auto_remove`` are the verbs that an exit leads to; the engine sets them.
    """

    def __init__(
        self,
        options: EngineOptions,
        clock: Clock,
        registry: Registry,
        images: ImageStore,
        overlay: Overlay,
        volumes: Volumes,
        network: NodeNetwork,
        events: EventBus,
        threads: ThreadPoolExecutor,
        zygote: ZygoteLink,
        pool: Pool,
    ) -> None:
        self.options = options
        self.clock = clock
        self.registry = registry
        self.images = images
        self.overlay = overlay
        self.volumes = volumes
        self.network = network
        self.events = events
        self.zygote = zygote
        self.pool = pool
        self.controllers = cgroups.available(cgroups.hierarchies())
        self.start_again: Callable[[Live], Awaitable[None]]
        self.auto_remove: Callable[[Live], None]
        self.lives: dict[str, Live] = {}
        self.group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unsynced: set[str] = set()
        self.unnoted: set[str] = set()
        """Containers whose end found no room on the disk: what lies in their run directories tells it."""
        self._changed = asyncio.Event()
        self._left: list[tuple[int, Callable[[], object]]] = []
        self._leaving = asyncio.Event()
        self._threads = threads

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """A blocking call in one of the engine's threads; a cancelled caller leaves it to finish."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs beside the request that wanted it; its fault is logged and ends only itself."""
        task = self.group.create_task(_guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def carry(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Runs a verb to its end even when its caller goes away in the middle (a client that hangs up)."""
        task = self.group.create_task(_captured(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        result, fault = await asyncio.shield(task)
        if fault is not None:
            raise fault
        return cast(T, result)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What runs beside requests now."""
        return list(self._tasks)

    def live(self, container: Container) -> Live:
        found = self.lives.get(container.id)
        if found is None:
            found = self.lives[container.id] = Live(container)
            if not container.state.running:
                found.exited.set()
        return found

    def resolve(self, ref: str) -> Live:
        """By name, id or prefix. Raises NotFound."""
        return self.live(self.registry.resolve(ref))

    def save(self, container: Container, *, sync: bool = False) -> None:
        """Replaces the record, at once for whoever reads it; with ``sync`` it soon outlives a power cut too.

        Nobody waits for that: what a start or an exit changes means little after one. Raises Internal (disk full).
        """
        self.registry.save(container)
        self.unnoted.discard(container.id)
        if sync:
            self._unsynced.add(container.id)
            self._changed.set()

    def note(self, container: Container, *, sync: bool = False) -> bool:
        """``save`` of what has happened already and which a full disk does not undo; whether it is on record."""
        try:
            self.save(container, sync=sync)
        except Internal as error:
            log.error("%s", error.message)
            self.unnoted.add(container.id)
            return False
        return True

    async def keep_synced(self) -> None:
        """Has the disk take what was saved with ``sync``, some at a time, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(SYNC_DELAY)
            self._changed.clear()
            unsynced, self._unsynced = self._unsynced, set()
            await self.run(self.registry.sync, unsynced)

    def clear_later(self, *work: Callable[[], object]) -> None:
        """Have ``keep_cleared`` do it, again if it raises. A daemon that dies does it at its next start."""
        self._left += [(CLEAR_TRIES, one) for one in work]
        self._leaving.set()

    async def keep_cleared(self) -> None:
        """Clears away what was left for later when nobody leaves more, until cancelled; what is left then is cleared first."""
        try:
            while True:
                await self._leaving.wait()
                latest = self.clock.monotonic() + CLEAR_LATEST
                while self._leaving.is_set() and self.clock.monotonic() < latest:
                    self._leaving.clear()
                    await asyncio.sleep(CLEAR_QUIET)
                self._leaving.clear()
                await self._clear_left()
        finally:
            await self._clear_left()

    async def _clear_left(self) -> None:
        work, self._left = self._left, []
        if work:
            self._left += await self.run(_tried, work)
        if self._left:
            asyncio.get_running_loop().call_later(CLEAR_AGAIN, self._leaving.set)

    def publish(self, container: Container, action: str, extra: Mapping[str, str] | None = None) -> None:
        """A container event with the attributes Docker gives: image, name, labels."""
        attributes = {**container.labels, "image": container.config.get("Image") or "", "name": container.name}
        self.events.publish("container", action, container.id, {**attributes, **(extra or {})})

    def set_status(self, container: Container, status: str) -> None:
        """Of what has happened or is about to, record or not."""
        container.state.status = status
        self.note(container)

    def log_path(self, container: Container) -> Path:
        """Where its driver keeps the log; of no meaning for a driver that keeps none."""
        return self.registry.directory(container.id) / log_options.file_name(container)

    def completed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A HostConfig checked and with its defaults, on this machine with its runtimes."""
        options = self.options
        return host_config.completed(settings, os.cpu_count() or 1, options.runtimes, options.default_runtime)

    def users_of_images(self) -> dict[str, list[str]]:
        """Image id → names of its containers."""
        users: dict[str, list[str]] = {}
        for container in self.registry:
            users.setdefault(container.image_id, []).append(container.id)
        return users

    def users_of_volumes(self) -> dict[str, list[str]]:
        """Volume name → ids of the containers that have it."""
        users: dict[str, list[str]] = {}
        for container in self.registry:
            for mount in container.mounts:
                if mount.type == "volume":
                    users.setdefault(mount.name, []).append(container.id)
        return users

    def running_ids(self) -> list[str]:
        return [container.id for container in self.registry if container.state.status in (record.RUNNING, record.PAUSED)]


def _tried(work: Iterable[tuple[int, Callable[[], object]]]) -> list[tuple[int, Callable[[], object]]]:
    """Do each; those that are to be done again."""
    again = []
    for left, one in work:
        try:
            one()
        except Exception as error:
            if left > 1:
                again.append((left - 1, one))
            else:
                log.error("something of a removed container stays until the daemon's next start: %s", error)
    return again


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except Exception:
        log.exception("%s failed", name)


async def _captured(work: Coroutine[Any, Any, T]) -> tuple[T | None, Exception | None]:
    try:
        return await work, None
    except OSError as fault:
        words = remedy(fault)
        return None, Internal(f"{fault.strerror} ({fault.filename or 'kernel call'}){words}") if words else fault
    except Exception as fault:
        return None, fault
