"""Joining: a token and a certificate request in, a node and its certificate out. Also renews a node's certificate.

It decides who becomes a node. The node's record is written in the transaction that proves the token still admits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

from covey.clock import Clock
from covey.entropy import object_id
from covey.errors import Forbidden, NotFound, NotImplementedYet, Unavailable
from covey.model.objects import Cluster, Node
from covey.wire.messages import JoinReply, JoinRequest
from manager.ca.authority import sign_node
from manager.ca.tokens import admitted_role
from manager.dispatcher.link import Link
from manager.dispatcher.port import HELLO_SECONDS
from manager.store.codec import encode
from manager.store.interface import Put, Store, absent, mod_is
from manager.store.keys import Keys
from manager.store.mirror import Mirror

log = logging.getLogger(__name__)

AVAILABILITIES = ("active", "pause", "drain")
ATTEMPTS = 5


class Joining:
    """The cluster port's handler for joins; ``managers`` are the addresses given to nodes."""

    def __init__(self, store: Store, mirror: Mirror, keys: Keys, clock: Clock, managers: Callable[[], Sequence[str]]) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._managers = managers

    async def serve(self, link: Link) -> None:
        """One request, one reply."""
        request = await link.expect(JoinRequest, HELLO_SECONDS)
        await link.send(await self._renew(link, request) if request.node_id else await self._admit(request))

    async def _admit(self, request: JoinRequest) -> JoinReply:
        for _ in range(ATTEMPTS):
            # A token that was rotated a moment ago admits nobody, whatever this manager has seen.
            await self._mirror.wait_current()
            cluster = self._cluster()
            role = admitted_role(cluster, request.token)
            if role == "manager":
                raise NotImplementedYet("joining as a manager comes with a later release: use `cluster join-token worker`")
            now = self._clock.now()
            availability = request.availability if request.availability in AVAILABILITIES else "active"
            node = Node(id=object_id(), role=role, availability=availability, created_at=now, updated_at=now)
            reply = self._reply(cluster, node, request)
            key = self._keys.key("node", node.id)
            compares = [mod_is(self._keys.key("cluster"), cluster.version), absent(key)]
            result = await self._store.txn(compares, [Put(key, encode(node))])
            if result.ok:
                await self._mirror.wait_revision(result.revision)
                log.info("node %s (%s) joined as %s", node.id, request.hostname or "no name", role)
                return reply
        raise Unavailable("the cluster's settings keep changing: join again in a moment")

    async def _renew(self, link: Link, request: JoinRequest) -> JoinReply:
        """A node with a certificate asks for a fresh one; its role is what the cluster says now."""
        if link.peer is None or link.peer.node_id != request.node_id:
            raise Forbidden(f"only node {request.node_id} itself may renew its certificate: connect with the one it has")
        await self._mirror.wait_current()
        node = cast("Node | None", self._mirror.objects("node").get(request.node_id))
        if node is None:
            raise NotFound(f"node {request.node_id} is not part of the cluster (removed?): leave and join again")
        log.info("node %s renewed its certificate", node.id)
        return self._reply(self._cluster(), node, request)

    def _reply(self, cluster: Cluster, node: Node, request: JoinRequest) -> JoinReply:
        certificate = sign_node(
            cluster.ca_key, cluster.ca_certificate, request.request_pem, node.id, node.role, cluster.id, self._clock.now()
        )
        return JoinReply(
            node_id=node.id,
            role=node.role,
            certificate_pem=certificate,
            ca_pem=cluster.ca_certificate,
            cluster_id=cluster.id,
            managers=tuple(self._managers()),
        )

    def _cluster(self) -> Cluster:
        cluster = cast("Cluster | None", self._mirror.objects("cluster").get("cluster"))
        if cluster is None:
            raise Unavailable("there is no cluster yet: `cluster init` makes one")
        return cluster
