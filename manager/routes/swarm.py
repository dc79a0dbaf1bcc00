"""The swarm as a whole: inspect with its join tokens, update with their rotation, unlock key, its part of /info, statistics."""

from __future__ import annotations

from typing import Any

import msgspec

from covey.engine_api.answers import Answer, Empty
from covey.engine_api.call import Call
from covey.engine_api.types.cluster import validate_swarm_spec
from covey.errors import InvalidArgument
from manager.ca.tokens import ROLES, rotate, token_of
from manager.routes.door import Door, out_of_sequence
from manager.routes.shapes import show_cluster, show_swarm_info
from manager.store.codec import encode
from manager.store.interface import Put, mod_is


class Swarm:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "swarm_inspect": self.inspect,
            "swarm_update": self.update,
            "swarm_unlock_key": self.unlock_key,
            "system_info": self.info,
            "covey_statistics": self.statistics,
        }

    async def inspect(self, call: Call) -> Answer:
        await self._door.view()
        cluster = self._door.cluster()
        tokens = {role.capitalize(): token_of(cluster, role) for role in ROLES}
        return {**show_cluster(cluster, self._door.trust()), "JoinTokens": tokens}

    async def update(self, call: Call) -> Answer:
        asked = call.required_integer("version")
        spec = validate_swarm_spec(await call.json()).stored()
        if (spec.get("EncryptionConfig") or {}).get("AutoLockManagers") or call.boolean("rotateManagerUnlockKey"):
            raise InvalidArgument("EncryptionConfig.AutoLockManagers: locked managers are not supported: leave it false")
        await self._door.view()
        cluster = self._door.cluster()
        if cluster.version != asked:
            raise out_of_sequence("swarm", cluster.id, cluster.version, asked)
        rotated = tuple(role for role in ROLES if call.boolean(f"rotate{role.capitalize()}Token"))
        new = msgspec.structs.replace(
            rotate(cluster, rotated), spec={**cluster.spec, **spec}, updated_at=self._door.clock.now(), version=0
        )
        key = self._door.keys.key("cluster")
        result = await self._door.commit([mod_is(key, asked)], [Put(key, encode(new))])
        if not result.ok:
            raise out_of_sequence("swarm", cluster.id, self._door.cluster().version, asked)
        return Empty(200)

    async def unlock_key(self, call: Call) -> Answer:
        # Docker's answer of a swarm that is not locked; its client then says that no unlock key is set.
        return {"UnlockKey": ""}

    async def info(self, call: Call) -> Answer:
        """The Swarm part alone: the front door merges it into the node's /info."""
        snapshot = await self._door.view()
        shown = show_cluster(self._door.cluster(), self._door.trust())
        return {"Swarm": show_swarm_info(snapshot, self._door.node_id, self._door.address, shown)}

    async def statistics(self, call: Call) -> Answer:
        return dict(self._door.statistics())
