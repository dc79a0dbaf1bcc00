"""Changes to an existing container that are no start or stop: rename, update, networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from covey.errors import Conflict, Forbidden, Internal, InvalidArgument
from worker.containers import host_config, limits, network_requests, record, unmet
from worker.containers.host import Host, Live
from worker.containers.registry import check_name
from worker.containers.shim_client import ShimGone
from worker.runtime.errors import RuntimeFault

UPDATABLE = (
    "BlkioWeight", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares", "CpusetCpus",
    "CpusetMems", "Memory", "MemoryReservation", "MemorySwap", "NanoCpus", "PidsLimit",
)  # fmt: skip


async def rename(host: Host, live: Live, name: str) -> None:
    """Raises Conflict (taken, being removed), InvalidArgument."""
    if not name:
        raise InvalidArgument("Neither old nor new names may be empty")
    container = live.container
    try:
        bare = check_name(name)
    except InvalidArgument as error:
        raise InvalidArgument(f"Error when allocating new name: {error.message}") from None
    if bare == container.name:
        raise InvalidArgument("Renaming a container with the same name as its current name")
    if live.removing or container.state.status in (record.REMOVING, record.DEAD):
        raise Conflict(f"container {container.id} is marked for removal and cannot be renamed")
    former = container.name
    try:
        host.registry.rename(container, bare)
    except Conflict as error:
        raise Conflict(f"Error when allocating new name: {error.message}") from None
    host.publish(container, "rename", {"oldName": f"/{former}"})


async def update(host: Host, live: Live, body: Mapping[str, Any]) -> list[str]:
    """Sets resources and restart policy; returns warnings. Raises InvalidArgument, Conflict; nothing changes then."""
    async with live.lock:
        container = live.container
        if live.removing or container.state.status in (record.REMOVING, record.DEAD):
            raise Conflict(f"Cannot update container {container.id}: container is marked for removal and cannot be updated")
        wanted = {key: body[key] for key in UPDATABLE if body.get(key)}
        if (body.get("RestartPolicy") or {}).get("Name"):
            if container.host_config.get("AutoRemove") and body["RestartPolicy"]["Name"] != "no":
                raise InvalidArgument("Restart policy cannot be updated because AutoRemove is enabled for the container")
            wanted["RestartPolicy"] = body["RestartPolicy"]
        settings = dict(container.host_config)
        memory, swap = wanted.get("Memory"), settings.get("MemorySwap") or 0
        if memory and "MemorySwap" not in wanted and 0 < swap < memory:
            raise Conflict(
                f"Cannot update container {container.id}: Memory limit should be smaller than already set memoryswap "
                "limit, update the memoryswap at the same time"
            )
        asked = host_config.completed({**settings, **wanted}, os.cpu_count() or 1)
        fresh, warnings = unmet.without(asked, host.controllers)
        if live.shim is not None and any(key in UPDATABLE for key in wanted):
            try:
                await live.shim.update(limits.changeable(fresh))
            except (RuntimeFault, ShimGone) as fault:
                raise Internal(f"Cannot update container {container.id}: {fault}") from fault
        container.host_config = fresh
        host.save(container, sync=True)
    host.publish(container, "update")
    return warnings


async def connect(host: Host, network: str, live: Live, settings: Mapping[str, Any] | None) -> None:
    """One more network. Raises Forbidden, Conflict, NotFound, InvalidArgument."""
    async with live.lock:
        container = live.container
        found = await host.network.inspect_network(network)
        name = found["Name"]
        if network_requests.joined(container.network_mode):
            raise Forbidden(
                "container sharing network namespace with another container or host cannot be connected to any other network"
            )
        if "host" in (container.network_mode, name):
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        if live.removing:
            raise Forbidden(
                f"container {container.id} is marked for removal and cannot be connected or disconnected to the network"
            )
        if container.state.running and name in container.networks:
            raise Forbidden(f"endpoint with name {container.name} already exists in network {name}")
        wanted = dict(settings or {})
        if live.shim is not None:
            request = network_requests.request(name, wanted)
            live.attachment = await host.network.connect(container.id, container.name, request, container.state.pid)
        container.networks = {key: one for key, one in container.networks.items() if key != "none"} | {name: wanted}
        host.save(container)
    attributes = {"container": container.id, "name": name, "type": found["Driver"]}
    host.events.publish("network", "connect", found["Id"], attributes)


async def disconnect(host: Host, network: str, live: Live, *, force: bool = False) -> None:
    """One network less. Raises Forbidden when it is not on it."""
    async with live.lock:
        container = live.container
        found = await host.network.inspect_network(network)
        name = found["Name"]
        if container.network_mode == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        if name not in container.networks:
            if force:
                return
            raise Forbidden(f"container {container.id} is not connected to network {name}")
        if live.shim is not None:
            live.attachment = await host.network.disconnect(container.id, name, container.state.pid)
        container.networks = {key: one for key, one in container.networks.items() if key != name}
        host.save(container)
    attributes = {"container": container.id, "name": name, "type": found["Driver"]}
    host.events.publish("network", "disconnect", found["Id"], attributes)
