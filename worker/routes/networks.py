"""Networks of this node over the Engine API. Those of the cluster are the manager's; the front door merges both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.engine_api.answers import Answer, Empty, created
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.engine_api.types.base import validate
from covey.engine_api.types.network import NetworkConnect, NetworkDisconnect, validate_network_create
from covey.errors import InvalidArgument
from worker.containers import list_filters
from worker.containers.engine import Engine
from worker.network.endpoint import Subnet
from worker.network.network import PREDEFINED
from worker.routes.times import seconds

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type", "until", "label!")


def fits(network: Mapping[str, Any], filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether a network is meant by a list filter."""
    labels = network.get("Labels") or {}
    custom = network["Name"] not in PREDEFINED
    used = bool(network.get("Containers"))
    tests: dict[str, Callable[[str], bool]] = {
        "driver": lambda value: network["Driver"] == value,
        "id": lambda value: network["Id"].startswith(value),
        "name": lambda value: value in network["Name"],
        "scope": lambda value: network["Scope"] == value,
        "type": lambda value: value == ("custom" if custom else "builtin"),
        "dangling": lambda value: custom and not used if value in ("true", "1") else used or not custom,
    }
    for key, values in filters.items():
        if key == "label" and not all(list_filters.label_fits(labels, value) for value in values):
            return False
        if key == "label!" and any(list_filters.label_fits(labels, value) for value in values):
            return False
        if key in tests and values and not any(tests[key](value) for value in values):
            return False
    return True


class Networks:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "network_list": self.list,
            "network_create": self.create,
            "network_prune": self.prune,
            "network_inspect": self.inspect,
            "network_delete": self.delete,
            "network_connect": self.connect,
            "network_disconnect": self.disconnect,
        }

    async def list(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        for value in filters.get("type", ()):
            if value not in ("custom", "builtin"):
                raise InvalidArgument(f"invalid filter: 'type'='{value}'")
        found = [one for one in await self._engine.network.list_networks() if fits(one, filters)]
        # Docker lists networks without who is on them.
        return [{**one, "Containers": {}} for one in found]

    async def create(self, call: Call) -> Answer:
        body = await call.json()
        wanted = validate_network_create(body)
        pools = [
            Subnet(pool.Subnet or "", pool.Gateway or "", pool.IPRange or "", dict(pool.AuxiliaryAddresses))
            for pool in (wanted.IPAM.Config if wanted.IPAM else [])
            if pool.Subnet
        ]
        network_id = await self._engine.network.create_network(
            wanted.Name or "",
            wanted.Driver or "bridge",
            pools,
            body.get("Labels") or {},
            body.get("Options") or {},
            internal=bool(wanted.Internal),
            attachable=bool(wanted.Attachable),
            enable_ipv6=bool(wanted.EnableIPv6),
        )
        self._event("create", network_id, wanted.Name or "", wanted.Driver or "bridge")
        return created({"Id": network_id, "Warning": ""})

    def _event(self, action: str, network_id: str, name: str, driver: str) -> None:
        self._engine.events.publish("network", action, network_id, {"name": name, "type": driver})

    async def prune(self, call: Call) -> Answer:
        filters = call.filters(("label", "label!", "until"))
        for value in filters.get("until", ()):
            seconds(value, self._engine.clock.now())
        gone = await self._engine.network.prune_networks(lambda network: fits(network, filters))
        return {"NetworksDeleted": gone or None}

    async def inspect(self, call: Call) -> Answer:
        return await self._engine.network.inspect_network(call.params["id"])

    async def delete(self, call: Call) -> Answer:
        found = await self._engine.network.inspect_network(call.params["id"])
        await self._engine.network.remove_network(found["Id"])
        self._event("destroy", found["Id"], found["Name"], found["Driver"])
        return Empty(204)

    async def connect(self, call: Call) -> Answer:
        body = await call.json()
        wanted = validate(NetworkConnect, body)
        if not wanted.Container:
            raise InvalidArgument("Container: give the name or id of a container")
        await self._engine.connect(call.params["id"], wanted.Container, body.get("EndpointConfig"))
        return Empty(200)

    async def disconnect(self, call: Call) -> Answer:
        wanted = validate(NetworkDisconnect, await call.json())
        if not wanted.Container:
            raise InvalidArgument("Container: give the name or id of a container")
        await self._engine.disconnect(call.params["id"], wanted.Container, bool(wanted.Force))
        return Empty(200)
