"""What clients watch of containers: exits (wait), logs, stats, processes.

Reads only; a container is never changed here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from covey.errors import Conflict, Internal, InvalidArgument, NotImplementedYet
from worker.containers import log_lines, log_options, logs, record, stats, top
from worker.containers.host import Host, Live
from worker.containers.log_lines import Query
from worker.containers.shim_socket import ShimGone
from worker.runtime.errors import RuntimeFault

CONDITIONS = ("", "not-running", "next-exit", "removed")
STATS_SECONDS = 1.0


def exit_of(live: Live, condition: str) -> asyncio.Future[int]:
    """A future of the exit code, registered before this returns. Raises InvalidArgument."""
    if condition not in CONDITIONS:
        raise InvalidArgument(f'invalid condition: "{condition}"')
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    state = live.container.state
    if condition == "removed":
        live.removal_waiters.append(future)
    elif condition == "next-exit" or state.running or state.status == record.RESTARTING:
        live.exit_waiters.append(future)
    else:
        future.set_result(state.exit_code)
    return future


def check_logs(host: Host, live: Live, query: Query) -> None:
    """Raises InvalidArgument, NotImplementedYet for logs that cannot be read."""
    if not (query.stdout or query.stderr):
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    if live.removing or live.container.state.status in (record.REMOVING, record.DEAD):
        raise Conflict("can not get logs from container which is dead or marked for removal")
    if log_options.driver_of(live.container) not in logs.FORMS:
        raise NotImplementedYet("configured logging driver does not support reading")


async def log_chunks(host: Host, live: Live, query: Query) -> AsyncIterator[bytes]:
    """The log as clients get it (see log_lines.render)."""
    container = live.container

    def ended() -> bool:
        # A container that waits for its restart goes on writing to the same log.
        return live.exited.is_set() and container.state.status != record.RESTARTING

    form = logs.FORMS[log_options.driver_of(container)]
    async for entry in logs.read(host.log_path(container), query, ended, form):
        yield log_lines.render(entry, query, container.tty)


def _machine() -> tuple[int, int]:
    """(system CPU time in ns, memory in bytes)."""
    text = Path("/proc/stat").read_text(encoding="ascii")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.system_time(text, os.sysconf("SC_CLK_TCK")), memory


async def stats_sample(host: Host, live: Live, before: dict[str, Any] | None) -> dict[str, Any]:
    """One ContainerStatsResponse; zeros when nothing runs."""
    raw: dict[str, Any] | None = None
    networks: dict[str, dict[str, int]] = {}
    if live.shim is not None:
        try:
            raw = await live.shim.stats()
            networks = await host.network.statistics(live.container.id) if live.attachment is not None else {}
        except (ShimGone, RuntimeFault):
            raw = None
    system_ns, memory = _machine()
    return stats.sample(
        live.container,
        raw,
        networks,
        now=host.clock.now(),
        system_ns=system_ns,
        cpus=os.cpu_count() or 1,
        machine=memory,
        before=before,
    )


async def stats_stream(host: Host, live: Live) -> AsyncIterator[dict[str, Any]]:
    """A sample a second until the container is removed."""
    before: dict[str, Any] | None = None
    while not live.removing:
        before = await stats_sample(host, live, before)
        yield before
        await host.clock.sleep(STATS_SECONDS)


async def stats_pair(host: Host, live: Live) -> dict[str, Any]:
    """One sample with the one of a second before it in precpu_stats."""
    before = await stats_sample(host, live, None)
    await host.clock.sleep(STATS_SECONDS)
    return await stats_sample(host, live, before)


async def processes(live: Live, arguments: str) -> dict[str, Any]:
    """ContainerTopResponse. Raises Conflict when it does not run."""
    if live.container.state.status == record.RESTARTING:
        raise Conflict(f"container {live.container.id} is restarting, wait until the container is running")
    if live.shim is None:
        raise Conflict(f"container {live.container.id} is not running")
    try:
        pids = await live.shim.pids()
    except (ShimGone, RuntimeFault) as fault:
        raise Internal(f"cannot list the processes of container {live.container.short}: {fault}") from fault
    return await top.top(pids, arguments)
