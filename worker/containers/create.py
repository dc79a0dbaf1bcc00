"""``POST /containers/create``: from a request to a container on disk, or to nothing at all.

Order: parse and check, find the image, settle mounts, prepare the root file system, write the record. Every step is
undone when a later one fails.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from covey import names
from covey.entropy import container_id as fresh_id
from covey.errors import InvalidArgument, NotFound
from worker.containers import (
    limits,
    merge,
    mount_specs,
    network_requests,
    policy,
    remap,
    seccomp,
    signals,
    surroundings,
    unmet,
)
from worker.containers.host import Host
from worker.containers.record import SERVICE_LABEL, Container, Mount
from worker.containers.registry import check_name
from worker.images.image import Image

HOSTNAME_LIMIT = 63


async def create(
    host: Host,
    name: str | None,
    body: Mapping[str, Any],
    *,
    owner: str = "",
    networks: Mapping[str, Mapping[str, Any]] | None = None,
    port_group: str = "",
    platform: str = "",
    image: Image | None = None,
) -> tuple[Container, list[str]]:
    """The container and Docker's warnings. Raises InvalidArgument, NotFound (image, network), Conflict (name).

    ``networks`` (name → EndpointSettings with an extra "Service") take the place of the body's. ``port_group``: see
    PortBinding. ``image``: one that the store does not know, of a build under way; the caller leases its layers.
    """
    given = {key: value for key, value in body.items() if key not in ("HostConfig", "NetworkingConfig")}
    settings, unmet_warnings = unmet.without(host.completed(body.get("HostConfig") or {}), host.controllers)
    reference = str(given.get("Image") or "")
    if not reference:
        raise InvalidArgument("no image specified: give an image's name or id")
    if image is None:
        image = await host.run(host.images.resolve, reference)
    _check_platform(reference, image, platform)
    config = merge.config(given, image.config)
    container = _container(config, settings, image, body, networks)
    container.owner, container.port_group = owner, port_group
    await _name_networks(host, container)
    sources = {text.partition(":")[0] for text in settings.get("VolumesFrom") or []}
    others = {ref: host.registry.resolve(ref).mounts for ref in sources}
    container.mounts = mount_specs.requested(config, settings, others)
    ids = _ids(host, settings)
    host.options.policy.check(settings, policy.asked(container.mounts, owner, f"{host.options.exec_root}/tasks"))
    async with AsyncExitStack() as undo:
        _claim_name(host, container, name)
        undo.callback(host.registry.release_name, container.name, container.id)
        await _settle_mounts(host, container, undo, ids)
        await _prepare_root(host, container, image, undo, ids)
        host.registry.add(container)
        undo.pop_all()
    host.live(container)
    host.publish(container, "create")
    return container, unmet_warnings + _warnings(settings, image)


def _ids(host: Host, settings: Mapping[str, Any]) -> remap.Remap | None:
    """The ids of its user namespace: the daemon's; on one without, those of ``default`` for a container that wants its own."""
    found = host.options.remap
    if found is None and settings.get("UsernsMode") == "private":
        found = surroundings.read_remap("default", "HostConfig.UsernsMode private:")
    return found if remap.applies(found, settings) else None


def _container(
    config: dict[str, Any],
    settings: dict[str, Any],
    image: Image,
    body: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Any]] | None,
) -> Container:
    """The record, checked, without its mounts and name."""
    argv = merge.argv(config)
    if config.get("StopSignal"):
        signals.parse(config["StopSignal"])
    working = config.get("WorkingDir")
    if working and not working.startswith("/"):
        raise InvalidArgument(f"the working directory '{working}' is invalid, it needs to be an absolute path")
    if len(config.get("Hostname") or "") > HOSTNAME_LIMIT:
        raise InvalidArgument(f"invalid hostname format: {config['Hostname']} is longer than {HOSTNAME_LIMIT} characters")
    network_requests.check(config, settings)
    seccomp.chosen(settings.get("SecurityOpt") or [], settings["Privileged"])
    limits.rlimits(settings["Ulimits"] or [], {})
    endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig")
    wanted = network_requests.endpoints(settings, endpoints, str(body.get("MacAddress") or ""))
    identity = fresh_id()
    if not config.get("Hostname"):
        config["Hostname"] = identity[:12] if not network_requests.joined(settings["NetworkMode"]) else ""
    if settings["NetworkMode"] == "host":
        config["Hostname"] = os.uname().nodename
    return Container(
        id=identity,
        name="",
        created=0.0,
        image_id=image.id,
        config=config,
        host_config=settings,
        networks=wanted if networks is None else {key: dict(value) for key, value in networks.items()},
        path=argv[0],
        args=argv[1:],
    )


def _check_platform(reference: str, image: Image, wanted: str) -> None:
    """``wanted`` as ``os[/arch[/variant]]``. Raises NotFound in Docker's words."""
    if wanted and not image.platform.startswith(wanted.lower()):
        raise NotFound(
            f"image with reference {reference} was found but does not provide the specified platform ({wanted}): "
            f"it is for {image.platform}"
        )


async def _name_networks(host: Host, container: Container) -> None:
    """Networks given by id or prefix are kept by name. Raises NotFound."""
    named = {}
    for wanted, settings in container.networks.items():
        found = await host.network.inspect_network(wanted)
        named[found["Name"]] = {**settings, "NetworkID": found["Id"]}
    container.networks = named


def _claim_name(host: Host, container: Container, name: str | None) -> None:
    chosen = check_name(name) if name else names.fresh(host.registry.name_free)
    host.registry.claim(chosen, container.id)
    container.name = chosen
    container.created = host.clock.now()


async def _settle_mounts(host: Host, container: Container, undo: AsyncExitStack, ids: remap.Remap | None) -> None:
    """Volumes are made or found, bind sources must be there."""
    given = {one.get("Target"): one for one in container.host_config.get("Mounts") or []}
    owner = ids.root if ids else None
    for mount in container.mounts:
        if mount.type == "volume":
            await _settle_volume(host, mount, (given.get(mount.destination) or {}).get("VolumeOptions") or {}, undo, owner)
        elif mount.type == "bind" and mount.must_exist and not await host.run(os.path.lexists, mount.source):
            raise InvalidArgument(f'invalid mount config for type "bind": bind source path does not exist: {mount.source}')


async def _settle_volume(
    host: Host, mount: Mount, options: Mapping[str, Any], undo: AsyncExitStack, owner: tuple[int, int] | None
) -> None:
    known = {volume.name for volume in await host.run(host.volumes.list)}
    driver = options.get("DriverConfig") or {}
    volume = await host.run(
        host.volumes.create,
        mount.name or None,
        mount.driver,
        driver.get("Options") or {},
        options.get("Labels") or {},
    )
    mount.name, mount.source = volume.name, str(volume.mountpoint)
    if volume.name not in known:
        if owner is not None and not volume.options:
            # A new volume is its container's root's, until what the image has there says otherwise.
            await host.run(os.chown, volume.mountpoint, *owner)
        undo.push_async_callback(host.run, host.volumes.remove, volume.name, True)
        host.events.publish("volume", "create", volume.name, {"driver": volume.driver})


async def _prepare_root(host: Host, container: Container, image: Image, undo: AsyncExitStack, ids: remap.Remap | None) -> None:
    layers = await host.run(host.images.use, image, container.labels.get(SERVICE_LABEL, ""))
    undo.push_async_callback(host.run, host.overlay.remove, container.id)
    await host.run(_prepare_layers, host, container, layers, ids)
    filled = [mount for mount in container.mounts if mount.type == "volume" and mount.copy]
    if filled:
        await host.run(_populate, host, container, filled)


def _prepare_layers(host: Host, container: Container, layers: Sequence[Path], ids: remap.Remap | None) -> None:
    host.overlay.prepare(container.id, layers, ids.as_lists() if ids else None)
    host.overlay.furnish(container.id)


def _populate(host: Host, container: Container, mounts: list[Mount]) -> None:
    """Copies what the image has at each volume's place into volumes that are empty."""
    place = host.options.run_directory(container.id) / "rootfs"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    host.overlay.mount(container.id, place)
    try:
        for mount in mounts:
            if host.volumes.get(mount.name).options:
                host.volumes.acquire(mount.name, container.id)
            try:
                host.volumes.populate(mount.name, place, mount.destination)
            finally:
                host.volumes.release(mount.name, container.id)
    finally:
        host.overlay.unmount(place)
        _remove_empty(place)


def _remove_empty(place: Path) -> None:
    for directory in (place, place.parent):
        try:
            directory.rmdir()
        except OSError:
            return


def _warnings(settings: Mapping[str, Any], image: Image) -> list[str]:
    warnings = []
    if image.platform_warning:
        warnings.append(image.platform_warning)
    if settings["NetworkMode"] in ("host", "none") and settings.get("PortBindings") and settings["NetworkMode"] == "host":
        warnings.append("Published ports are discarded when using host network mode")
    if settings.get("KernelMemory"):
        warnings.append("Specifying a kernel memory limit is deprecated and ignored")
    return warnings
