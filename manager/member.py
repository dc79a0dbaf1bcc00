"""A manager that is part of a cluster: lease, election, dispatcher, cluster port and routes, as one async context.

It decides the order in which they start and stop, nothing else: the port closes first, so that workers are told; then the
office is resigned; the lease goes last, because the others' keys hang on it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from covey.clock import Clock
from covey.model.objects import Cluster, Node, NodeInfo
from covey.tls import Identity, load_chain, renew_at, server_context
from manager.ca.authority import make_identity
from manager.ca.join import Joining
from manager.committer import Committer
from manager.dispatcher.dialback import DialBacks
from manager.dispatcher.dispatcher import Dispatcher
from manager.dispatcher.port import ClusterPort, Purpose
from manager.images.relay import Relay
from manager.lateness import Lateness
from manager.leader import Candidate, Term
from manager.lease import Claim
from manager.loops import Office
from manager.options import ManagerOptions
from manager.routes.door import Door
from manager.routes.rooms import rooms
from manager.routes.table import Handler
from manager.stats import Statistics
from manager.store.interface import Store
from manager.store.keys import Keys, Writer
from manager.store.mirror import Mirror
from manager.store.writer import WriterStore
from scheduler.settings import Settings

LATENESS_PERIOD = 0.1
RENEWAL_PAUSE = 3600.0


class Member:
    """``serve`` starts everything and yields the API's handlers; ``wait_ended`` raises what broke."""

    def __init__(
        self, options: ManagerOptions, store: Store, mirror: Mirror, keys: Keys, clock: Clock, settings: Settings
    ) -> None:
        self._options = options
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._clock = clock
        self._settings = settings
        self._statistics = Statistics()
        self._office: Office | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._address = ""

    @asynccontextmanager
    async def serve(
        self, cluster: Cluster, node_id: str, address: str, port: socket.socket
    ) -> AsyncIterator[Mapping[str, Handler]]:
        """Everything runs inside; ``port`` is the bound socket of the cluster port."""
        self._address = address
        claim = Claim(self._store, self._settings.lease_ttl, self._clock)
        lateness = Lateness(self._clock, LATENESS_PERIOD, self._settings.session_silence)
        dispatcher = Dispatcher(
            self._as(Writer.DISPATCHER),
            self._mirror,
            claim,
            self._keys,
            self._clock,
            self._settings,
            node_id,
            address,
            self._managers,
        )
        dials = DialBacks(dispatcher.ask)
        relay = Relay(dials.connect)

        async def lead(term: Term) -> None:
            await self._lead(term, lateness)

        candidate = Candidate(self._as(Writer.ELECTION), self._mirror, claim, self._keys, self._clock, node_id, address, lead)
        self._report(candidate=candidate, claim=claim, dispatcher=dispatcher, dials=dials, lateness=lateness, relay=relay)
        joining = Joining(self._as(Writer.API), self._mirror, self._keys, self._clock, self._managers)
        purposes = {
            "join": Purpose(joining.serve, certified=False),
            "session": Purpose(dispatcher.serve),
            "dialback": Purpose(dials.serve),
            "blob": Purpose(relay.serve),
        }
        identity = make_identity(cluster.ca_key, cluster.ca_certificate, node_id, "manager", cluster.id, self._clock.now())
        context = server_context(identity)
        listener = ClusterPort(purposes, cluster.id, node_id, cluster.ca_certificate)
        door = Door(
            store=self._as(Writer.API),
            mirror=self._mirror,
            keys=self._keys,
            clock=self._clock,
            settings=self._settings,
            node_id=node_id,
            address=address,
            dials=dials,
            images=dispatcher.images,
            statistics=self._statistics.collect,
        )
        work = (
            ("lease", claim.hold()),
            ("lateness", lateness.watch()),
            ("certificate", self._keep_certified(context, identity, cluster, node_id)),
            ("dispatcher", dispatcher.run()),
        )
        self._tasks = [asyncio.create_task(one, name=name) for name, one in (*work, ("election", candidate.campaign()))]
        try:
            async with listener.listen(port, context), rooms(door) as handlers:
                yield handlers
        finally:
            await self._stop()

    async def wait_ended(self) -> None:
        """Return never, or raise what broke."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _lead(self, term: Term, lateness: Lateness) -> None:
        committer = Committer(self._as(Writer.LEADER), self._mirror, self._keys, self._clock, term.fence)
        self._office = Office(committer, self._mirror, self._clock, self._settings, lateness)
        try:
            await self._office.lead()
        finally:
            self._office = None

    async def _keep_certified(self, context: ssl.SSLContext, identity: Identity, cluster: Cluster, node_id: str) -> None:
        """Give the cluster port a fresh certificate at a random 50 to 80 % of the life of each."""
        while True:
            due = renew_at(identity.certificate_pem, random.uniform(0.5, 0.8))
            await self._clock.sleep(max(due - self._clock.now(), RENEWAL_PAUSE))
            now = self._clock.now()
            identity = make_identity(cluster.ca_key, cluster.ca_certificate, node_id, "manager", cluster.id, now)
            load_chain(context, identity)

    async def _stop(self) -> None:
        """End what runs, the last started first; a fault shows in ``wait_ended``, not here."""
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.wait([task])

    def _report(self, **parts: Any) -> None:
        """Where ``statistics`` asks."""
        for name, part in {**parts, "mirror": self._mirror, "store": self._store}.items():
            self._statistics.add(name, part.statistics)
        self._statistics.add("images", parts["dispatcher"].images.statistics)
        self._statistics.add("office", lambda: self._office.statistics() if self._office else {})

    def _as(self, writer: Writer) -> Store:
        return WriterStore(self._store, writer, self._keys)

    def _managers(self) -> list[str]:
        """Addresses of managers, this one first."""
        known = [self._address]
        infos = cast("Mapping[str, NodeInfo]", self._mirror.objects("node_info"))
        for node_id, node in cast("Mapping[str, Node]", self._mirror.objects("node")).items():
            info = infos.get(node_id)
            if node.role == "manager" and info is not None and info.manager_address not in ("", *known):
                known.append(info.manager_address)
        return known
