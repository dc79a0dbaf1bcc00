"""What the engine does with what it finds at its start: running shims are taken over, ended ones settled, leftovers go.

Nothing of a running container is touched. Each exit that came meanwhile is told once. A container whose shim does not
answer (it is stopped, or frozen) counts as running, and is taken over as soon as it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker.containers import record, restart_policy, start, supervise, teardown
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.containers.shim_client import Shim, ShimSilent, end_recorded, end_shim, exit_record
from worker.containers.shim_socket import ShimGone
from worker.kernel import process
from worker.runtime.cgroups import Cgroup
from worker.shim import records

log = logging.getLogger(__name__)

Answer = Shim | ShimGone | ShimSilent
ASKED_AT_ONCE = 32


async def adopt(host: Host) -> None:
    """Once, before any request is served."""
    await _remove_orphans(host)
    interrupted: list[Live] = []
    answers = await _ask(host.options.run_directory(container.id) for container in host.registry)
    for container in host.registry:
        live = host.live(container)
        answer = answers.get(host.options.run_directory(container.id))
        if answer is not None and await _take_over(host, live, answer):
            continue
        if _ran(host, container):
            await _ended_unseen(host, live)
        elif container.state.status == record.REMOVING:
            interrupted.append(live)
    running = {
        live.container.id: live.container.state.pid
        for live in host.lives.values()
        if live.shim is not None and live.shim.hello.get("state") != record.EXITED
    }
    for failure in await host.network.reconcile(running):
        log.error("network after the restart: %s", failure)
    for live in list(host.lives.values()):
        if live.shim is not None:
            live.attachment = await host.network.attachment(live.container.id)
            if live.shim.silence:
                host.spawn(_await_answer(host, live), f"container {live.container.short}: wait for its shim")
            else:
                supervise.begin(host, live)
        elif live not in interrupted:
            await host.run(_clear, host, live)
    for live in list(host.lives.values()):
        over = live.container.state.status == record.EXITED and live.container.host_config.get("AutoRemove")
        if live in interrupted or over:
            host.auto_remove(live)
    _start_by_policy(host)


def _clear(host: Host, live: Live) -> None:
    directory = host.options.run_directory(live.container.id)
    if live.container.id not in host.unnoted and directory.exists():
        teardown.clear_directory(host, live.container, directory)


def _ran(host: Host, container: Container) -> bool:
    """Whether it was told to run, and no end of it is on record."""
    directory = host.options.run_directory(container.id)
    if container.state.running or record.marked_running(directory) is None:
        return container.state.running
    found = exit_record(directory)
    return found is None or float(found["finished_at"]) > container.state.finished_at


async def _ask(directories: Iterable[Path]) -> dict[Path, Answer]:
    """What the shim of each run directory says; side by side, for one that does not answer shall not hold up the others."""
    gate = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(directory: Path) -> Answer:
        async with gate:
            try:
                return await Shim.connect(directory)
            except (ShimGone, ShimSilent) as fault:
                return fault

    asked = [directory for directory in directories if directory.exists()]
    return dict(zip(asked, await asyncio.gather(*map(ask, asked)), strict=True))


async def _take_over(host: Host, live: Live, answer: Answer) -> bool:
    """Whether the container has a shim that is to be supervised (its container runs, or its end is still to be told)."""
    container = live.container
    directory = host.options.run_directory(container.id)
    if isinstance(answer, ShimGone):
        return False
    if isinstance(answer, ShimSilent):
        if exit_record(directory) is not None or not _ran(host, container):
            # It has told all it knows, or never ran: nothing is lost with it.
            await end_recorded(directory)
            return False
        log.error("container %s runs, but %s", container.short, answer.words)
        _note_unreachable(container.state, directory, answer)
        live.shim = Shim.unreachable(answer)
        host.note(container)
        return True
    hello = answer.hello
    state = hello["state"]
    if state in (record.RUNNING, record.PAUSED) or (state == record.EXITED and _ran(host, container)):
        # Also one that has ended: until that is settled it is what it was, or it would be taken for one that never ran.
        _note_running(container.state, hello, record.marked_running(directory))
    else:
        # A start that our own end cut: nobody was told that it ran.
        answer.close()
        await end_shim(hello["pid"], process.start_time(hello["pid"]) or 0)
        return False
    live.shim = answer
    host.note(container)
    return True


def _note_unreachable(state: record.State, directory: Path, silent: ShimSilent) -> None:
    """What can be known without its shim; whether it is paused only from its record."""
    state.error = silent.words
    state.started_at = record.marked_running(directory) or state.started_at
    if state.running and process.is_alive(state.pid, state.pid_start):
        return
    if not state.running:
        state.status = record.RUNNING
    shim = records.read(str(directory), "shim.json") or {}
    ages = [(process.start_time(pid) or 0, pid) for pid in Cgroup(shim["cgroup"]).pids()] if shim.get("cgroup") else []
    # The first process of a container is the oldest.
    state.pid_start, state.pid = min((age for age in ages if age[0]), default=(0, 0))


async def _await_answer(host: Host, live: Live) -> None:
    """Until the shim that did not answer does, or ends: then the container is taken over after all, or has ended."""
    container = live.container
    directory = host.options.run_directory(container.id)
    answer: Answer | None = None
    while answer is None:
        try:
            answer = await Shim.connect(directory, None)
        except ShimGone as gone:
            answer = gone
        except OSError as error:
            await supervise.out_of_means(host, live, error)
    async with live.lock:
        followed = await _take_over(host, live, answer)
        if followed:
            log.info("the shim of container %s answers again", container.short)
            supervise.begin(host, live)
    if not followed:
        await _ended_unseen(host, live)
        if container.host_config.get("AutoRemove") and not live.removing and not live.kept:
            host.auto_remove(live)


def _note_running(state: record.State, hello: dict[str, Any], since: float | None) -> None:
    state.status = record.PAUSED if hello["state"] == record.PAUSED else record.RUNNING
    state.error = ""
    state.pid, state.pid_start = hello["init_pid"], hello["init_start_time"]
    state.started_at = since or state.started_at or hello["started_at"]


async def _ended_unseen(host: Host, live: Live) -> None:
    """It ran when the engine went and its shim is gone: the exit is in its record, or nobody knows it (137)."""
    directory, state = host.options.run_directory(live.container.id), live.container.state
    state.started_at = record.marked_running(directory) or state.started_at
    found = exit_record(directory)
    ended = supervise.from_record(found) if found is not None else supervise.died(host)
    async with live.lock:
        await supervise.settle(host, live, None, ended)


def _start_by_policy(host: Host) -> None:
    for live in list(host.lives.values()):
        container = live.container
        policy = container.host_config.get("RestartPolicy") or {}
        under_way = live.restart is not None or live.lock.locked()
        if container.state.status == record.RESTARTING and not under_way:
            live.restart = host.spawn(supervise.restart(host, live), f"container {container.short}: restart")
        elif (
            container.state.status == record.EXITED
            and not under_way
            and restart_policy.wanted_at_boot(policy, container.manually_stopped)
        ):
            host.spawn(start.start(host, live), f"container {container.short}: start by policy")


async def _remove_orphans(host: Host) -> None:
    """Run directories and root file systems of containers that the registry does not know."""
    base = host.options.exec_root / "containers"
    base.mkdir(mode=0o711, parents=True, exist_ok=True)
    orphans = [directory for directory in sorted(base.iterdir()) if host.registry.get(directory.name) is None]
    answers = await _ask(orphans)
    for directory in orphans:
        await _end_orphan(directory, answers.get(directory))
        await host.run(teardown.clear_run, host, directory)
    known = {container.id for container in host.registry}
    for container_id in await host.run(host.overlay.containers):
        if container_id not in known:
            await host.run(host.overlay.remove, container_id)


async def _end_orphan(directory: Path, answer: Answer | None) -> None:
    if answer is None or isinstance(answer, ShimGone):
        return
    log.warning("container %s is not registered but runs: ended", directory.name)
    if isinstance(answer, ShimSilent):
        await end_recorded(directory)
        return
    answer.close()
    await end_shim(answer.hello["pid"], process.start_time(answer.hello["pid"]) or 0)
