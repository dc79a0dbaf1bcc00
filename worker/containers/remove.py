"""Removes a container with all it has on disk, by Docker's rules and in its words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from covey.errors import Conflict, CoveyError, Internal
from worker.containers import list_filters, record, start, stop, teardown
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.kernel import trees

log = logging.getLogger(__name__)

REFUSALS = {
    record.RUNNING: "container is running: stop the container before removing or force remove",
    record.PAUSED: "container is paused and must be unpaused first",
    record.RESTARTING: "container is restarting: stop the container before removing or force remove",
}


async def remove(host: Host, live: Live, *, force: bool = False, volumes: bool = False) -> None:
    """``volumes``: its anonymous volumes too. Raises Conflict: it runs and no ``force``, or is being removed."""
    container = live.container
    if live.removing:
        raise Conflict(f"removal of container {container.id} is already in progress")
    _check_state(live, force)
    live.removing = True
    try:
        start.cancel_restart(live)
        while True:
            if container.state.running:
                container.manually_stopped = True
                await stop.put_down(host, live)
            async with live.lock:
                # A start that was under way may have made it run meanwhile.
                _check_state(live, force)
                if not container.state.running:
                    await _delete(host, live)
                    break
    except BaseException:
        live.removing = False
        if container.state.status == record.REMOVING:
            host.set_status(container, record.DEAD)
        raise
    if volumes:
        await _remove_volumes(host, live)
    host.lives.pop(container.id, None)
    host.publish(container, "destroy")
    live.drop_pending()
    live.wake_exit_waiters(container.state.exit_code)
    live.wake_removal_waiters(container.state.exit_code)
    if host.images.is_leftover(container.image_id):
        # It was removed under its containers and goes with the last of them.
        await host.run(host.images.collect)


def _check_state(live: Live, force: bool) -> None:
    refusal = REFUSALS.get(live.container.state.status)
    if refusal and not force:
        raise Conflict(f'cannot remove container "{live.container.name}": {refusal}')


async def _delete(host: Host, live: Live) -> None:
    """Once its record has been taken away it is removed: what is left then the next start of the daemon would clear."""
    container = live.container
    container.state.status = record.REMOVING
    directory = host.options.run_directory(container.id)
    if directory.exists():
        await teardown.detach(host, container)
    aside = await host.run(_retire, host, container, directory)
    # Nobody waits for the kernel to take back mounts and cgroups, and for files to be deleted.
    host.clear_later(partial(teardown.clear_left, host, directory), *(partial(trees.remove_path, one) for one in aside))
    host.registry.forget(container)


def _retire(host: Host, container: Container, directory: Path) -> list[Path]:
    """Blocking; where what is left of it lies. Raises Internal while a volume of its is in use."""
    if any(mount.type == "volume" for mount in container.mounts) and directory.exists():
        # Whoever removes the volume next must find it free.
        teardown.clear_logged(host, container, directory, keep_exit=True)
        if teardown.beside_exit(directory):
            raise Internal(f"cannot remove container {container.short}: {directory} cannot be cleared away now: try again")
    places = (host.registry.retire(container.id), host.overlay.retire(container.id))
    return [one for one in places if one is not None]


async def _remove_volumes(host: Host, live: Live) -> None:
    for mount in live.container.mounts:
        if mount.type == "volume" and mount.anonymous:
            try:
                await host.run(host.volumes.remove, mount.name, True)
            except CoveyError as error:
                log.info("volume %s of container %s stays: %s", mount.name, live.container.short, error.message)


async def prune(host: Host, filters: Mapping[str, Sequence[str]]) -> tuple[list[str], int]:
    """Removes every stopped container that fits; (ids, bytes freed). One that cannot be removed stays."""
    gone: list[str] = []
    freed = 0
    until = min((float(value) for value in filters.get("until", ())), default=float("inf"))
    labels = {key: values for key, values in filters.items() if key in ("label", "label!")}
    for container in host.registry:
        stopped = container.state.status in (record.CREATED, record.EXITED, record.DEAD)
        if not stopped or container.created > until or not list_filters.fits(container, {}, labels, {}):
            continue
        try:
            size = await host.run(host.overlay.size, container.id)
            await remove(host, host.live(container))
        except CoveyError as error:
            log.info("container %s stays: %s", container.short, error.message)
            continue
        gone.append(container.id)
        freed += size
    return gone, freed
