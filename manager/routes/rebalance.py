"""``POST /covey/rebalance``: what would be moved, and the order to move it.

The order is one field of the cluster object, which the leader reads: what is moved and when is its own decision. A new order
takes the place of the last.
"""

from __future__ import annotations

from typing import Any

import msgspec

from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.errors import InvalidArgument, Unavailable
from covey.model.objects import Rebalance
from manager.routes.door import Door
from manager.routes.tasks import task_label
from manager.store.codec import encode
from manager.store.interface import Put, mod_is
from scheduler.rebalance import Move, moves
from scheduler.snapshot import Snapshot

ATTEMPTS = 5
MOST = 10
LIMIT = 1000
KNOWN = ("DryRun", "Max", "Parallelism")


class Rebalances:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {"covey_rebalance": self.rebalance}

    async def rebalance(self, call: Call) -> Answer:
        """Body: ``Max`` moves (10), ``Parallelism`` at once (1; 0 is all), ``DryRun`` to be told only."""
        body = await call.json()
        if unknown := sorted(set(body) - set(KNOWN)):
            raise InvalidArgument(f"{unknown[0]} is unknown: known are {', '.join(KNOWN)}")
        most, parallelism = _natural(body, "Max", MOST), _natural(body, "Parallelism", 1)
        if not 1 <= most <= LIMIT:
            raise InvalidArgument(f"Max: {most} is not from 1 to {LIMIT}")
        door = self._door
        for _ in range(ATTEMPTS):
            snapshot = await door.view()
            found = moves(snapshot, most)
            shown = {"DryRun": bool(body.get("DryRun")), "Moves": [_show(snapshot, move) for move in found]}
            if body.get("DryRun") or not found:
                return shown
            cluster = door.cluster()
            asked = Rebalance(tasks=tuple(move.task for move in found), parallelism=parallelism, asked_at=door.clock.now())
            key = door.keys.key("cluster")
            new = msgspec.structs.replace(cluster, rebalance=asked, version=0)
            if (await door.commit([mod_is(key, cluster.version)], [Put(key, encode(new))])).ok:
                return shown
        raise Unavailable("the cluster object keeps changing: rebalance again")


def _natural(body: dict[str, Any], field: str, default: int) -> int:
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgument(f"{field} must be a number, 0 or more, not {value!r}")
    return value


def _show(snapshot: Snapshot, move: Move) -> dict[str, Any]:
    return {
        "TaskID": move.task,
        "Name": task_label(snapshot.tasks[move.task]),
        "ServiceID": move.service,
        "From": move.origin,
        "To": move.to,
        "Why": move.why,
    }
