"""One history of a whole control plane, from one seed: 3 managers, 5 workers, a user, and what goes wrong.

``run(seed)`` → Report, or raises oracles.Broken. The same seed makes the same history, event by event: its hash says so.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from covey.model.objects import Stored
from covey.wire.messages import StatusStored
from manager.dispatcher import dispatcher as dispatcher_room
from manager.store.codec import decode
from manager.store.interface import WatchEvent
from manager.store.keys import Keys
from manager.store.mvcc import Database
from scheduler.settings import Settings
from tests.sim import faults, scarcity
from tests.sim.client import Client
from tests.sim.clock import EPOCH
from tests.sim.controller import Controller
from tests.sim.loop import Process, SimLoop
from tests.sim.net import Link, Net
from tests.sim.node import Machine
from tests.sim.oracles import Broken, Oracles

MANAGERS = 3
WORKERS = 5
EVENTS = 300
FAULTS = 3
"""What a history has at least; one that is too quiet goes on."""
STORY = (50.0, 80.0)
"""Seconds of history in which things go wrong."""
PATIENCE = 240.0
"""Seconds after the last fault within which everything must be as it was asked for."""


class Report(NamedTuple):
    """What a history was made of."""

    seed: int
    digest: str
    events: int
    faults: int
    healed_after: float
    coverage: Counter[str]


class ObservedDatabase(Database):
    """The store's data, which tells the oracles of every revision."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__()
        self._sim = sim

    def _commit(self, events: list[WatchEvent]) -> None:
        if events:
            self._sim.committed(self.revision + 1, events)
        super()._commit(events)


class Simulation:
    """Everything there is in one history."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loop = SimLoop()
        self.keys = Keys()
        self.settings = Settings.default()
        self.trouble = self.usual = faults.Trouble()
        self.world = scarcity.drawn(seed)
        self.coverage: Counter[str] = Counter()
        self.context = Process("world").context
        self.by_process: dict[Process, Controller] = {}
        self.crash_at: dict[tuple[str, str], int] = {}
        self.events = 0
        self._hash = hashlib.blake2b(digest_size=12)
        self._decoded: dict[tuple[bytes, int], Stored] = {}
        self._heard: dict[str, float] = {}
        self.oracles = Oracles(self)
        self.database = ObservedDatabase(self)
        self.manager_names = [f"m{number}" for number in range(1, MANAGERS + 1)]
        self.skew = {name: self.rng.uniform(-2, 2) for name in self.manager_names}
        self.net = Net(self.loop, self.rng, self._delivered)
        self.controllers = {name: Controller(self, name) for name in self.manager_names}
        self.machines: dict[str, Machine] = {}
        self.joined = 0
        for _ in range(WORKERS):
            self.new_machine()
        self.client = Client(self)

    # -- what the parts ask of the world -----------------------------------------------------------------------------

    def now(self) -> float:
        return EPOCH + self.loop.time()

    def truth(self, kind: str) -> Any:
        """Every object of a kind as the store has it."""
        return self.oracles.truth.objects(kind)

    def decode(self, value: bytes, revision: int) -> Stored:
        """The object in a value; read once, shared by all, for it is frozen."""
        name = (value, revision)
        held = self._decoded.get(name)
        if held is None:
            held = self._decoded[name] = decode(value, revision)
        return held

    def later(self, seconds: float, call: Callable[..., Any], *args: Any) -> None:
        """Something happens to the world, whatever becomes of who said so."""
        self.loop.call_later(seconds, call, *args, context=self.context.copy())

    def happened(self, what: str, cover: str) -> None:
        """One event of the history."""
        self.events += 1
        self.coverage[cover] += 1
        self._hash.update(f"{self.loop.time():.6f} {what}\n".encode())

    def cover(self, what: str) -> None:
        self.coverage[what] += 1

    def crashes_now(self, name: str, where: str) -> bool:
        """Whether the process ``name`` dies here: a crash was planned so many writes ahead."""
        left = self.crash_at.get((name, where))
        if left is None:
            return False
        if left > 1:
            self.crash_at[name, where] = left - 1
            return False
        del self.crash_at[name, where]
        self.happened(f"{name} crashes {where}", f"crash: {where}")
        return True

    def restore_trouble(self) -> None:
        self.trouble = self.usual

    def new_machine(self, cpus: float | None = None) -> Machine:
        """A machine that has not been here before, as large as the world has them unless said."""
        self.joined += 1
        name = f"w{self.joined}"
        self.skew[name] = self.rng.uniform(-2, 2)
        machine = self.machines[name] = Machine(self, name, cpus=self.world.machine(self.rng) / 2 if cpus is None else cpus)
        return machine

    def retire(self, name: str) -> None:
        """A machine is scrapped."""
        machine = self.machines.pop(name)
        machine.kill_machine()
        machine.scrapped = True
        self.happened(f"{name} scrapped", "machines exchanged")

    def dial(self, worker: str, process: Process, manager: str) -> Any:
        """A worker connects to a manager; its end of the link. Raises ConnectionError."""
        controller = self.controllers[manager]
        link = self.net.connect(worker, manager, process, controller.process)
        self.loop.start(controller.process, controller.serve(link.up), "serve")
        return link.down

    def heard(self, worker: str) -> float:
        """When the manager that holds a worker's session, and runs, last heard of it."""
        return self._heard.get(worker, -1e9)

    def committed(self, revision: int, events: list[WatchEvent]) -> None:
        self.happened(f"revision {revision} {[event.item.key for event in events]}", "revisions")
        self.oracles.committed(revision, events)

    def _delivered(self, link: Link, receiver: Any, message: Any) -> None:
        self.happened(f"{link.worker}-{link.manager} {type(message).__name__}", f"message: {type(message).__name__}")
        if receiver is link.up and not link.up.process.stopped:
            session = self.truth("session").get(link.worker)
            if session is not None and session.manager_id == link.manager:
                self._heard[link.worker] = self.loop.time()
        if isinstance(message, StatusStored) and receiver is link.down and link.worker in self.machines:
            machine = self.machines[link.worker]
            self.oracles.acknowledged(link.worker, machine.session, message)

    # -- the story -------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """The whole history. Raises Broken."""
        restore = dispatcher_room.object_id, dispatcher_room.random
        serial = iter(range(1, 1 << 30))
        dispatcher_room.object_id = lambda: f"session{next(serial)}"
        dispatcher_room.random = self.rng  # type: ignore[assignment]
        try:
            return self._run()
        finally:
            dispatcher_room.object_id, dispatcher_room.random = restore  # type: ignore[assignment]
            self.loop.end()

    def _run(self) -> Report:
        self.loop.start(self.client.process, self.client.prepare(), "client")
        self._advance(0.1)
        for controller in self.controllers.values():
            controller.boot()
        for machine in self.machines.values():
            machine.boot()
        planned = self._plan()
        for at, action in planned:
            self._advance(at)
            action()
        self._advance(planned[-1][0] + 1)
        while self.events < EVENTS or self.struck < FAULTS:
            self._fault(self.rng.choice(list(faults.FAULTS)))()
            self._advance(self.loop.time() + 5)
        healed_after = self._heal()
        if self.world.scarce:
            self._relieve()
        self.oracles.check_end()
        return Report(self.seed, self._hash.hexdigest(), self.events, self.struck, healed_after, self.coverage)

    @property
    def struck(self) -> int:
        """How many faults have struck so far."""
        return sum(count for name, count in self.coverage.items() if name.startswith("fault: "))

    def _advance(self, when: float) -> None:
        """To ``when``, second by second, so that a breach is seen soon."""
        while self.loop.time() < when:
            self.loop.run_until(min(when, self.loop.time() + 1.0))
            self.oracles.check()
        if self.loop.faults:
            raise Broken(f"nobody caught: {self.loop.faults[0]}")

    def _plan(self) -> list[tuple[float, Callable[[], None]]]:
        """What happens when: the user's doings, and faults, at times of chance."""
        rng = self.rng
        length = rng.uniform(*STORY)
        planned: list[tuple[float, Callable[[], None]]] = [(rng.uniform(1, 5), self.client.act)]
        planned += [(rng.uniform(2, length), self.client.act) for _ in range(rng.randint(8, 18))]
        kinds = rng.choices(list(faults.FAULTS), list(faults.FAULTS.values()), k=rng.randint(4, 9))
        planned += [(rng.uniform(8, length), self._fault(kind)) for kind in kinds]
        return sorted(planned, key=lambda entry: entry[0])

    def _fault(self, kind: Callable[[Simulation], bool]) -> Callable[[], None]:
        def strike() -> None:
            struck = kind(self)
            self.happened(f"fault {kind.__name__}", f"fault: {kind.__name__}" if struck else "fault that met nobody")

        return strike

    def _heal(self) -> float:
        """Undo every fault; seconds until the cluster is at rest. Raises Broken when that does not come."""
        self.trouble = self.usual = faults.PEACE
        self.crash_at.clear()
        self.net.heal(list(self.net.cuts))
        for controller in self.controllers.values():
            controller.settle()
            controller.go_on()
            controller.boot()
        for machine in self.machines.values():
            machine.boot()
        self.loop.start(self.client.process, self.client.make_good(), "client")
        return self._rest()

    def _relieve(self) -> None:
        """Who waited as there was no room must not wait any more. Raises Broken."""
        self.cover("scarce worlds")
        waiting = [task for service_id in self.truth("service") for task in self.oracles.scarcity.rightly_waiting(service_id)]
        self.coverage["tasks that had to wait"] += len(waiting)
        self.world = scarcity.PLENTY
        self.loop.start(self.client.process, self.client.relieve(), "client")
        self._advance(self.loop.time() + 1)
        self._rest()

    def _rest(self) -> float:
        """Seconds until the cluster is at rest. Raises Broken when that does not come."""
        began, quiet = self.loop.time(), 0
        while quiet < 3:
            self._advance(self.loop.time() + 2)
            quiet = quiet + 1 if not self._unrest() else 0
            if self.loop.time() - began > PATIENCE:
                raise Broken(f"no rest {PATIENCE:g} s after the last fault: {self._unrest()}")
        return self.loop.time() - began

    def _unrest(self) -> str:
        """What is not yet as it should be."""
        snapshot = self.oracles.truth.snapshot()
        for service_id in snapshot.services:
            if problem := self.oracles.service_problem(service_id):
                return problem
        gone = [service for service in snapshot.by_service if service not in snapshot.services]
        if gone:
            return f"tasks of removed services {gone}"
        behind = [c.name for c in self.controllers.values() if c.mirror is None or c.mirror.revision < self.database.revision]
        if behind:
            return f"managers {behind} have not seen the whole store"
        surplus = self.oracles.surplus()
        return f"surplus containers {surplus}" if surplus else ""


def run(seed: int, change: Callable[[Simulation], None] | None = None) -> Report:
    """The history of ``seed``; ``change`` may alter the world before it begins. Raises Broken.

    What a history leaves behind are coroutines that were killed in the middle: closing them makes them complain that they
    cannot go on, to a hook that is deaf meanwhile.
    """
    collected, hook = gc.isenabled(), sys.unraisablehook
    gc.disable()
    gc.freeze()
    sys.unraisablehook = lambda unraisable: None
    broken = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            simulation = Simulation(seed)
            if change is not None:
                change(simulation)
            try:
                report = simulation.run()
            except Broken as found:
                broken = f"seed {seed}: {found}"
            del simulation
            # Killed coroutines come to life once more as they are collected; left alone they would stay, 1.5 MB a history.
            gc.collect()
            gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.unfreeze()
        if collected:
            gc.enable()
    if broken:
        raise Broken(broken)
    return report
