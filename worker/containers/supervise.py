"""Follows a running container to its end: its shim's events, the exit on record, the restart its policy asks for.

An exit is on disk as the container's state before anything of its run is torn down, and told once. A shim that died
without a record means 137.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from worker.containers import health, record, restart_policy, teardown
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.containers.shim_client import Shim, end_recorded, exit_record
from worker.containers.shim_socket import ShimGone
from worker.runtime.errors import RuntimeFault, remedy

log = logging.getLogger(__name__)

SHIM_DIED = "shim died"
WATCH_AGAIN, DELETE_TRIES = 0.5, 20


@dataclass(frozen=True)
class Exit:
    """How a container ended; ``at`` in seconds since the epoch."""

    code: int
    oom: bool
    at: float
    shim_died: bool = False

    @property
    def error(self) -> str:
        return SHIM_DIED if self.shim_died else ""


def begin(host: Host, live: Live) -> None:
    """Watches a container that runs (just started or adopted), and its health if it has a check."""
    assert live.shim is not None
    live.exited.clear()
    live.put_down = False
    short = live.container.short
    live.supervisor = host.spawn(_supervise(host, live, live.shim), f"container {short}: supervisor")
    if live.container.state.health is not None:
        live.health = host.spawn(health.watch(host, live), f"container {short}: health")


async def _supervise(host: Host, live: Live, shim: Shim) -> None:
    ended = await _wait_exit(host, live, shim)
    async with live.lock:
        await settle(host, live, None if ended.shim_died else shim, ended)
    shim.close()
    if live.container.host_config.get("AutoRemove") and not live.removing and not live.kept:
        host.auto_remove(live)


async def _wait_exit(host: Host, live: Live, shim: Shim) -> Exit:
    while True:
        try:
            async for event in shim.events():
                if event["type"] == "exit":
                    return Exit(int(event["code"]), bool(event["oom"]), float(event["at"]))
                _other_event(host, live, event)
        except ShimGone:
            try:
                ended = await _found_ended(host, live, shim)
            except OSError as error:
                await out_of_means(host, live, error)
                continue
            if ended is not None:
                return ended
        except OSError as error:
            await out_of_means(host, live, error)


async def out_of_means(host: Host, live: Live, error: OSError) -> None:
    """Says so, and returns when it is time to try again."""
    log.error("container %s cannot be watched now: %s%s", live.container.short, error, remedy(error))
    await host.clock.sleep(WATCH_AGAIN)


async def _found_ended(host: Host, live: Live, shim: Shim) -> Exit | None:
    """The exit of a shim that has let go of us; None when it lives and only cut us off for being slow."""
    found = exit_record(shim.directory)
    if found is not None:
        return from_record(found)
    if live.put_down:
        return died(host)
    try:
        (await Shim.connect(shim.directory)).close()
    except ShimGone:
        await end_recorded(shim.directory)
        return died(host)
    return None


def died(host: Host) -> Exit:
    """The exit of a container whose shim was killed, and by that its process."""
    return Exit(137, False, host.clock.now(), shim_died=True)


def from_record(found: dict[str, Any]) -> Exit:
    """The exit of an exit.json."""
    return Exit(int(found["exit_code"]), bool(found["oom"]), float(found["finished_at"]))


def _other_event(host: Host, live: Live, event: dict[str, Any]) -> None:
    if event["type"] == "oom":
        live.container.state.oom_killed = True
        host.publish(live.container, "oom")
    elif event["type"] == "exec-exit":
        one = live.execs.get(str(event["exec_id"]))
        if one is not None:
            one.running, one.exit_code = False, int(event["code"])
            one.ended.set()
            host.publish(live.container, "exec_die", {"execID": one.id, "exitCode": str(one.exit_code)})


async def settle(host: Host, live: Live, shim: Shim | None, ended: Exit) -> None:
    """The exit on record, then addresses and ports given back, then told, then the rest of the run cleared away.

    ``shim`` is None when it is gone already. The container's lock is held by the caller, so that no verb finds the rest.
    """
    container, state = live.container, live.container.state
    if live.health is not None:
        live.health.cancel()
        live.health = None
    state.status, state.exit_code, state.finished_at = record.EXITED, ended.code, ended.at or host.clock.now()
    state.oom_killed, state.error = state.oom_killed or ended.oom, ended.error
    state.pid, state.pid_start = 0, 0
    # Of one that is being removed its own records tell, until its record goes: the daemon may die in between.
    noted = not live.removing and host.note(container, sync=True)
    if noted:
        record.unmark_running(host.options.run_directory(container.id))
    live.shim, live.attachment = None, None
    if not live.removing:
        await teardown.detach(host, container)
    _tell(host, live)
    _decide_restart(host, live, ended)
    deleted = await _delete_shim(container, shim)
    if live.removing:
        # Addresses and the rest are taken back by whoever removes it, which waits for the lock.
        return
    # Without room for the record the shim's own stays for the next daemon; addresses and mounts go all the same.
    await teardown.clear(host, container, deleted=deleted, keep_exit=not noted)


async def _delete_shim(container: Container, shim: Shim | None) -> bool:
    """Whether there was a shim that gave back what it held."""
    if shim is None:
        return False
    try:
        for _ in range(DELETE_TRIES):
            try:
                await shim.delete()
                return True
            except OSError as error:
                log.error("the shim of container %s cannot be asked to end now: %s%s", container.short, error, remedy(error))
                await asyncio.sleep(WATCH_AGAIN)
    except (ShimGone, RuntimeFault) as error:
        log.warning("the shim of container %s did not end properly: %s", container.short, error)
    return False


def _tell(host: Host, live: Live) -> None:
    container, state = live.container, live.container.state
    for one in live.execs.values():
        if one.running:
            one.running, one.exit_code = False, 137
            one.ended.set()
    attributes = {"exitCode": str(state.exit_code)}
    if state.started_at:
        attributes["execDuration"] = str(int(max(0.0, state.finished_at - state.started_at)))
    host.publish(container, "die", attributes)


def _decide_restart(host: Host, live: Live, ended: Exit) -> None:
    container = live.container
    policy = container.host_config.get("RestartPolicy") or {}
    again = not live.removing and restart_policy.wanted(policy, ended.code, container.restart_count, container.manually_stopped)
    if again:
        ran_for = container.state.finished_at - container.state.started_at
        container.restart_delay = restart_policy.delay(container.restart_delay, ran_for)
        host.set_status(container, record.RESTARTING)
        live.restart = host.spawn(restart(host, live), f"container {container.short}: restart")
    live.exited.set()
    live.wake_exit_waiters(ended.code)


async def restart(host: Host, live: Live) -> None:
    """Another start when the delay since its exit is over, unless somebody stopped it meanwhile."""
    container = live.container
    await host.clock.sleep(max(0.0, container.state.finished_at + container.restart_delay - host.clock.now()))
    if live.container.state.status != record.RESTARTING:
        return
    container.restart_count += 1
    try:
        await host.start_again(live)
    except Exception as error:
        log.error("container %s was not started again: %s", live.container.short, error)
