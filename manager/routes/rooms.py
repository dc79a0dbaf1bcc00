"""All routes of a manager that serves a cluster, as one async context: what follows changes for them runs inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from manager.events import Events
from manager.routes.containers import Containers
from manager.routes.door import Door
from manager.routes.explain import Explain
from manager.routes.images import Images
from manager.routes.logins import Logins
from manager.routes.logs import Logs
from manager.routes.networks import Networks
from manager.routes.nodes import Nodes
from manager.routes.plan import Plans
from manager.routes.rebalance import Rebalances
from manager.routes.secrets import KINDS, Files
from manager.routes.service_verbs import ServiceVerbs
from manager.routes.services import Services
from manager.routes.swarm import Swarm
from manager.routes.system import System
from manager.routes.table import Handler, collect
from manager.routes.tasks import Tasks


@asynccontextmanager
async def rooms(door: Door) -> AsyncIterator[Mapping[str, Handler]]:
    """The handlers by route name."""
    events = Events(door.mirror, door.clock)
    following = asyncio.create_task(events.follow(), name="cluster events")
    services = Services(door)
    try:
        yield collect(
            services,
            ServiceVerbs(door),
            Plans(door, services),
            Explain(door),
            Nodes(door),
            Tasks(door),
            Swarm(door),
            Networks(door),
            *(Files(door, kind) for kind in KINDS),
            System(events, door.clock),
            Containers(door),
            Logs(door),
            Images(door),
            Logins(door),
            Rebalances(door),
        )
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
