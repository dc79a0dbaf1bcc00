"""The user in the simulation: creates, changes and removes services, drains nodes, and remembers what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from covey.model import versions
from covey.model.objects import Cluster, Network, Node, Service, Stored
from covey.model.resources import NANO
from covey.model.spec import STOPPED_LABEL
from manager.store.codec import decode, encode
from manager.store.interface import Delete, Operation, OutcomeUnknown, Put, StoreUnavailable, absent, mod_is
from manager.store.keys import Writer
from manager.store.memory import MemoryStore, Verdict
from manager.store.writer import WriterStore
from tests.sim import drains, jobs
from tests.sim.clock import SimClock
from tests.sim.loop import Process
from tests.sim.scarcity import LATE
from tests.sim.updates import policy

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Client:
    """Acts through the door's writes, one at a time."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.process = Process("client")
        self.clock = SimClock(sim.loop)
        self.store = WriterStore(MemoryStore(sim.database, self.clock, self._faults), Writer.API, sim.keys)
        self.acknowledged: dict[tuple[str, str], list[Stored | None]] = {}
        self.services: dict[str, Service] = {}
        self.made = 0
        self._busy = asyncio.Lock()

    def _faults(self, call: str, keys: tuple[str, ...]) -> Verdict:
        from manager.store.memory import Fail

        rng = self.sim.rng
        if call == "txn" and rng.random() < self.sim.trouble.store_fails:
            return Verdict(fail=rng.choice((Fail.BEFORE, Fail.AFTER)))
        return Verdict()

    async def prepare(self) -> None:
        """The cluster as it is when the history begins."""
        await self._write("cluster", "cluster", None, Cluster(id="cluster"), single=True)
        for name in self.sim.manager_names:
            await self._write("node", name, None, Node(id=name, name=name, role="manager", availability="drain"))
        for name in self.sim.machines:
            await self._write("node", name, None, Node(id=name, name=name))
        await self._write("network", "net", None, Network(id="net", spec={"Name": "net", "Driver": "bridge"}))

    def act(self) -> None:
        """Do one thing that a user would do."""
        rng = self.sim.rng
        actions = [self.create] * 3 + [self.scale] * 3 + [self.update] * 4 + [self.rollback, self.stop_or_start]
        actions += [self.create] * self.sim.world.eager + [self.late_network] * self.sim.world.scarce
        actions += [self.remove, self.availability, self.exchange, self.job, self.job, self.drain]
        self.sim.loop.start(self.process, self._alone(rng.choice(actions)), "client")

    async def _alone(self, action: Callable[[], Awaitable[None]]) -> None:
        """What is remembered as acknowledged is one user's: two writes of one key at once would confuse them."""
        async with self._busy:
            await action()

    async def create(self) -> None:
        if len(self.services) >= self.sim.world.services:
            return await self.scale()
        rng = self.sim.rng
        mode: dict[str, Any] = {"Global": {}} if rng.random() < 0.25 else {"Replicated": {"Replicas": rng.randint(1, 5)}}
        await self.make(
            mode,
            {"Delay": rng.choice((0, 1, 5)) * NANO},
            UpdateConfig=policy(rng, ("pause", "pause", "continue", "rollback")),
            RollbackConfig=policy(rng, ("pause", "continue")),
        )

    async def job(self) -> None:
        await jobs.act(self)

    async def make(self, mode: dict[str, Any], restarts: dict[str, Any], **more: Any) -> None:
        """A new service."""
        self.made += 1
        name = f"service{self.made}"
        spec = {"Name": name, "Mode": mode, "TaskTemplate": {**self._template(mode), "RestartPolicy": restarts}, **more}
        if self.sim.rng.random() < 0.3:
            spec["EndpointSpec"] = {"Ports": [{"TargetPort": 80}]}
        now = self.clock.now()
        service = Service(id=name, spec=spec, created_at=now, updated_at=now, **versions.first_execution(spec, now))
        await self._write("service", name, None, service)

    def _template(self, mode: dict[str, Any]) -> dict[str, Any]:
        rng, world = self.sim.rng, self.sim.world
        template: dict[str, Any] = {
            "ContainerSpec": {"Image": f"image{rng.randint(0, 8)}", "StopGracePeriod": NANO},
            "Resources": {"Reservations": {"NanoCPUs": world.request(rng, mode)}},
            "Placement": world.placement(rng, mode),
        }
        if rng.random() < 0.5:
            template["Networks"] = [{"Target": world.network(rng)}]
        return template

    async def scale(self) -> None:
        if (service := self._pick()) is None:
            return
        spec = service.spec
        if "Replicated" in spec["Mode"]:
            spec = {**spec, "Mode": {"Replicated": {"Replicas": self.sim.rng.randint(0, 6)}}}
            await self.change(service, spec)

    async def update(self) -> None:
        if (service := self._pick()) is not None:
            template = {**service.spec["TaskTemplate"], **self._template(service.spec["Mode"])}
            await self.change(service, {**service.spec, "TaskTemplate": template})

    async def rollback(self) -> None:
        """As the door does it: the service is read, and its previous spec comes back."""
        service = self._pick()
        held = await self._read("service", service.id) if service is not None else None
        if isinstance(held, Service) and held.previous_spec is not None:
            back = versions.reverted(held, versions.previous(held), self.clock.now())
            await self._write("service", held.id, held, back)

    async def stop_or_start(self) -> None:
        if (service := self._pick()) is not None:
            labels = {} if service.spec.get("Labels") else {STOPPED_LABEL: "true"}
            await self.change(service, {**service.spec, "Labels": labels})

    async def remove(self) -> None:
        if (service := self._pick()) is not None and len(self.services) > 1:
            await self._write("service", service.id, service, None)

    async def availability(self) -> None:
        rng = self.sim.rng
        name = rng.choice(list(self.sim.machines))
        held = await self._read("node", name)
        if isinstance(held, Node):
            drained = sum(1 for n in self.sim.truth("node").values() if cast("Node", n).availability != "active")
            wanted = "active" if drained > len(self.sim.manager_names) else rng.choice(("drain", "pause", "active"))
            await self._write("node", name, held, msgspec.structs.replace(held, availability=wanted))

    async def drain(self) -> None:
        await drains.act(self)

    async def set_node(self, name: str, **fields: Any) -> None:
        """People decide about a node."""
        held = await self._read("node", name)
        if isinstance(held, Node):
            await self._write("node", name, held, msgspec.structs.replace(held, **fields))

    async def exchange(self) -> None:
        """A machine is taken out of the cluster for good, and a new one joins."""
        name = self.sim.rng.choice(list(self.sim.machines))
        held = await self._read("node", name)
        if not isinstance(held, Node) or name not in self.sim.machines:
            return
        self.sim.retire(name)
        await self._write("node", name, held, None)
        fresh = self.sim.new_machine()
        await self._write("node", fresh.name, None, Node(id=fresh.name, name=fresh.name))
        fresh.boot()

    async def late_network(self) -> None:
        """What services ask for already is made."""
        if self.sim.world.scarce and await self._read("network", LATE) is None:
            await self._write("network", LATE, None, Network(id=LATE, spec={"Name": LATE, "Driver": "bridge"}))

    async def relieve(self) -> None:
        """Room for everything: machines are bought."""
        for _ in range(2):
            large = self.sim.new_machine(cpus=40)
            await self._write("node", large.name, None, Node(id=large.name, name=large.name))
            large.boot()

    async def make_good(self) -> None:
        """The end of the story: every node may be used again, and every network is there."""
        await self.late_network()
        for name in list(self.sim.machines):
            for _ in range(50):
                held = await self._read("node", name)
                if isinstance(held, Node) and held.availability != "active":
                    await self._write("node", name, held, msgspec.structs.replace(held, availability="active"))
                else:
                    break

    def _pick(self) -> Service | None:
        services = list(self.services.values())
        return self.sim.rng.choice(services) if services else None

    async def change(self, service: Service, spec: dict[str, Any]) -> None:
        """An update of a service."""
        held = await self._read("service", service.id)
        if isinstance(held, Service):
            await self._write("service", service.id, held, versions.updated(held, spec, self.clock.now()))

    async def _read(self, kind: str, key: str) -> Stored | None:
        item = await self.store.get(self.sim.keys.key(kind, key))
        return decode(item.value, item.mod_revision) if item is not None else None

    async def _write(self, kind: str, key: str, old: Stored | None, new: Stored | None, single: bool = False) -> None:
        """One compare and put or delete, until it is known what became of it or not any more worth it."""
        place = self.sim.keys.key(kind) if single else self.sim.keys.key(kind, key)
        compare = mod_is(place, old.version) if old is not None else absent(place)
        operation: Operation = Put(place, encode(new)) if new is not None else Delete(place)
        name = (kind, key)
        before = self.acknowledged.get(name, [None])
        self.acknowledged[name] = [*before, new]
        self.sim.happened(f"client {kind} {key}", f"client: {kind} " + ("removed" if new is None else "written"))
        for _ in range(20):
            try:
                result = await self.store.txn([compare], [operation])
            except OutcomeUnknown:
                return self._settle(name)
            except StoreUnavailable:
                await asyncio.sleep(0.1)
                continue
            self.acknowledged[name] = [new] if result.ok else before
            return self._settle(name)
        self.acknowledged[name] = before
        return None

    def _settle(self, name: tuple[str, str]) -> None:
        if name[0] == "service":
            held = cast("Service | None", self.sim.truth("service").get(name[1]))
            if held is None:
                self.services.pop(name[1], None)
            else:
                self.services[name[1]] = held
