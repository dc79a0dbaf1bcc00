"""Changes to an existing container that are no start or stop: rename, update, networks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from covey.errors import Conflict, Forbidden, Internal, InvalidArgument
from worker.containers import limits, network_requests, record, unmet
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.containers.registry import check_name
from worker.containers.shim_socket import ShimGone
from worker.runtime.errors import RuntimeFault

UPDATABLE = (
    "BlkioWeight", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares", "CpusetCpus",
    "CpusetMems", "Memory", "MemoryReservation", "MemorySwap", "NanoCpus", "PidsLimit",
)  # fmt: skip

#: (what is to be set, what is set already, Docker's words): two ways to say the same.
_EXCLUSIVE = (
    ("NanoCpus", "CpuPeriod", "Nano CPUs cannot be updated as CPU Period"),
    ("NanoCpus", "CpuQuota", "Nano CPUs cannot be updated as CPU Quota"),
    ("CpuPeriod", "NanoCpus", "CPU Period cannot be updated as NanoCPUs"),
    ("CpuQuota", "NanoCpus", "CPU Quota cannot be updated as NanoCPUs"),
)


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


def _wanted(container: Container, body: Mapping[str, Any]) -> dict[str, Any]:
    """What an update changes. Raises InvalidArgument, Conflict in Docker's words."""
    wanted = {key: body[key] for key in UPDATABLE if body.get(key)}
    if body.get("PidsLimit") == 0:
        wanted["PidsLimit"] = limits.INFINITY
    if (body.get("RestartPolicy") or {}).get("Name"):
        if container.host_config.get("AutoRemove") and body["RestartPolicy"]["Name"] != "no":
            raise InvalidArgument("Restart policy cannot be updated because AutoRemove is enabled for the container")
        wanted["RestartPolicy"] = body["RestartPolicy"]
    now = container.host_config
    for new, old, words in _EXCLUSIVE:
        if (wanted.get(new) or 0) > 0 and (now.get(old) or 0) > 0:
            raise Conflict(f"Cannot update container {container.id}: Conflicting options: {words} has already been set")
    memory, swap = wanted.get("Memory"), now.get("MemorySwap") or 0
    if memory and "MemorySwap" not in wanted and 0 < swap < memory:
        raise Conflict(
            f"Cannot update container {container.id}: Memory limit should be smaller than already set memoryswap "
            "limit, update the memoryswap at the same time"
        )
    return wanted


def _passed_over(body: Mapping[str, Any]) -> list[str]:
    """A warning for what is set and no update can change; Docker passes it over without a word."""
    fields = [key for key, value in body.items() if value and key not in (*UPDATABLE, "RestartPolicy")]
    return [f"{key} cannot be changed by an update and stays as it is" for key in sorted(fields)]


async def update(host: Host, live: Live, body: Mapping[str, Any]) -> list[str]:
    """Sets resources and restart policy; returns warnings. Raises InvalidArgument, Conflict; nothing changes then."""
    async with live.lock:
        container = live.container
        if live.removing or container.state.status in (record.REMOVING, record.DEAD):
            raise Conflict(f"Cannot update container {container.id}: container is marked for removal and cannot be updated")
        wanted = _wanted(container, body)
        fresh, warnings = unmet.without(host.completed({**container.host_config, **wanted}), host.controllers)
        if live.shim is not None and any(key in UPDATABLE for key in wanted):
            await _apply(live, fresh)
        container.host_config = fresh
        host.save(container, sync=True)
    host.publish(container, "update")
    return warnings + _passed_over(body)


async def _apply(live: Live, fresh: Mapping[str, Any]) -> None:
    """New limits in the kernel, or the ones before. Raises Internal with what the kernel says."""
    assert live.shim is not None
    try:
        await live.shim.update(limits.changeable(fresh))
    except ShimGone as fault:
        raise Internal(f"Cannot update container {live.container.id}: {fault}") from fault
    except RuntimeFault as fault:
        with contextlib.suppress(ShimGone, RuntimeFault):
            await live.shim.update(limits.changeable(live.container.host_config))
        raise Internal(f"Cannot update container {live.container.id}: {fault}") from fault


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
