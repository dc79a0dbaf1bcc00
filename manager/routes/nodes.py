"""Nodes: list, inspect, update, remove, with SwarmKit's rules on what may be removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from covey.engine_api.answers import Answer, Empty
from covey.engine_api.call import Call
from covey.engine_api.types.base import validate
from covey.engine_api.types.cluster import NodeSpec
from covey.errors import InvalidArgument, NotImplementedYet
from covey.model.objects import DrainPolicy, Node
from covey.model.resources import NANO
from manager.routes.door import Door, find_node, matches_id, matches_labels, matches_name, out_of_sequence
from manager.routes.shapes import manager_nodes, show_node
from manager.store.codec import encode
from manager.store.interface import Delete, Put, mod_is
from scheduler.snapshot import NodeView, Snapshot

FILTERS = ("id", "label", "membership", "name", "node.label", "role")


class Nodes:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "node_list": self.list_all,
            "node_inspect": self.inspect,
            "node_update": self.update,
            "node_delete": self.delete,
        }

    async def list_all(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        snapshot = await self._door.view()
        trust = self._door.trust()
        views = sorted(snapshot.nodes.values(), key=lambda view: (view.hostname, view.id))
        return [show_node(snapshot, view, trust) for view in views if _wanted(view, filters)]

    async def inspect(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        return show_node(snapshot, self._find(snapshot, call.params["id"]), self._door.trust())

    async def update(self, call: Call) -> Answer:
        asked = call.required_integer("version")
        spec = validate(NodeSpec, await call.json())
        door = self._door
        snapshot = await door.view()
        view = self._find(snapshot, call.params["id"])
        node = view.node
        if node.version != asked:
            raise out_of_sequence("node", view.hostname or node.id, node.version, asked)
        role = spec.Role or node.role
        if role != node.role:
            _refuse_role(snapshot, view, role)
        new = msgspec.structs.replace(
            node,
            name=spec.Name or "",
            availability=spec.Availability or node.availability,
            labels=dict(spec.Labels),
            drain=_drain(node, spec, door.clock.now()),
            updated_at=door.clock.now(),
            version=0,
        )
        result = await self._write(node, new)
        if not result:
            held = door.mirror.snapshot().nodes.get(node.id)
            raise out_of_sequence("node", node.id, held.node.version if held else 0, asked)
        return Empty(200)

    async def delete(self, call: Call) -> Answer:
        force = call.boolean("force")
        snapshot = await self._door.view()
        view = self._find(snapshot, call.params["id"])
        name = view.hostname or view.id
        if view.node.role == "manager":
            raise InvalidArgument(
                f"node {name} is a cluster manager and is a member of the raft cluster. "
                "It must be demoted to worker before removal"
            )
        if not force and view.status is not None and view.status.state == "ready":
            raise InvalidArgument(f"node {name} is not down and can't be removed: stop it first, or use --force")
        key = self._door.keys.key("node", view.id)
        result = await self._door.commit([mod_is(key, view.node.version)], [Delete(key)])
        if not result.ok and view.id in self._door.mirror.snapshot().nodes:
            raise out_of_sequence("node", name, self._door.mirror.snapshot().nodes[view.id].node.version, view.node.version)
        return Empty(200)

    def _find(self, snapshot: Snapshot, reference: str) -> NodeView:
        return find_node(snapshot, self._door.node_id if reference == "self" else reference)

    async def _write(self, old: Node, new: Node) -> bool:
        key = self._door.keys.key("node", old.id)
        return (await self._door.commit([mod_is(key, old.version)], [Put(key, encode(new))])).ok


def _refuse_role(snapshot: Snapshot, view: NodeView, role: str) -> None:
    if view.node.role == "manager" and len(manager_nodes(snapshot)) == 1:
        raise InvalidArgument("attempting to demote the last manager of the swarm")
    raise NotImplementedYet(f"node {view.id} cannot become a {role}: changing roles comes with a later release")


def _drain(node: Node, spec: NodeSpec, now: float) -> DrainPolicy | None:
    """How the node is to be emptied. Clients that do not know the field leave a drain that goes on as it is."""
    if (spec.Availability or node.availability) != "drain":
        return None
    if spec.Drain is None:
        return node.drain if node.availability == "drain" else None
    asked = spec.Drain
    policy = DrainPolicy(
        parallelism=1 if asked.Parallelism is None else asked.Parallelism,
        order=asked.Order or "",
        deadline=(asked.Deadline or 0) / NANO,
        since=now,
    )
    held = node.drain
    same = held is not None and msgspec.structs.replace(policy, since=held.since) == held
    return held if same else policy


def _wanted(view: NodeView, filters: Mapping[str, list[str]]) -> bool:
    description = view.info.description if view.info else None
    return (
        matches_id(view.id, filters.get("id", []))
        and matches_name(view.hostname, filters.get("name", []))
        and matches_labels(description.engine_labels if description else None, filters.get("label", []))
        and matches_labels(view.node.labels, filters.get("node.label", []))
        and (not filters.get("role") or view.node.role in filters["role"])
        and (not filters.get("membership") or "accepted" in filters["membership"])
    )
