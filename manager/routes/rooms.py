"""All routes of a manager that serves a cluster, as one async context: what follows changes for them runs inside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from manager.routes.door import Door
from manager.routes.nodes import Nodes
from manager.routes.services import Services
from manager.routes.swarm import Swarm
from manager.routes.table import Handler, collect
from manager.routes.tasks import Tasks


@asynccontextmanager
async def rooms(door: Door) -> AsyncIterator[Mapping[str, Handler]]:
    """The handlers by route name."""
    yield collect(Services(door), Nodes(door), Tasks(door), Swarm(door))
