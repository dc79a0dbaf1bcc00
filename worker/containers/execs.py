"""A further process in a running container: create (a plan only), start, inspect, resize, kill.

The shim makes it stopped, so that whoever attaches loses nothing. An exec is forgotten with its container.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from covey.entropy import container_id as fresh_id
from covey.errors import Conflict, Internal, InvalidArgument, NotFound
from worker.containers import bundle, merge, record, start, streams, surroundings
from worker.containers.host import Exec, Host, Live
from worker.containers.shim_client import Attachment, Shim
from worker.containers.shim_socket import ShimGone
from worker.runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

KEPT = 64
ASK_SECONDS = 5.0


def create(host: Host, live: Live, request: Mapping[str, Any]) -> Exec:
    """A new exec of a running container. Raises Conflict, InvalidArgument, Internal (its shim does not answer)."""
    container = live.container
    _require_running(live)
    command = merge.as_list(request.get("Cmd"))
    if not command:
        raise InvalidArgument("No exec command specified")
    merge.check_environment(request.get("Env") or [])
    streams.detach_sequence(str(request.get("DetachKeys") or ""))
    host.options.policy.check_exec(request)
    one = Exec(fresh_id(), container.id, {**request, "Cmd": command})
    ended = [key for key, other in live.execs.items() if other.exit_code is not None]
    for key in ended[:-KEPT]:
        del live.execs[key]
    live.execs[one.id] = one
    host.publish(container, f"exec_create: {' '.join(command)}", {"execID": one.id})
    return one


def _require_running(live: Live) -> Shim:
    container = live.container
    if container.state.status == record.PAUSED:
        raise Conflict(f"container {container.name} is paused, unpause the container before exec")
    if container.state.status == record.RESTARTING:
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
    if live.shim is None or not container.state.running:
        raise Conflict(f"container {container.id} is not running")
    if live.shim.silence:
        raise Internal(f"cannot exec in container {container.id}: {live.shim.silence}")
    return live.shim


def check_startable(live: Live, one: Exec) -> None:
    """Raises Conflict in Docker's words."""
    _require_running(live)
    if one.exit_code is not None:
        raise Conflict(f"Error: Exec command {one.id} has already run")
    if one.started:
        raise Conflict(f"Error: Exec command {one.id} is already running")


def find(host: Host, exec_id: str) -> tuple[Live, Exec]:
    """By id or its unique prefix. Raises NotFound in Docker's words."""
    for live in host.lives.values():
        if exec_id in live.execs:
            return live, live.execs[exec_id]
    matches = [(live, live.execs[key]) for live in host.lives.values() for key in live.execs if key.startswith(exec_id)]
    if len(matches) != 1 or not exec_id:
        raise NotFound(f"No such exec instance: {exec_id}")
    return matches[0]


async def begin(
    host: Host, live: Live, one: Exec, *, console_size: list[int] | None = None, attach: bool = True
) -> Attachment | None:
    """Runs it and returns its stream, None without ``attach``. Raises Conflict (started), InvalidArgument (126, 127)."""
    shim = _require_running(live)
    check_startable(live, one)
    one.started = True
    request = {**one.request, "ConsoleSize": console_size or one.request.get("ConsoleSize")}
    stream: Attachment | None = None
    try:
        process = await host.run(_process, host, live, request)
        one.pid = await shim.exec(one.id, process, stdin=attach and bool(request.get("AttachStdin")))
        if attach:
            stream = await shim.attach(
                stdin=bool(request.get("AttachStdin")),
                stdout=bool(request.get("AttachStdout")) or bool(request.get("Tty")),
                stderr=bool(request.get("AttachStderr")),
                exec_id=one.id,
            )
        one.running = True
        await shim.exec_start(one.id)
        if not one.pid:
            # Another runtime's exec has no process before it runs.
            one.pid = int((await shim.exec_state(one.id))["pid"])
    except (RuntimeFault, ShimGone, InvalidArgument) as error:
        one.running = False
        if stream is not None:
            stream.close()
        raise _refused(one, error) from error
    host.publish(live.container, f"exec_start: {' '.join(one.request['Cmd'])}", {"execID": one.id})
    return stream


def _refused(one: Exec, error: Exception) -> Exception:
    one.exit_code = start.EXIT_CODES.get(getattr(error, "code", ""), 126)
    one.ended.set()
    if isinstance(error, RuntimeFault):
        words = start.exec_words(one.request["Cmd"][0], error)
        return InvalidArgument(f"OCI runtime exec failed: exec failed: unable to start container process: {words}: unknown")
    if isinstance(error, ShimGone):
        return Internal(f"exec {one.id[:12]} was not started: {error}: the container has just ended")
    return error


def _process(host: Host, live: Live, request: Mapping[str, Any]) -> dict[str, Any]:
    container = live.container
    wanted = str(request.get("User") or container.config.get("User") or "")
    root = host.options.run_directory(container.id) / "rootfs"
    who = surroundings.user(root, wanted, container.host_config.get("GroupAdd") or ())
    return bundle.exec_process(container.config, container.host_config, who, request, container.config.get("Hostname") or "")


async def wait_ended(live: Live, one: Exec) -> int:
    """The exit code once it ended; the shim is asked now and then, should its event have been missed."""
    while not one.ended.is_set():
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await one.ended.wait()
        except TimeoutError:
            await _ask(live, one)
    return -1 if one.exit_code is None else one.exit_code


async def _ask(live: Live, one: Exec) -> None:
    if live.shim is None:
        one.ended.set()
        return
    try:
        found = await live.shim.exec_state(one.id)
    except (RuntimeFault, ShimGone):
        return
    if found["exit_code"] is not None:
        one.running, one.exit_code = False, int(found["exit_code"])
        one.ended.set()


def inspect(live: Live, one: Exec) -> dict[str, Any]:
    """ExecInspectResponse."""
    request = one.request
    return {
        "ID": one.id,
        "Running": one.running,
        "ExitCode": one.exit_code,
        "ProcessConfig": {
            "tty": bool(request.get("Tty")),
            "entrypoint": request["Cmd"][0],
            "arguments": request["Cmd"][1:],
            "privileged": bool(request.get("Privileged")),
            "user": request.get("User") or "",
        },
        "OpenStdin": bool(request.get("AttachStdin")),
        "OpenStderr": bool(request.get("AttachStderr")),
        "OpenStdout": bool(request.get("AttachStdout")),
        "CanRemove": one.exit_code is not None,
        "ContainerID": one.container_id,
        "DetachKeys": "",
        "Pid": one.pid,
    }


async def resize(live: Live, one: Exec, height: int, width: int) -> None:
    """Raises Conflict when it does not run."""
    if live.shim is None or not one.running:
        raise Conflict(f"exec {one.id[:12]} is not running: its terminal cannot be resized")
    if not one.request.get("Tty"):
        return
    try:
        await live.shim.resize(height, width, exec_id=one.id)
    except (RuntimeFault, ShimGone) as fault:
        raise Conflict(f"cannot resize exec {one.id[:12]}: {fault}") from fault
