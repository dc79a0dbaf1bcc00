"""Networks of cluster scope: list, create, inspect, remove, prune. Node-scope networks are the node's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from covey.clock import parse_rfc3339
from covey.engine_api.answers import Answer, Empty, created
from covey.engine_api.call import Call
from covey.engine_api.types.network import validate_network_create
from covey.entropy import object_id
from covey.errors import Conflict, Forbidden, InvalidArgument, NotImplementedYet, Unavailable
from covey.model.objects import Network
from covey.model.task_states import TaskState
from manager.routes.door import Door, find, matches_id, matches_labels
from manager.routes.services import OVERLAY_WARNING
from manager.routes.shapes import show_network
from manager.store.codec import encode
from manager.store.interface import Delete, Put, absent, mod_is
from scheduler.addresses import overlaps, parse_subnet
from scheduler.snapshot import Snapshot

log = logging.getLogger(__name__)

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("until", "label", "label!")


class Networks:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "network_list": self.list_all,
            "network_create": self.create,
            "network_inspect": self.inspect,
            "network_delete": self.delete,
            "network_prune": self.prune,
            "network_connect": self.connect,
            "network_disconnect": self.connect,
        }

    async def list_all(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        snapshot = await self._door.view()
        networks = sorted(snapshot.networks.values(), key=lambda network: (network.name, network.id))
        return [_show(snapshot, network) for network in networks if _wanted(snapshot, network, filters)]

    async def inspect(self, call: Call) -> Answer:
        if call.text("scope") not in ("", "swarm"):
            raise InvalidArgument(f"scope {call.text('scope')!r} is not the cluster's: ask the node, or use scope=swarm")
        snapshot = await self._door.view()
        return _show(snapshot, _find(snapshot, call.params["id"]))

    async def create(self, call: Call) -> Answer:
        spec = validate_network_create(await call.json()).stored()
        _check_kind(spec)
        door = self._door
        snapshot = await door.view()
        name = str(spec["Name"])
        if any(network.name == name for network in snapshot.networks.values()):
            raise Conflict(f"network with name {name} already exists")
        _check_pools(snapshot, spec)
        network = Network(id=object_id(), spec=spec, created_at=door.clock.now())
        key = door.keys.key("network", network.id)
        compare, reserve = door.reserve("network", name, network.id)
        result = await door.commit([absent(key), compare], [Put(key, encode(network)), reserve])
        if not result.ok:
            raise Conflict(f"network with name {name} already exists")
        warning = OVERLAY_WARNING.format(name)
        log.warning("%s", warning)
        return created({"Id": network.id, "Warning": warning})

    async def delete(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        network = _find(snapshot, call.params["id"])
        user = _user(snapshot, network)
        if user:
            raise Forbidden(f"network {network.name} is in use by {user}: remove that first")
        await self._remove(network)
        return Empty(204)

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(PRUNE_FILTERS)
        until = _until(filters)
        snapshot = await self._door.view()
        doomed = [
            network
            for network in snapshot.networks.values()
            if not _user(snapshot, network)
            and (until is None or network.created_at < until)
            and matches_labels(network.spec.get("Labels"), filters.get("label", []))
            and not (filters.get("label!") and matches_labels(network.spec.get("Labels"), filters["label!"]))
        ]
        for network in doomed:
            await self._remove(network)
        return {"NetworksDeleted": sorted(network.name for network in doomed)}

    async def connect(self, call: Call) -> Answer:
        network = _find(await self._door.view(), call.params["id"])
        raise NotImplementedYet(f"network {network.name} is the cluster's: containers join it as tasks of a service only")

    async def _remove(self, network: Network) -> None:
        door = self._door
        key = door.keys.key("network", network.id)
        doomed = [Delete(key), Delete(door.keys.name("network", network.name))]
        result = await door.commit([mod_is(key, network.version)], doomed)
        if not result.ok and network.id in door.mirror.objects("network"):
            raise Unavailable(f"network {network.name} changed meanwhile: remove it again")


def _find(snapshot: Snapshot, reference: str) -> Network:
    return cast("Network", find(snapshot.networks, "network", reference))


def _show(snapshot: Snapshot, network: Network) -> dict[str, Any]:
    return show_network(network, snapshot.network_allocations.get(network.id))


def _check_kind(spec: Mapping[str, Any]) -> None:
    driver = spec.get("Driver") or "overlay"
    if driver != "overlay":
        raise NotImplementedYet(f"driver {driver!r} is not supported for cluster networks (Driver): use overlay")
    if spec.get("Ingress"):
        raise NotImplementedYet("an ingress network of your own is not supported (Ingress): published ports need none")
    if spec.get("ConfigOnly") or (spec.get("ConfigFrom") or {}).get("Network"):
        raise NotImplementedYet("config-only networks are not supported (ConfigOnly, ConfigFrom)")


def _check_pools(snapshot: Snapshot, spec: Mapping[str, Any]) -> None:
    taken = [parse_subnet(subnet) for given in snapshot.network_allocations.values() for subnet in given.subnets]
    for pool in (spec.get("IPAM") or {}).get("Config") or ():
        if pool.get("Subnet") and (other := overlaps(parse_subnet(pool["Subnet"]), taken)) is not None:
            raise Forbidden(f"Pool overlaps with other one on this address space: {pool['Subnet']} and {other}")


def _user(snapshot: Snapshot, network: Network) -> str:
    """Who uses ``network``, in words; "" for nobody."""
    for service in snapshot.services.values():
        targets = {attachment.target for attachment in snapshot.service_specs[service.id].task.networks}
        if targets & {network.id, network.name}:
            return f"service {service.name}"
    for task in snapshot.tasks.values():
        # Those of a removed service are on their way out: nodes keep the network until the last of them is gone.
        wanted = task.service_id in snapshot.services and task.desired <= TaskState.RUNNING
        if wanted and any(given.network_id == network.id for given in task.networks):
            return f"task {task.id}"
    return ""


def _wanted(snapshot: Snapshot, network: Network, filters: Mapping[str, list[str]]) -> bool:
    names = filters.get("name", [])
    dangling = {word.lower() in ("true", "1") for word in filters.get("dangling", [])}
    return (
        matches_id(network.id, filters.get("id", []))
        and (not names or any(name in network.name for name in names))
        and matches_labels(network.spec.get("Labels"), filters.get("label", []))
        and (not filters.get("driver") or "overlay" in filters["driver"])
        and (not filters.get("scope") or "swarm" in filters["scope"])
        and (not filters.get("type") or "custom" in filters["type"])
        and (not dangling or (not _user(snapshot, network)) in dangling)
    )


def _until(filters: Mapping[str, list[str]]) -> float | None:
    for text in filters.get("until", []):
        try:
            return float(text)
        except ValueError:
            pass
        try:
            return parse_rfc3339(text)
        except ValueError:
            raise InvalidArgument(f"invalid filter 'until={text}': give seconds since the epoch or an RFC 3339 time") from None
    return None
