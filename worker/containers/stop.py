"""Ends, signals and freezes containers: stop with grace, kill, restart, pause, unpause. Words and codes are Docker's.

Nothing here waits while it holds a container's lock: the exit is recorded by whoever supervises.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

from covey.errors import Conflict, Internal, NotModified
from worker import processes
from worker.containers import defaults, record, runtimes, signals, start
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.containers.shim_client import Shim, end_recorded
from worker.containers.shim_socket import UNREACHABLE, ShimGone
from worker.kernel import process
from worker.runtime.errors import RuntimeFault
from worker.shim import records

KILL_PATIENCE = 10.0


async def send(live: Live, number: int) -> bool:
    """Signals the container's process; False when there is none any more."""
    if live.shim is None:
        return False
    try:
        await live.shim.kill(number)
    except ShimGone:
        return False
    except RuntimeFault as fault:
        if fault.code == "bad-state":
            return False
        if fault.code == UNREACHABLE:
            return await _send_past(live.shim, live.container, number)
        raise Internal(f"cannot signal container {live.container.short}: {fault}") from fault
    return True


async def _send_past(shim: Shim, container: Container, number: int) -> bool:
    """Signals a container whose shim does not answer. SIGKILL goes to the shim: only its end can tell of the container's."""
    if number == signal.SIGKILL:
        await end_recorded(shim.directory)
        return True
    return process.kill_verified(container.state.pid, container.state.pid_start, number)


async def wait_exited(live: Live, seconds: float | None) -> bool:
    """Whether the container ended within ``seconds`` (None: however long it takes)."""
    try:
        async with asyncio.timeout(seconds):
            await live.exited.wait()
    except TimeoutError:
        return False
    return True


def stop_signal(container: Container) -> int:
    return signals.parse(container.config.get("StopSignal") or "SIGTERM")


def grace(container: Container, timeout: int | None) -> float | None:
    """Seconds before the kill, None for ever: the request's, the container's, ten."""
    wanted = timeout if timeout is not None else container.config.get("StopTimeout")
    if wanted is None:
        wanted = defaults.STOP_SECONDS
    return None if wanted < 0 else float(wanted)


async def stop(host: Host, live: Live, timeout: int | None = None, name: str | None = None) -> None:
    """Raises NotModified when nothing runs."""
    container = live.container
    number = signals.parse(name) if name else stop_signal(container)
    if await _just_ended(live):
        return
    if container.state.status == record.RESTARTING and await give_up_restart(host, live):
        return
    if not container.state.running:
        raise NotModified(f"container {container.name} is not running")
    container.manually_stopped = True
    host.note(container)
    await end(host, live, number, grace(container, timeout))
    host.publish(container, "stop")


async def _just_ended(live: Live) -> bool:
    """Whether its end is being put on record right now; then it is when this returns, and no policy starts it again."""
    if live.container.state.status != record.EXITED or live.exited.is_set():
        return False
    live.container.manually_stopped = True
    await live.exited.wait()
    return True


async def give_up_restart(host: Host, live: Live) -> bool:
    """A container that waits for its restart stays down; False when it runs already, as the wait was over meanwhile."""
    async with live.lock:
        start.cancel_restart(live)
        live.container.manually_stopped = True
        if live.container.state.status == record.RESTARTING:
            host.set_status(live.container, record.EXITED)
    return not live.container.state.running


async def end(host: Host, live: Live, number: int, seconds: float | None) -> None:
    """Signal, wait, kill, wait. Raises Internal when even that does not end it."""
    if live.container.state.status == record.PAUSED and number != signal.SIGKILL:
        # It may have been thawed, or have ended, meanwhile.
        with contextlib.suppress(Conflict):
            await unpause(host, live)
    if await send(live, number):
        host.publish(live.container, "kill", {"signal": str(number)})
    if await wait_exited(live, seconds):
        return
    if await send(live, signal.SIGKILL):
        host.publish(live.container, "kill", {"signal": str(int(signal.SIGKILL))})
    await _wait_killed(live)


async def _wait_killed(live: Live) -> None:
    if not await wait_exited(live, KILL_PATIENCE):
        raise Internal(
            f"container {live.container.short} did not end within {KILL_PATIENCE:.0f} s of SIGKILL: "
            "a process of it hangs in the kernel"
        )


async def put_down(host: Host, live: Live) -> None:
    """End a container that is being removed: with its shim, where nobody would miss what that still had to say of it.

    A process dies with its shim, and a shim that goes at once has no end to record and nothing to clear away: half the work.
    """
    if _unheard(live) and await _end_with_shim(host, live):
        await _wait_killed(live)
    else:
        await end(host, live, signal.SIGKILL, KILL_PATIENCE)


def _unheard(live: Live) -> bool:
    """Whether its processes end with its first one, for certain, and there is no client of their output or of an exec."""
    settings, shim = live.container.host_config, live.shim
    return (
        live.container.state.status == record.RUNNING
        and not settings.get("PidMode")
        and settings.get("Runtime") in (None, "", runtimes.OWN)
        and shim is not None
        and not shim.attached
        and not any(one.running for one in live.execs.values())
    )


async def _end_with_shim(host: Host, live: Live) -> bool:
    """Whether there is nothing left to kill. The shim goes first, or it would begin to record an end."""
    container = live.container
    try:
        known = live.shim.identity if live.shim is not None else None
        if known is None:
            found = records.read(str(host.options.run_directory(container.id)), "shim.json")
            if found is None:
                return False
            known = (found["pid"], found["start_time"])
        host.publish(container, "kill", {"signal": str(int(signal.SIGKILL))})
        live.put_down = True
        live.put_down = await processes.end((known, (container.state.pid, container.state.pid_start)), KILL_PATIENCE)
        return live.put_down
    except OSError:
        # Out of descriptors: the shim can still be asked.
        return False


async def kill(host: Host, live: Live, name: str | None = None) -> None:
    """Raises Conflict in Docker's words when nothing runs. SIGKILL waits for the end."""
    container = live.container
    number = signals.parse(name or "KILL")
    if container.state.status == record.RESTARTING and await give_up_restart(host, live):
        return
    if not container.state.running:
        raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
    if number in (signal.SIGKILL, stop_signal(container)):
        container.manually_stopped = True
        host.note(container)
    if await send(live, number):
        host.publish(container, "kill", {"signal": str(number)})
    if container.state.status == record.PAUSED and number == stop_signal(container):
        # A frozen process would not even notice it.
        with contextlib.suppress(Conflict):
            await unpause(host, live)
    if number == signal.SIGKILL:
        await _wait_killed(live)


async def restart(host: Host, live: Live, timeout: int | None = None, name: str | None = None) -> None:
    """Stop if it runs, then start."""
    container = live.container
    await _just_ended(live)
    if container.state.status == record.RESTARTING:
        await give_up_restart(host, live)
    if container.state.running:
        live.kept = True
        try:
            await stop(host, live, timeout, name)
        finally:
            live.kept = False
    await start.start(host, live)
    host.publish(container, "restart")


def _has_ended(fault: RuntimeFault | ShimGone) -> bool:
    """Whether the container ended before its shim was asked, and the record of that is about to come."""
    return isinstance(fault, ShimGone) or fault.code == "bad-state"


async def pause(host: Host, live: Live) -> None:
    """Raises Conflict in Docker's words."""
    async with live.lock:
        container = live.container
        if container.state.status == record.PAUSED:
            raise Conflict(f"container {container.id} is already paused")
        if container.state.status == record.RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        if live.shim is None or not container.state.running:
            raise Conflict(f"container {container.id} is not running")
        try:
            await live.shim.pause()
        except (RuntimeFault, ShimGone) as fault:
            if _has_ended(fault):
                raise Conflict(f"container {container.id} is not running") from fault
            raise Internal(f"cannot pause container {container.id}: {fault}") from fault
        host.set_status(container, record.PAUSED)
        host.publish(container, "pause")


async def unpause(host: Host, live: Live) -> None:
    """Raises Conflict in Docker's words."""
    async with live.lock:
        container = live.container
        if live.shim is None or container.state.status != record.PAUSED:
            raise Conflict(f"Container {container.id} is not paused")
        try:
            await live.shim.resume()
        except (RuntimeFault, ShimGone) as fault:
            if _has_ended(fault):
                raise Conflict(f"Container {container.id} is not paused") from fault
            raise Internal(f"cannot unpause container {container.id}: {fault}") from fault
        host.set_status(container, record.RUNNING)
        host.publish(container, "unpause")
